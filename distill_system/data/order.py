"""The order of the samples: a pure function of seed and epoch over global sample indices, the same for any number of ranks.

    permutation = argsort(raw 64-bit draws of PCG64([seed, epoch]))

(raw draws, since NumPy promises that those stay the same from version to version). With `bucket`, rows of like length share a batch: the
permutation is cut into pools of 50 batches, each pool is sorted by length and cut into batches, and the batches are shuffled.
"""

from collections.abc import Sequence

import numpy as np

POOL_BATCHES = 50


def permutation(n: int, *key: int) -> np.ndarray:
    """The numbers 0..n-1 in an order that `key` (non-negative integers) alone decides."""
    draws = np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(draws, kind="stable")


def epoch_batches(
    lengths_or_n: np.ndarray | int, batch_size: int, seed: int, epoch: int, bucket: bool = True
) -> list[np.ndarray]:
    """Global batches of one epoch: every sample exactly once; only the last batch may be smaller than `batch_size`.

    Args:
        lengths_or_n: the length of each sample in tokens, or only how many there are (then nothing is bucketed).
        batch_size: samples in an optimizer step, over all ranks and accumulation.
        seed: of the run.
        epoch: counted from 0.
        bucket: whether rows of like length share a batch.
    """
    lengths = None if isinstance(lengths_or_n, int) else np.asarray(lengths_or_n)
    n = lengths_or_n if lengths is None else len(lengths)
    order = permutation(n, seed, epoch)
    if not bucket or lengths is None:
        return [order[i : i + batch_size] for i in range(0, n, batch_size)]
    pool = batch_size * POOL_BATCHES
    batches = []
    for start in range(0, n, pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    full = n // batch_size  # the batch that isn't full stays last
    return [batches[i] for i in permutation(full, seed, epoch, 1)] + batches[full:]


def rank_rows(
    batch_indices: Sequence[int] | np.ndarray, rank: int, world: int, accumulation: int = 1
) -> list[list[int]]:
    """What one rank sees of a global batch: a list of indices for each micro-batch, -1 for filler.

    Row i goes to rank i % world. All micro-batches of all ranks get equally many rows, as few as will do and at least one, so that
    collectives match.
    """
    rows = max(1, -(-len(batch_indices) // (world * accumulation)))
    own = [int(i) for i in batch_indices[rank::world]]
    own += [-1] * (rows * accumulation - len(own))
    return [own[i * rows : (i + 1) * rows] for i in range(accumulation)]


def steps_per_epoch(n: int, batch_size: int) -> int:
    return -(-n // batch_size)


def position(step: int, n: int, batch_size: int) -> tuple[int, int]:
    """The epoch and the batch in it that optimizer step `step` (counted from 0) takes."""
    return divmod(step, steps_per_epoch(n, batch_size))
