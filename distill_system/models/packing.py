"""Codes of a few levels in as few bits as they need, row by row: 1 bit for two levels, five codes a byte for three, else the fewest whole bits.

Each row begins at a byte, so that rows can be read alone; what is left of its last byte is zero. Three levels lie in base 3, the first code in the lowest
digit (3^5 = 243 of the 256 values of a byte: 1.6 bits a code). Otherwise a row is a stream of bits, the lowest first: code i fills bits i*b to (i+1)*b.

Shapes: O rows of I codes, B bytes; n codes in m bytes are the shortest run that fills whole bytes, and there are U of them in a row.
"""

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

MOST = 256  # levels
TRITS = 5  # codes of three levels in a byte
WIDE = {
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}  # by the codes of a byte: one word is looked up instead of single codes


def bits_of(count: int) -> float:
    """Bits that a code of `count` levels fills.

    >>> [bits_of(count) for count in (2, 3, 4, 5, 16, 255, 256)]
    [1, 1.6, 2, 3, 4, 8, 8]
    """
    return 8 / TRITS if count == 3 else _whole_bits(count)


def _whole_bits(count: int) -> int:
    if not 2 <= count <= MOST:
        raise ValueError(f"{count} levels can't be packed, must be 2 to {MOST}")
    return (count - 1).bit_length()


def row_bytes(inputs: int, count: int) -> int:
    """Bytes B of a row of `inputs` codes."""
    return -(-inputs // TRITS) if count == 3 else (inputs * _whole_bits(count) + 7) // 8


def _run(bits: int) -> tuple[int, int]:
    """(n, m): so many codes fill so many whole bytes."""
    common = math.gcd(bits, 8)
    return 8 // common, bits // common


def pack_rows(code_OI: Tensor, count: int) -> Tensor:
    """Bytes `[O, B]` of codes `[O, I]`, both uint8.

    >>> pack_rows(torch.tensor([[1, 0, 2, 1, 2, 2]], dtype=torch.uint8), 3).tolist()  # 1 + 2*9 + 1*27 + 2*81, and 2
    [[208, 2]]
    >>> pack_rows(torch.tensor([[5, 1, 7]], dtype=torch.uint8), 8).tolist()  # 101, 100, 111 from the lowest bit on
    [[205, 1]]
    """
    rows, inputs = code_OI.shape
    per_run, run_bytes = (TRITS, 1) if count == 3 else _run(_whole_bits(count))
    padded = torch.nn.functional.pad(code_OI, (0, -inputs % per_run))
    code_OUn = padded.view(rows, padded.shape[1] // per_run, per_run)
    packed_OUm = code_OI.new_zeros(rows, code_OUn.shape[1], run_bytes)
    for i in range(per_run):
        if count == 3:
            packed_OUm[..., 0] += code_OUn[..., i] * 3**i
            continue
        byte, shift = divmod(i * _whole_bits(count), 8)
        packed_OUm[..., byte] |= code_OUn[..., i] << shift
        if shift + _whole_bits(count) > 8:
            packed_OUm[..., byte + 1] |= code_OUn[..., i] >> (8 - shift)
    size = row_bytes(inputs, count)
    return packed_OUm.view(rows, code_OUn.shape[1] * run_bytes)[:, :size].contiguous()


def unpack_rows(packed_OB: Tensor, inputs: int, count: int) -> Tensor:
    """Codes `[O, I]` of bytes `[O, B]`, both uint8: the inverse of `pack_rows`. Bytes are taken as they are: see `largest_code`."""
    bits = _whole_bits(count)
    if bits == 8:
        return packed_OB
    if count != 3 and 8 % bits:
        return _unpack(packed_OB, bits)[:, :inputs]
    found = _table(count).to(packed_OB.device).index_select(0, packed_OB.reshape(-1).int()).view(torch.uint8)
    per_byte = TRITS if count == 3 else 8 // bits
    return found.view(len(packed_OB), packed_OB.shape[1] * per_byte)[:, :inputs]


def _unpack(packed_OB: Tensor, bits: int) -> Tensor:
    """All codes of rows of bits."""
    places = list(_places(packed_OB, bits))
    return torch.stack(places, dim=-1).view(len(packed_OB), places[0].shape[1] * len(places))


def _places(packed_OB: Tensor, bits: int) -> Iterator[Tensor]:
    """The codes `[O, U]` at each of the n places of a run; a run that isn't whole counts as if zeros followed."""
    rows, size = packed_OB.shape
    per_run, run_bytes = _run(bits)
    padded = torch.nn.functional.pad(packed_OB, (0, -size % run_bytes))
    packed_mOU = padded.view(rows, padded.shape[1] // run_bytes, run_bytes).permute(2, 0, 1).contiguous()
    for i in range(per_run):
        byte, shift = divmod(i * bits, 8)
        code_OU = packed_mOU[byte] >> shift
        if shift + bits > 8:
            code_OU |= packed_mOU[byte + 1] << (8 - shift)
        yield code_OU.bitwise_and_((1 << bits) - 1)


@functools.cache
def _table(count: int) -> Tensor:
    """The codes of each byte: `[256, n]`, or as one word each where there is a type as wide."""
    byte_256 = torch.arange(256, dtype=torch.uint8, device="cpu")  # also while a model is built on the meta device
    if count == 3:
        return torch.stack([(byte_256.int() // 3**i % 3).to(torch.uint8) for i in range(TRITS)], dim=1)
    code_256n = _unpack(byte_256.view(256, 1), _whole_bits(count))
    return code_256n.view(WIDE[code_256n.shape[1]]).view(-1)


def largest_code(packed_OB: Tensor, count: int) -> int:
    """The largest code that bytes hold, `count` or more where they were forged; of all levels that bits can say, none is too large."""
    if not packed_OB.numel():
        return 0
    if count == 3:
        return 2 if int(packed_OB.max()) < 3**TRITS else 3
    bits = _whole_bits(count)
    return count - 1 if count == 1 << bits else max(int(code_OU.max()) for code_OU in _places(packed_OB, bits))
