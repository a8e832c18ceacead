"""Codes in bits: every count comes back from as few bytes as its levels need, in the places that are written down."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill_system.models.packing import bits_of, largest_code, pack_rows, row_bytes, unpack_rows


def codes(rows: int, inputs: int, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, count, (rows, inputs), generator=generator, dtype=torch.uint8)


def naive(row: list[int], count: int) -> list[int]:
    """One row as a whole number, cut into bytes."""
    if count == 3:
        return [sum(code * 3**i for i, code in enumerate(row[k : k + 5])) for k in range(0, len(row), 5)]
    bits = math.ceil(math.log2(count))
    number = sum(code << i * bits for i, code in enumerate(row))
    return list(number.to_bytes((len(row) * bits + 7) // 8, "little"))


@given(st.integers(2, 256), st.integers(1, 5), st.integers(0, 41), st.integers(0, 9))
def test_every_count_comes_back_and_lies_where_it_should(count, rows, inputs, seed):
    code_OI = codes(rows, inputs, count, seed)
    packed_OB = pack_rows(code_OI, count)
    assert packed_OB.dtype == torch.uint8
    assert packed_OB.is_contiguous()
    assert packed_OB.shape == (rows, row_bytes(inputs, count))
    assert packed_OB.tolist() == [naive(row, count) for row in code_OI.tolist()]
    assert torch.equal(unpack_rows(packed_OB, inputs, count), code_OI)
    assert largest_code(packed_OB, count) < count


@pytest.mark.parametrize("count", range(2, 257))
def test_every_count_comes_back_where_rows_end_inside_a_byte(count):
    code_OI = codes(3, 37, count)
    code_OI[0], code_OI[1] = count - 1, 0
    assert torch.equal(unpack_rows(pack_rows(code_OI, count), 37, count), code_OI)


def test_values_by_hand():
    """Ternary: 1 + 0*3 + 2*9 + 1*27 + 2*81 = 208. Three bits: 101, 100, 111 from the lowest bit on: 1 101 ..., so 11 001 101 = 205, then 1."""
    byte = torch.uint8
    assert pack_rows(torch.tensor([[1, 0, 2, 1, 2, 2]], dtype=byte), 3).tolist() == [[208, 2]]
    assert pack_rows(torch.tensor([[5, 1, 7]], dtype=byte), 8).tolist() == [[0b11_001_101, 0b1]]
    assert pack_rows(torch.tensor([[1, 0, 0, 0, 0, 0, 0, 1, 1]], dtype=byte), 2).tolist() == [[0b1000_0001, 1]]
    assert pack_rows(torch.tensor([[3, 0, 1], [0, 0, 2]], dtype=byte), 4).tolist() == [[0b01_00_11], [0b10_00_00]]
    assert pack_rows(torch.tensor([[2, 15, 9]], dtype=byte), 16).tolist() == [[0xF2, 0x09]]
    assert pack_rows(torch.tensor([[255, 7]], dtype=byte), 256).tolist() == [[255, 7]]


def test_bits():
    assert [bits_of(count) for count in (2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256)] == [
        1, 1.6, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8,
    ]  # fmt: skip
    assert [row_bytes(384, count) for count in (2, 3, 4, 8, 16, 256)] == [48, 77, 96, 144, 192, 384]
    for count in (1, 0, -3, 257):
        with pytest.raises(ValueError, match=f"{count} levels can't be packed, must be 2 to 256"):
            bits_of(count)


def test_nothing_is_packed_into_nothing():
    for count in (2, 3, 8, 256):
        assert pack_rows(codes(4, 0, 2), count).shape == (4, 0)
        assert unpack_rows(torch.zeros(4, 0, dtype=torch.uint8), 0, count).shape == (4, 0)
        assert unpack_rows(torch.zeros(0, 1, dtype=torch.uint8), 1, count).shape == (0, 1)
        assert largest_code(torch.zeros(4, 0, dtype=torch.uint8), count) == 0


@pytest.mark.parametrize("count", [3, 5, 7, 9, 15, 17, 33, 100, 127, 129, 255])
def test_a_code_too_large_is_seen_wherever_it_lies(count):
    bits = math.ceil(math.log2(count))
    for place in range(16):
        code_OI = codes(3, 16, count)
        code_OI[1, place] = count - 1
        packed_OB = pack_rows(code_OI, count)
        assert largest_code(packed_OB, count) < count
        if count == 3:
            packed_OB[1, place // 5] = 243
        else:
            code_OI[1, place] = count
            packed_OB = pack_rows(code_OI, 1 << bits)
        assert largest_code(packed_OB, count) >= count


def test_rows_of_another_device_are_looked_up_there():
    """A table that was first made while a model is built on the meta device is a real one."""
    from distill_system.models import packing

    packing._table.cache_clear()
    packed_OB = pack_rows(codes(2, 10, 3), 3)
    with torch.device("meta"):
        found = unpack_rows(packed_OB, 10, 3)
    assert torch.equal(found, codes(2, 10, 3))
    assert unpack_rows(packed_OB.to("meta"), 10, 3).device.type == "meta"
