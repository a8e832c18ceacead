"""Seeded changes to training pictures: shifted (random crop after padding), mirrored, with a square cut out.

    view = f(pixels; seed, epoch, index)

The draws are a hash (splitmix64) of seed, epoch and sample index, so a sample's view is the same for any number of ranks, any accumulation and
after a resume; all models that share a batch see the same view. Cutout: DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552.

Shapes: B samples, C channels, H rows, W columns, K draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill_system.errors import Problem

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training picture.

    Args:
        shift: pixels that it may move in each direction; what comes in is black.
        flip: whether half of the pictures are mirrored left to right.
        cutout: side of a square at a random place that is set to the mean colour; 0: none.
    """

    shift: int = 0
    flip: bool = False
    cutout: int = 0

    def problems(self, key: str, size: int) -> list[Problem]:
        """Changes that leave nothing of a picture of `size` pixels a side."""
        found = []
        if not 0 <= self.shift < size:
            found.append(Problem(f"{key}.shift", f"is {self.shift}, must be below {key}.size={size}"))
        if not 0 <= self.cutout < size:
            found.append(Problem(f"{key}.cutout", f"is {self.cutout}, must be below {key}.size={size}"))
        return found


def chosen(kind: str, shift: int, flip: bool, cutout: int) -> Augmentation | None:
    """The augmentation of a source's settings; None where they change nothing."""
    wanted = Augmentation(shift, flip, cutout)
    return None if kind == "none" or wanted == Augmentation() else wanted


def mix(values: np.ndarray) -> np.ndarray:
    """One round of splitmix64: well mixed 64-bit numbers, the same on every machine.

    >>> hex(mix(np.array([0], dtype=np.uint64))[0])
    '0xe220a8397b1dcdaf'
    """
    values = values + GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def draws(seed: int, epoch: int, index_B: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """Numbers in [0, 1), [B, K], that depend on seed, epoch and each sample's index alone."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed & 0xFFFFFFFF, seed >> 32, epoch):
        key = mix(key ^ np.uint64(part))
    state_B = mix(key ^ np.asarray(index_B).astype(np.uint64))
    state_BK = mix(state_B[:, None] + np.arange(count, dtype=np.uint64) * GOLDEN)
    return (state_BK >> np.uint64(11)) * 2.0**-53


def augment(
    pixels_BCHW: np.ndarray,
    index_B: Sequence[int] | np.ndarray,
    *,
    settings: Augmentation,
    seed: int,
    epoch: int,
    fill_C: Sequence[int] | None = None,
) -> np.ndarray:
    """The views of uint8 pictures; the input isn't changed.

    Args:
        pixels_BCHW: pictures.
        index_B: of each sample in its split.
        settings: what is done.
        seed: of the run.
        epoch: counted from 0.
        fill_C: colour of the square that is cut out; None: black.
    """
    _, channels, height, width = pixels_BCHW.shape
    fill_C11 = np.array(fill_C or [0] * channels, dtype=np.uint8)[:, None, None]
    chance_BK = draws(seed, epoch, index_B, 5)
    offset_B2 = (chance_BK[:, :2] * (2 * settings.shift + 1)).astype(int) - settings.shift
    center_B2 = (chance_BK[:, 3:] * [height, width]).astype(int)
    views_BCHW = np.zeros_like(pixels_BCHW)
    for view, picture, (down, right), flipped, (row, column) in zip(
        views_BCHW, pixels_BCHW, offset_B2.tolist(), (chance_BK[:, 2] < 0.5).tolist(), center_B2.tolist(), strict=True
    ):
        rows, from_rows = _overlap(height, down)
        columns, from_columns = _overlap(width, right)
        view[:, rows, columns] = picture[:, from_rows, from_columns]
        if settings.flip and flipped:
            view[:] = view[:, :, ::-1].copy()
        if settings.cutout:
            top, left = row - settings.cutout // 2, column - settings.cutout // 2
            view[:, max(0, top) : top + settings.cutout, max(0, left) : left + settings.cutout] = fill_C11
    return views_BCHW


def _overlap(length: int, offset: int) -> tuple[slice, slice]:
    """Where a side of `length`, moved by `offset`, lands inside itself, and from where it came."""
    return slice(max(0, offset), length + min(0, offset)), slice(max(0, -offset), length + min(0, -offset))
