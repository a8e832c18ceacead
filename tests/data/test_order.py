"""Every sample once an epoch, whatever the ranks and the accumulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_system.data import order


def test_order_is_frozen():
    # A resume continues the order of the run it resumes, also on another version of NumPy: these literals may not change.
    assert order.permutation(8, 0, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert order.permutation(8, 7, 3).tolist() == [2, 4, 7, 3, 5, 1, 0, 6]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 5), st.booleans())
def test_every_sample_once(n, batch_size, seed, epoch, bucket):
    lengths = np.random.default_rng(n).integers(1, 50, n)
    batches = order.epoch_batches(lengths, batch_size, seed, epoch, bucket)
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    assert len(batches) == order.steps_per_epoch(n, batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])


@given(st.integers(0, 70), st.integers(1, 8), st.integers(1, 5))
def test_ranks_and_accumulation_only_share_out(size, world, accumulation):
    batch = list(range(100, 100 + size))
    shares = [order.rank_rows(batch, rank, world, accumulation) for rank in range(world)]
    assert all(len(share) == accumulation for share in shares)
    counts = {len(micro) for share in shares for micro in share}
    assert counts == {max(1, -(-size // (world * accumulation)))}
    assert sorted(i for share in shares for micro in share for i in micro if i >= 0) == batch


def test_rank_rows_by_hand():
    assert order.rank_rows([7, 8, 9], rank=0, world=2) == [[7, 9]]
    assert order.rank_rows([7, 8, 9], rank=1, world=2) == [[8, -1]]
    assert order.rank_rows([7, 8, 9], rank=0, world=2, accumulation=2) == [[7], [9]]
    assert order.rank_rows([7, 8, 9], rank=1, world=2, accumulation=2) == [[8], [-1]]
    assert order.rank_rows([7], rank=3, world=4) == [[-1]]


def test_epochs_and_seeds_differ_and_repeat():
    def flat(seed, epoch):
        return np.concatenate(order.epoch_batches(100, 8, seed, epoch)).tolist()

    assert flat(0, 0) == flat(0, 0)
    assert len({tuple(flat(*key)) for key in [(0, 0), (0, 1), (1, 0)]}) == 3


def test_bucket_puts_like_lengths_together():
    lengths = np.random.default_rng(0).integers(4, 64, 4000)

    def padding(bucket):
        return sum(len(b) * lengths[b].max() for b in order.epoch_batches(lengths, 32, 0, 0, bucket)) / lengths.sum()

    assert padding(True) < 1.05 < 1.5 < padding(False)


def test_shuffled_batches_are_not_sorted_by_length():
    lengths = np.arange(1000)
    means = [lengths[b].mean() for b in order.epoch_batches(lengths, 10, 0, 0)]
    assert abs(np.corrcoef(means, np.arange(100))[0, 1]) < 0.3


@pytest.mark.parametrize(("step", "expected"), [(0, (0, 0)), (3, (0, 3)), (4, (1, 0)), (9, (2, 1))])
def test_position(step, expected):
    assert order.position(step, n=10, batch_size=3) == expected
