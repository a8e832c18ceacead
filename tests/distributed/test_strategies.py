"""Strategies, ranks, placements and resumes give the same numbers: one launch on 2 ranks, one on 1 and one on 4, many checks."""

import math

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.strategies import STEPS, STOP, STRATEGIES

CLOSE = 1e-5  # relative, of losses
WEIGHTS = 2e-4  # absolute, of weights after a few steps of AdamW at lr 3e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strategies")


@pytest.fixture(scope="module")
def two(folder):
    return run_ranks("tests.distributed.strategies:first", world=2, folder=folder)


@pytest.fixture(scope="module")
def one(two, folder):
    return run_ranks("tests.distributed.strategies:again", world=1, folder=folder)


@pytest.fixture(scope="module")
def four(two, folder):
    return run_ranks("tests.distributed.strategies:again", world=4, folder=folder)


def same_losses(run, reference, steps=range(1, STEPS + 1), tolerance=CLOSE):
    for step in map(str, steps):
        for key, value in reference["loss"][step].items():
            bound = 1e-3 if key == "grad_norm" else tolerance  # a norm is a root of a sum of small squares
            assert run["loss"][step][key] == pytest.approx(value, rel=bound), (step, key)


def distance(run, reference):
    assert run["weights"].keys() == reference["weights"].keys()
    pairs = (
        (a, b) for name in run["weights"] for a, b in zip(run["weights"][name], reference["weights"][name], strict=True)
    )
    return max(abs(a - b) for a, b in pairs)


def test_every_step_is_logged_and_losses_fall(two):
    loss = two["straight"]["ddp"]["loss"]
    assert list(loss) == [str(step) for step in range(1, STEPS + 1)]
    assert loss[str(STEPS)]["loss/soft"] < 0.5 * loss["1"]["loss/soft"]
    assert loss["3"]["loss"] == pytest.approx(loss["3"]["loss/soft"] + 0.5 * loss["3"]["loss/hard"], rel=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_agree(two, strategy):
    same_losses(two["straight"][strategy], two["straight"]["ddp"])
    assert distance(two["straight"][strategy], two["straight"]["ddp"]) < WEIGHTS


def test_validation_is_the_same(two, one, four):
    reference = two["straight"]["ddp"]["valid"][0]
    for run in (two["straight"]["zero3"], one["straight"]["single"], four["straight"]["zero3"]):
        assert run["valid"][0]["valid/samples"] == reference["valid/samples"] == 6
        assert run["valid"][0]["valid/nll"] == pytest.approx(reference["valid/nll"], rel=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_signal_on_one_rank_stops_all_at_the_same_step(two, strategy):
    stopped = two["stopped"][strategy]
    assert stopped["preempted"]
    assert stopped["progress"]["step"] == STOP
    assert ["preempted", STOP] in stopped["events"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resume_on_the_same_ranks_is_bit_exact(two, strategy):
    resumed = two["resumed"][f"{strategy}>{strategy}"]
    assert resumed["events"][0] == ["resume", STOP]
    assert resumed["progress"]["resumes"] == 1
    assert distance(resumed, two["straight"][strategy]) == 0.0
    for step in map(str, range(STOP + 1, STEPS + 1)):
        assert resumed["loss"][step] == two["straight"][strategy]["loss"][step]


@pytest.mark.parametrize("source", STRATEGIES)
@pytest.mark.parametrize("target", STRATEGIES)
def test_any_strategy_resumes_any_other(two, source, target):
    resumed = two["resumed"][f"{source}>{target}"]
    same_losses(resumed, two["straight"]["ddp"], range(STOP + 1, STEPS + 1))
    assert distance(resumed, two["straight"]["ddp"]) < WEIGHTS
    assert resumed["scalars"]["updates"] == STEPS


@pytest.mark.parametrize("world", ["one", "four"])
def test_other_numbers_of_ranks_agree_and_resume(world, two, request):
    found = request.getfixturevalue(world)
    for run in found["straight"].values():
        same_losses(run, two["straight"]["ddp"])
    for name, run in found["resumed"].items():
        assert run["events"][0] == ["resume", STOP], name
        same_losses(run, two["straight"]["ddp"], range(STOP + 1, STEPS + 1))
        assert distance(run, two["straight"]["ddp"]) < WEIGHTS, name


@pytest.mark.parametrize("name", ["sharded", "sharded3"])
def test_a_sharded_teacher_says_the_same_and_each_rank_holds_its_half(two, name):
    same_losses(two[name], two["straight"]["ddp"])
    assert two[name]["resident"] <= 0.5 + 0.01
    assert two["straight"]["ddp"]["resident"] == 1.0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_accumulation_changes_nothing(two, strategy):
    same_losses(two["accumulated"][strategy], two["straight"]["ddp"])


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero3"])
def test_bf16_stays_near_and_resumes_bit_exact(two, strategy):
    whole, resumed = two["bf16"][strategy]
    for step, figures in whole["loss"].items():
        assert figures["loss"] == pytest.approx(two["straight"]["ddp"]["loss"][step]["loss"], rel=2e-3)
    assert whole["loss"] != two["straight"]["ddp"]["loss"]  # it really computes in bf16
    assert distance(resumed, whole) == 0.0


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_activation_checkpointing_changes_nothing(two, strategy):
    same_losses(two["recomputed"][strategy], two["straight"]["ddp"])


def test_offload_changes_nothing(two):
    same_losses(two["offload"], two["straight"]["ddp"])


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_a_nan_step_is_skipped_and_counted(two, strategy):
    run = two["bad"][strategy]
    assert run["progress"]["bad_steps"] == 1
    assert ["bad_step", 3] in run["events"]
    assert run["scalars"]["updates"] == STEPS - 1
    assert all(math.isfinite(value) for values in run["weights"].values() for value in values)


def test_too_many_bad_steps_end_the_run_with_the_samples(two):
    assert "training.max_bad_steps is 1" in two["too_bad"]
    assert "step 3 with training samples" in two["too_bad"]
