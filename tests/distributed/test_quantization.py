"""Every quantizer gives the same numbers under every strategy, on 1, 2 and 4 ranks, and through a stop and a resume; packed is what was trained."""

import os

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.quantization import STOP
from tests.distributed.resumes import strategies

CLOSE = 1e-5  # relative, of losses
EVERY = bool(os.environ.get("DISTILL_TEST_EVERY_KIND"))  # 15 minutes; by default what differs most
CORE = ("binary_constants", "bernoulli_ternary", "trained_ternary", "kbit", "loss_aware", "grouped", "while_pruning")
MORE = ("deterministic_binary", "ternary_connect", "loss_aware_binary")
KINDS = (*CORE, *MORE) if EVERY else CORE
ELSEWHERE = KINDS if EVERY else ("kbit", "loss_aware")  # on 1 and 4 ranks
TIMEOUT_S = 1500 if EVERY else 280


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quantization")


@pytest.fixture(scope="module")
def two(folder):
    arguments = {"chosen": KINDS, "every": EVERY}
    target = "tests.distributed.quantization:first"
    return run_ranks(target, world=2, folder=folder, timeout_s=TIMEOUT_S, arguments=arguments)


def elsewhere(folder, world):
    arguments = {"chosen": ELSEWHERE}
    target = "tests.distributed.quantization:again"
    return run_ranks(target, world=world, folder=folder, timeout_s=TIMEOUT_S, arguments=arguments)


@pytest.fixture(scope="module")
def one(two, folder):
    return elsewhere(folder, 1)


@pytest.fixture(scope="module")
def four(two, folder):
    return elsewhere(folder, 4)


def same(run, reference):
    """Losses closely; metrics less so: a weight or input at the edge of two codes may fall on either side when sums of gradients differ in their last digits."""
    for step, value in run["loss"].items():
        assert value == pytest.approx(reference["loss"][step], rel=CLOSE), step
    for name, value in run["metrics"].items():
        assert value == pytest.approx(reference["metrics"][name], rel=1e-3, abs=1e-5), name
    for name, own in run["scales"].items():
        for kind, values in own.items():
            assert values == pytest.approx(reference["scales"][name][kind], rel=5e-3, abs=1e-5), (name, kind)


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
        assert stopped["preempted"]
        assert max(map(int, stopped["loss"])) == STOP
        assert stopped["loss"] | resumed["loss"] == straight["loss"]
        assert resumed["digest"] == straight["digest"]
        assert resumed["codes"] == straight["codes"]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_stop_on_two_ranks_goes_on_elsewhere(one, four, two, kind):
    same(one["resumed"][kind], two["straight"][f"{kind}-ddp"])
    same(four["resumed"][kind], two["straight"][f"{kind}-ddp"])


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_plain(two, kind):
    for strategy in strategies(KINDS.index(kind), EVERY):
        run = two["straight"][f"{kind}-{strategy}"]
        assert run["different"]
        assert set(run["different"].values()) == {0}
        assert run["record"]["packed"]["bytes"] < run["record"]["packed"]["dense_bytes"]


def test_bits_fall_and_the_journal_says_so(two):
    assert [line["levels"] for line in two["straight"]["kbit-ddp"]["events"]] == [[16], [4]]


def test_inputs_are_rounded_in_what_is_handed_on(two):
    for kind in ("kbit-ddp", "grouped-ddp"):
        inputs = two["straight"][kind]["config"]["activations"]
        assert inputs["bits"] == 8
        assert len(inputs["steps"]) == 12  # six linears in each of two layers
        assert len(set(inputs["steps"].values())) > 6


def test_pruned_weights_are_zero_in_what_is_packed(two):
    run = two["straight"]["while_pruning-ddp"]
    assert all(0.3 < share < 1 for share in run["zeros"].values())
    shares = [tensor["zeros"] for tensor in run["record"]["tensors"]]
    assert sum(shares) / len(shares) > 0.59
