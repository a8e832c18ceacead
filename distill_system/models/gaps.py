"""Positions of what is kept, as gaps in Golomb-Rice code: within a few percent of the entropy where positions are random.

A gap g is how many units lie between a kept one and the one before it. Its low k bits are stored as they are; the rest, `g >> k`, in unary: so many
zeros and a one (Rice 1971; Golomb 1966, https://doi.org/10.1109/TIT.1966.1053907). With k = 0 the unary part is the bitmap of the units itself, so
dense positions need no layout of their own. Low bits lie in k planes of one bit per gap: so both parts are packed and unpacked without a loop.

Shapes: K kept units; k low bits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_LOW_BITS = 48  # gaps are below the number of units, and a tensor with 2^48 of them fits no machine


@dataclass(frozen=True)
class Gaps:
    """The code of K ascending positions."""

    low_bits: int
    high: NDArray[np.uint8]  # unary parts, first bit in the highest place
    low: NDArray[np.uint8]  # [k, ceil(K / 8)], the lowest bits first

    @property
    def nbytes(self) -> int:
        return int(self.high.nbytes + self.low.nbytes)


def encode(positions_K: NDArray[np.int64]) -> Gaps:
    """The shortest code of ascending positions from 0.

    >>> code = encode(np.array([9, 12, 13, 34]))  # gaps 9, 2, 0, 20
    >>> code.low_bits, [f"{byte:08b}" for byte in code.high], [f"{byte:08b}" for byte in code.low[0]]
    (1, ['00001011', '00000000', '00100000'], ['10000000'])
    >>> decode(code, 4, 35).tolist()
    [9, 12, 13, 34]
    """
    gaps_K = np.diff(positions_K, prepend=-1) - 1
    low_bits = _best_low_bits(gaps_K)
    ends_K = np.cumsum((gaps_K >> low_bits) + 1) - 1
    unary = np.zeros(int(ends_K[-1]) + 1 if len(ends_K) else 0, np.uint8)
    unary[ends_K] = 1
    planes = [np.packbits((gaps_K >> bit & 1).astype(np.uint8)) for bit in range(low_bits)]
    low = np.stack(planes) if planes else np.zeros((0, (len(gaps_K) + 7) // 8), np.uint8)
    return Gaps(low_bits, np.packbits(unary), low)


def _best_low_bits(gaps_K: NDArray[np.int64]) -> int:
    """The k with the fewest bytes among 0 and those near log2(mean * ln 2), where the best one for geometric gaps lies (Kiely 2004)."""
    kept = len(gaps_K)
    if not kept:
        return 0
    guess = int(np.log2(max(1.0, float(gaps_K.mean()) * np.log(2))))
    size = {}
    for k in {0, *range(max(0, guess - 2), guess + 3)}:
        size[k] = (kept + int((gaps_K >> k).sum()) + 7) // 8 + k * ((kept + 7) // 8)
    return min(size, key=lambda k: (size[k], k))


def decode(code: Gaps, kept: int, units: int) -> NDArray[np.int64]:
    """The positions `[K]`, ascending, each below `units`.

    Raises:
        ValueError: the code holds another number of positions, or one that is out of range; the message is a clause.
    """
    if not 0 <= code.low_bits <= MOST_LOW_BITS or code.low.shape != (code.low_bits, (kept + 7) // 8):
        raise ValueError(f"holds low bits of shape {list(code.low.shape)} for {kept} gaps of {code.low_bits}")
    if 8 * len(code.high) > 8 + kept + (units >> code.low_bits):
        raise ValueError(f"holds {len(code.high)} bytes of positions, too many for {units} units")
    ends_K = np.flatnonzero(np.unpackbits(code.high))
    if len(ends_K) != kept or len(code.high) != (int(ends_K[-1]) // 8 + 1 if kept else 0):
        raise ValueError(f"holds {len(ends_K)} positions in {len(code.high)} bytes, expected {kept}")
    positions_K = ends_K.astype(np.int64, copy=False)
    if code.low_bits and kept:
        gaps_K = np.diff(positions_K, prepend=-1) - 1 << code.low_bits
        for bit, plane in enumerate(code.low):
            gaps_K |= np.unpackbits(plane, count=kept).astype(np.int64) << bit
        if float(gaps_K.sum(dtype=np.float64)) > 2.0 * units:  # before the sum could pass 2^63 and seem small again
            raise ValueError(f"holds positions beyond its {units} units")
        positions_K = np.cumsum(gaps_K + 1) - 1
    if kept and int(positions_K[-1]) >= units:
        raise ValueError(f"holds position {int(positions_K[-1])}, beyond its {units} units")
    return positions_K
