"""The code of positions: worked by hand, against a naive coder, near the entropy, and forged codes refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_system.models.gaps import Gaps, decode, encode


def naive_bits(positions: list[int], low_bits: int) -> tuple[str, list[str]]:
    """Unary parts and planes of low bits as strings, one gap at a time."""
    high, planes, before = "", ["" for _ in range(low_bits)], -1
    for position in positions:
        gap = position - before - 1
        high += "0" * (gap >> low_bits) + "1"
        for bit in range(low_bits):
            planes[bit] += str(gap >> bit & 1)
        before = position
    return high, planes


def packed(bits: str) -> list[int]:
    return [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]


def test_by_hand():
    """Gaps 9, 2, 0, 20: with k = 1 the high parts are 4, 1, 0, 10, written 00001 01 1 00000000001, and the low bits 1, 0, 0, 0."""
    code = encode(np.array([9, 12, 13, 34]))
    assert code.low_bits == 1
    assert code.high.tolist() == [0b00001011, 0b00000000, 0b00100000]
    assert code.low.tolist() == [[0b10000000]]


positions = st.sets(st.integers(0, 5000), max_size=400).map(sorted)


@given(positions)
def test_there_and_back_as_a_naive_coder_writes_it(chosen):
    code = encode(np.array(chosen, dtype=np.int64))
    high, planes = naive_bits(chosen, code.low_bits)
    assert code.high.tolist() == packed(high)
    assert code.low.tolist() == [packed(plane) for plane in planes]
    assert decode(code, len(chosen), 5001).tolist() == chosen


@given(positions)
def test_never_longer_than_a_bitmap_up_to_the_last_position(chosen):
    code = encode(np.array(chosen, dtype=np.int64))
    assert code.nbytes <= (chosen[-1] + 8) // 8 if chosen else code.nbytes == 0


@pytest.mark.parametrize("share", [0.001, 0.05, 0.1, 0.2, 0.5])
def test_random_positions_take_within_five_percent_of_their_entropy(share):
    generator = np.random.default_rng(0)
    chosen = np.flatnonzero(generator.random(400_000) < share)
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) * 400_000 / 8
    assert encode(chosen).nbytes <= 1.05 * entropy


def test_gaps_that_could_overflow_are_refused():
    last = 1 << 40
    code = encode(np.array([0, last]))
    assert decode(code, 2, last + 1).tolist() == [0, last]
    with pytest.raises(ValueError, match="beyond its"):
        decode(code, 2, last)
    full = np.full((48, 1 << 13), 255, np.uint8)  # 65536 gaps of 2^48: their sum wraps around in 64 bits
    with pytest.raises(ValueError, match="beyond its 1000 units"):
        decode(Gaps(48, np.full(1 << 13, 255, np.uint8), full), 1 << 16, 1000)


@pytest.mark.parametrize(
    ("low_bits", "high", "low", "kept", "units", "words"),
    [
        (0, [0b10110001], [], 4, 7, "position 7, beyond"),
        (0, [0b10110001], [], 3, 8, "holds 4 positions"),
        (0, [0b10110001, 0], [], 4, 8, "holds 4 positions in 2 bytes"),
        (0, [0] * 30, [], 4, 8, "holds 30 bytes of positions, too many"),
        (0, [], [], 1, 8, "holds 0 positions"),
        (1, [0b11110000], [], 4, 8, "low bits of shape"),
        (49, [0b11110000], [[0]] * 49, 4, 8, "low bits of shape"),
        (3, [0b11110000], [[255], [255], [255]], 4, 8, "beyond its 8 units"),
    ],
)
def test_forged_codes_are_refused(low_bits, high, low, kept, units, words):
    planes = np.array(low, np.uint8).reshape(len(low), -1 if low else (kept + 7) // 8)
    with pytest.raises(ValueError, match=words):
        decode(Gaps(low_bits, np.array(high, np.uint8), planes), kept, units)
