"""A recurrent model gives the same numbers under every strategy, also where its weights are gathered from other ranks."""

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.test_strategies import WEIGHTS, distance, same_losses


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_ranks("tests.distributed.recurrent:main", world=2, folder=tmp_path_factory.mktemp("recurrent"))


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_strategies_agree(two, strategy):
    same_losses(two[strategy], two["ddp"], steps=range(1, 5))
    assert distance(two[strategy], two["ddp"]) < WEIGHTS


def test_it_learns_and_its_teacher_is_shared_out(two):
    loss = two["ddp"]["loss"]
    assert loss["4"]["loss"] < 0.95 * loss["1"]["loss"]
    assert two["zero3"]["resident"] < 0.6 < two["ddp"]["resident"] == 1.0
