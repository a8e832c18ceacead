"""Selections and watchers on two real ranks find what one process finds, to the bit, and refuse together."""

import pytest
import torch

from tests.distributed.launch import run_ranks
from tests.pruning.ranks import mask, scores, watched


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_ranks("tests.pruning.ranks:main", world=2, folder=tmp_path_factory.mktemp("ranks"))


def test_the_same_elements_go(two):
    order = torch.cat(list(scores().values())).argsort(stable=True)
    assert two["pruned"].keys() == {"0", "35000", "71003"}
    for prune, places in two["pruned"].items():
        assert places == sorted(order[: int(prune)].tolist())
        assert places == sorted(mask(int(prune), 0, 1))
    assert 0 < two["alone"][0] < 35_000


def test_watchers_find_the_same(two):
    assert two["watched"] == [watched(0, 1)] * 2


def test_a_score_that_is_no_number_ends_both_ranks(two):
    assert len(set(two["refusals"])) == 1
    assert "1 of bad" in two["refusals"][0]
