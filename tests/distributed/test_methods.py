"""Every way to distil gives the same numbers under every strategy, on 1, 2 and 4 ranks, wherever members live, and through a stop and a resume."""

import os

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.methods import STEPS, STOP

CLOSE = 1e-5  # relative, of losses
METHODS = ("students", "inside", "logits", "teachers", "trusted", "chain", "together", "spread", "taught")
EVERY = bool(os.environ.get("DISTILL_TEST_EVERY_KIND"))  # two minutes more
ON_FOUR = METHODS if EVERY else ("students", "inside", "trusted", "spread", "together")
ON_ONE = [method for method in METHODS if method in ON_FOUR and method not in ("spread", "taught")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def two(folder):
    return run_ranks("tests.distributed.methods:first", world=2, folder=folder)


@pytest.fixture(scope="module")
def one(two, folder):
    return run_ranks("tests.distributed.methods:again", world=1, folder=folder, arguments={"chosen": ON_ONE})


@pytest.fixture(scope="module")
def four(two, folder):
    return run_ranks("tests.distributed.methods:again", world=4, folder=folder, arguments={"chosen": list(ON_FOUR)})


def same(run, reference, steps=None):
    """All steps, or those given; a chain's have the name of their step before them."""
    for step in map(str, steps or reference["loss"]):
        assert run["loss"][step].keys() == reference["loss"][step].keys()
        for key, value in reference["loss"][step].items():
            bound = 1e-3 if key.startswith("grad_norm") else CLOSE
            assert run["loss"][step][key] == pytest.approx(value, rel=bound, abs=1e-9), (step, key)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
@pytest.mark.parametrize("method", METHODS)
def test_strategies_agree(two, method, strategy):
    same(two["straight"][f"{method}-{strategy}"], two["straight"][f"{method}-ddp"])


def test_members_say_the_same_together_and_apart(two):
    same(two["straight"]["spread-ddp"], two["straight"]["together-ddp"])
    ensembles = [two["straight"][f"{name}-ddp"]["extra"]["ensemble"]["nll"] for name in ("spread", "together")]
    assert ensembles[0] == pytest.approx(ensembles[1], rel=1e-5)


def test_each_term_of_each_role_is_logged(two):
    assert set(two["straight"]["taught-zero3"]["loss"]["1"]) >= {
        f"loss/{role}/{term}" for role, peer in (("a", "b"), ("b", "a")) for term in ("hard", "soft", f"peer/{peer}")
    }
    line = two["straight"]["students-ddp"]["loss"]["2"]
    assert line["loss"] == pytest.approx(line["loss/a"] + line["loss/b"])
    assert line["loss/a"] == pytest.approx(line["loss/a/soft"] + line["loss/a/hard"])
    assert line["grad_norm"] == pytest.approx((line["grad_norm/a"] ** 2 + line["grad_norm/b"] ** 2) ** 0.5)


def test_a_weight_follows_its_schedule(two):
    weights = [two["straight"]["logits-zero2"]["loss"][str(step)]["weight/jensen_shannon"] for step in (1, 3, 5)]
    assert weights[0] == pytest.approx(1.0)
    assert weights == sorted(weights, reverse=True)


def test_members_leave_an_artifact_each_and_students_differ(two):
    for name in ("students-zero3", "spread-zero2"):
        digests = two["straight"][name]["digests"]
        assert list(digests) == ["a", "b"]
        assert digests["a"] != digests["b"]
        assert two["straight"][name]["digest"] == digests[two["straight"][name]["extra"]["best_member"]]


def test_hints_follow_the_model(two):
    assert two["straight"]["inside-zero3"]["extra"]["mapping"]["hint"]["pairs"] == [[0, 1], [1, 2]]


@pytest.mark.parametrize("method", METHODS)
def test_a_resume_is_bit_equal(two, method):
    strategy, stopped, resumed = two["resumed"][method]
    straight = two["straight"][f"{method}-{strategy}"]
    assert stopped["preempted"]
    done = len(stopped["loss"])
    assert done == (STOP - 1 if method == "chain" else STOP)  # a chain asks once more, before its first step
    assert list(stopped["loss"]) == list(straight["loss"])[:done]
    assert list(resumed["loss"]) == list(straight["loss"])[done:]
    for step, figures in resumed["loss"].items():
        assert figures == straight["loss"][step]
    assert resumed["digest"] == straight["digest"]
    assert resumed["digests"] == straight["digests"]


@pytest.mark.parametrize("way", ["together>spread", "spread>together"])
def test_a_cohort_s_checkpoint_moves_between_placements(two, way):
    same(two["elsewhere"][way], two["straight"]["together-ddp"], range(STOP + 1, STEPS + 1))


@pytest.mark.parametrize("method", ON_ONE)
def test_one_rank_agrees(one, two, method):
    same(one[method], two["straight"][f"{method}-ddp"])


@pytest.mark.parametrize("method", ON_FOUR)
def test_four_ranks_agree(four, two, method):
    same(four[method], two["straight"][f"{method}-ddp"])
