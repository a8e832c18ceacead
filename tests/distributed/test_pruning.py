"""Every kind of pruning gives the same masks and the same numbers under every strategy, on 1, 2 and 4 ranks, and through a stop and a resume."""

import os

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.pruning import STEPS, STOP
from tests.distributed.resumes import strategies

CLOSE = 1e-5  # relative, of losses
EVERY = bool(os.environ.get("DISTILL_TEST_EVERY_KIND"))  # 20 minutes; by default one kind of each sort
CORE = ("weights", "pattern", "movement", "learned", "blocks", "neurons", "heads", "layers", "gate_neurons")
MORE = ("layerwise", "soft", "taylor", "random", "entropy", "taylor_neurons", "rule", "rewind", "gate")
KINDS = (*CORE, *MORE) if EVERY else CORE
ELSEWHERE = KINDS if EVERY else ("movement", "layers", "gate_neurons")  # on 1 and 4 ranks
ROLLED_BACK = [kind for kind in KINDS if kind.startswith("gate")]
TIMEOUT_S = 1500 if EVERY else 280


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pruning")


@pytest.fixture(scope="module")
def two(folder):
    return run_ranks(
        "tests.distributed.pruning:first",
        world=2,
        folder=folder,
        timeout_s=TIMEOUT_S,
        arguments={"chosen": KINDS, "every": EVERY},
    )


@pytest.fixture(scope="module")
def one(two, folder):
    return run_ranks(
        "tests.distributed.pruning:again",
        world=1,
        folder=folder,
        timeout_s=TIMEOUT_S,
        arguments={"chosen": ELSEWHERE},
    )


@pytest.fixture(scope="module")
def four(two, folder):
    return run_ranks(
        "tests.distributed.pruning:again",
        world=4,
        folder=folder,
        timeout_s=TIMEOUT_S,
        arguments={"chosen": ELSEWHERE},
    )


def same(run, reference):
    """Masks to the bit, counts exactly, losses closely."""
    assert run["zeros"] == reference["zeros"]
    story, other = run["pruning"], reference["pruning"]
    for own, theirs in zip(story["rounds"], other["rounds"], strict=True):
        assert [own[key] for key in ("round", "step", "sparsity", "remaining", "state")] == [
            theirs[key] for key in ("round", "step", "sparsity", "remaining", "state")
        ]
    assert story["groups"] == other["groups"]
    for step, value in run["loss"].items():
        assert value == pytest.approx(reference["loss"][step], rel=CLOSE), step


@pytest.mark.parametrize("kind", KINDS)
def test_strategies_agree(two, kind):
    for strategy in strategies(KINDS.index(kind), EVERY)[1:]:
        same(two["straight"][f"{kind}-{strategy}"], two["straight"][f"{kind}-ddp"])


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_ranks_agree(one, four, two, kind):
    same(one["straight"][kind], two["straight"][f"{kind}-ddp"])
    same(four["straight"][kind], two["straight"][f"{kind}-ddp"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_changes_nothing(two, kind):
    for strategy in strategies(KINDS.index(kind), EVERY)[0 if EVERY else -1 :]:
        stopped, resumed = two["resumed"][f"{kind}-{strategy}"]
        straight = two["straight"][f"{kind}-{strategy}"]
        if kind not in ROLLED_BACK:
            assert stopped["preempted"]
            assert max(map(int, stopped["loss"])) == STOP
        assert resumed["digest"] == straight["digest"]
        assert resumed["zeros"] == straight["zeros"]
        assert stopped["loss"] | resumed["loss"] == straight["loss"]
        assert resumed["pruning"]["rounds"] == straight["pruning"]["rounds"]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_stop_on_two_ranks_goes_on_elsewhere(one, four, two, kind):
    same(one["resumed"][kind], two["straight"][f"{kind}-ddp"])
    same(four["resumed"][kind], two["straight"][f"{kind}-ddp"])


@pytest.mark.parametrize("kind", ["weights", "pattern", "movement", "learned", "blocks"])
def test_sparsity_is_in_the_file(two, kind):
    run = two["straight"][f"{kind}-{strategies(KINDS.index(kind), EVERY)[-1]}"]
    counted = sum(zeros for _, zeros in run["zeros"]["where"].values())
    groups = run["pruning"]["groups"]
    assert counted == sum(group["units"] - group["kept"] for group in groups)
    target = 0.5 if kind == "pattern" else 0.6
    assert counted / sum(group["units"] for group in groups) == pytest.approx(target, abs=2e-3)
    assert run["pruning"]["rounds"][-1]["sparsity"] == pytest.approx(target, abs=2e-3)


def test_units_are_cut_out(two):
    shapes = two["straight"]["neurons-ddp"]["zeros"]["shapes"]
    assert shapes["bert.encoder.layer.1.intermediate.dense.weight"] == [18, 36]
    assert shapes["bert.encoder.layer.1.output.dense.weight"] == [36, 18]
    assert two["straight"]["neurons-ddp"]["config"]["intermediate_size"] == 18
    heads = two["straight"]["heads-ddp"]
    assert heads["zeros"]["shapes"]["bert.encoder.layer.0.attention.self.query.weight"] == [24, 36]
    assert "modeling_cut.py" in heads["files"]


def test_layers_go_one_after_another_and_hints_follow(two):
    run = two["straight"]["layers-ddp"]
    assert run["config"]["num_hidden_layers"] == 1
    assert [line["round"] for line in run["events"]] == [1, 2]
    assert [round(one["sparsity"], 2) for one in run["pruning"]["rounds"]] == [0.0, 0.33, 0.67]
    kept = [group["layer"] for group in run["pruning"]["groups"] if group["kept"]]
    told = [line for line in run["told"] if line.startswith("hint:")]
    assert f"0 -> {kept[0]}" in told[-1]  # what is left hears the layer of the teacher that it heard before


def test_a_round_that_misses_its_bound_is_undone(two):
    for kind in ROLLED_BACK:
        run = two["straight"][f"{kind}-ddp"]
        rolled_back = run["pruning"]["rolled_back"]
        assert run["pruning"]["rounds"][-1]["state"] == "rolled_back"
        assert rolled_back["handed_on"] == rolled_back["round"] - 1
        assert max(map(int, run["loss"])) == rolled_back["step"] < STEPS + 1
        assert any(line["event"] == "rollback" for line in run["events"])
        good = run["pruning"]["rounds"][rolled_back["handed_on"]]
        counted = sum(group["kept"] for group in run["pruning"]["groups"]) / sum(
            group["units"] for group in run["pruning"]["groups"]
        )
        assert 1 - counted == pytest.approx(good["sparsity"], abs=1e-9)
