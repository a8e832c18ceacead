"""Sparse tensors in few bytes: what isn't zero as values, beside its positions, in one safetensors file that is read bit for bit or not at all.

"Zero" is the bit pattern of +0.0: -0.0 and NaN are values and survive. (`-1.5 * 0` is -0.0: whoever multiplies by a mask adds 0.0 before writing.)

`sparse.safetensors` holds, for each tensor NAME of the model, either NAME itself (where that is smallest), or

- `NAME:values`: K elements, or K blocks of h x w elements, each contiguous (`[K, h, w]`), in ascending order of their positions,
- `NAME:high`, `NAME:low`: the positions (of elements in the flattened tensor, or of blocks row by row), coded as `models.gaps` says.

Its metadata hold one entry, JSON of `format`, `version`, `layout` (JSON: of each tensor its shape, dtype, kept units, block, low bits and the checksum of each piece) and
`checksum`, of the layout. The file has not the name that plain `from_pretrained` looks for: that finds no weights and says so.

Shapes: K kept units, N elements; R, C rows and columns of blocks; h, w of a block.
"""

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_system.models import gaps
from distill_system.models.weights import SPARSE

FORMAT, VERSION = "distill_sparse", 1
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element
LEAST_SAVING = 512  # bytes; three pieces need so much more header than one
VALUES, HIGH, LOW = ":values", ":high", ":low"


@dataclass(frozen=True)
class Stored:
    """How one tensor lies in the file."""

    shape: tuple[int, ...]
    dtype: str
    kept: int | None = None  # units that are stored; None: the whole tensor is
    block: tuple[int, int] = (1, 1)  # of a unit; (1, 1): single elements
    low_bits: int = 0
    checksums: dict[str, int] = field(default_factory=dict)  # by the suffix of the piece

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def units(self) -> int:
        return self.elements // math.prod(self.block)

    def pieces(self) -> dict[str, tuple[int, ...] | None]:
        """Shapes of the pieces by suffix; None where only the content tells."""
        if self.kept is None:
            return {"": self.shape}
        values = (self.kept,) if self.block == (1, 1) else (self.kept, *self.block)
        return {VALUES: values, HIGH: None, LOW: (self.low_bits, (self.kept + 7) // 8)}


def compress(
    tensor: Tensor, block: tuple[int, int] | None = None, name: str = "the tensor"
) -> tuple[Stored, dict[str, Tensor]]:
    """How a tensor is stored, and its pieces by suffix. Without `block`, by elements; whole where that saves nothing."""
    tensor = tensor.detach().cpu().contiguous()
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if block is not None and (tensor.dim() != 2 or min(block) < 1 or shape[0] % block[0] or shape[1] % block[1]):
        raise ValueError(f"{name} has shape {list(shape)}, which blocks of {block[0]}x{block[1]} don't divide")
    stored, parts = Stored(shape, dtype), {"": tensor.clone()}  # a view would keep, and share, its buffer
    if tensor.is_floating_point() and tensor.itemsize in BITS and tensor.numel():
        found = _units(tensor.view(BITS[tensor.itemsize]), block or (1, 1))
        saving = tensor.nbytes - LEAST_SAVING - found[1].nbytes
        if saving > 0:  # else not even free positions would help
            code = gaps.encode(found[0].numpy())
            if code.nbytes < saving:
                values = found[1].view(tensor.dtype)
                stored = Stored(shape, dtype, len(values), block or (1, 1), code.low_bits)
                parts = {VALUES: values, HIGH: torch.from_numpy(code.high), LOW: torch.from_numpy(code.low)}
    checksums = {suffix: _checksum(part) for suffix, part in parts.items()}
    return Stored(**{**asdict(stored), "checksums": checksums}), parts


def _units(bits: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Ascending positions `[K]` and bits `[K]` or `[K, h, w]` of the units that aren't all zero."""
    if block == (1, 1):
        flat_N = bits.view(-1)
        positions_K = flat_N.nonzero().view(-1)
        return positions_K, flat_N[positions_K]
    blocks_RChw = _in_blocks(bits, block)
    positions_K = blocks_RChw.ne(0).any(-1).any(-1).view(-1).nonzero().view(-1)
    columns = blocks_RChw.shape[1]
    return positions_K, blocks_RChw[positions_K // columns, positions_K % columns].contiguous()


def _in_blocks(matrix: Tensor, block: tuple[int, int]) -> Tensor:
    """A view `[R, C, h, w]` of a matrix."""
    height, width = block
    return matrix.view(matrix.shape[0] // height, height, matrix.shape[1] // width, width).transpose(1, 2)


def _checksum(part: Tensor) -> int:
    return zlib.crc32(memoryview(part.reshape(-1).view(torch.uint8).numpy()))


def header_of(layout: Mapping[str, Stored]) -> dict[str, str]:
    """The file's metadata."""
    text = json.dumps({name: asdict(stored) for name, stored in layout.items()})
    header = {"format": FORMAT, "version": str(VERSION), "layout": text, "checksum": str(zlib.crc32(text.encode()))}
    return {FORMAT: json.dumps(header)}


def is_sparse(folder: Path | str) -> bool:
    """Whether the weights of a model folder are stored in this format."""
    return (Path(folder) / SPARSE).is_file()


def read_layout(folder: Path | str) -> dict[str, Stored]:
    """How each tensor is stored, from the header alone.

    Raises:
        ValueError: there is no such file, it is damaged, or a newer version wrote it.
    """
    with _opened(Path(folder) / SPARSE) as (_, layout):
        return layout


def blocks_of(folder: Path | str) -> dict[str, tuple[int, int]]:
    """(h, w) of the tensors that are stored in blocks: what `write_sparse` was given and `blocks.sparsify` takes."""
    return {name: s.block for name, s in read_layout(folder).items() if s.kept is not None and s.block != (1, 1)}


def read_tensors(folder: Path | str) -> dict[str, Tensor]:
    """The model's tensors, bit for bit as they were written.

    Raises:
        ValueError: there is no such file, it is truncated or damaged in any byte that matters, promises more than this machine's memory holds, or a
            newer version wrote it. Nothing is returned then.
    """
    path = Path(folder) / SPARSE
    with _opened(path) as (file, layout):
        tensors = {}
        for name, stored in layout.items():
            try:
                tensors[name] = _restore(stored, {suffix: file.get_tensor(name + suffix) for suffix in stored.pieces()})
            except ValueError as error:
                raise _damaged(path, f"{name} {error}") from error
        return tensors


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Stored]]]:
    """A file whose header was checked, and its layout; errors of the safetensors library inside are refusals too."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{path.parent} holds no {SPARSE}")
    try:
        with safe_open(path, framework="pt") as file:
            layout = _layout(path, header_in(file.metadata() or {}))
            _check_pieces(path, file, layout)
            yield file, layout
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error


def _check_pieces(path: Path, file: Any, layout: Mapping[str, Stored]) -> None:
    """Whether the file's tensors are those of its layout, and fit into memory once they are whole: a few bytes may promise terabytes."""
    wanted = {name + suffix: shape for name, stored in layout.items() for suffix, shape in stored.pieces().items()}
    names = set(file.keys())
    if names != wanted.keys():
        raise _damaged(path, f"its tensors are not those of its layout: {min(names ^ wanted.keys())}")
    for name, shape in wanted.items():
        found = tuple(file.get_slice(name).get_shape())
        if shape is not None and found != shape:
            raise _damaged(path, f"{name} has shape {list(found)}, its layout says {list(shape)}")
    size = sum(stored.elements * _itemsize(path, stored) for stored in layout.values())
    if size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise ValueError(f"{path} would fill {size:,} bytes of memory, this machine has {memory:,}")


def _itemsize(path: Path, stored: Stored) -> int:
    dtype = getattr(torch, stored.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise _damaged(path, f"its layout names a dtype {stored.dtype!r}")
    return dtype.itemsize


def _damaged(path: Path, clause: str) -> ValueError:
    return ValueError(f"{path} is damaged: {clause}; write it again, or copy it anew from where it came")


def header_in(metadata: Mapping[str, str]) -> dict[str, str]:
    """What `header_of` wrote; empty where it isn't ours. One entry only: safetensors writes several in an order that changes from run to run, and a
    model's digest would change with it.
    """
    try:
        header = json.loads(metadata.get(FORMAT, "{}"))
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in header.items()} if isinstance(header, dict) else {}


def _layout(path: Path, metadata: Mapping[str, str]) -> dict[str, Stored]:
    if metadata.get("format") != FORMAT or not metadata.get("version", "").isdecimal():
        raise ValueError(f"{path} is no sparse model of distill_system: its header doesn't name the format {FORMAT}")
    if int(metadata["version"]) != VERSION:
        raise ValueError(
            f"{path} has version {metadata['version']} of the format, this program reads {VERSION}: update distill_system"
        )
    text = metadata.get("layout", "")
    if metadata.get("checksum") != str(zlib.crc32(text.encode())):
        raise _damaged(path, "its layout has another checksum")
    try:
        return {name: _stored(value) for name, value in json.loads(text).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"its layout can't be read ({error or type(error).__name__})") from error


def _stored(value: dict[str, Any]) -> Stored:
    """One entry of the layout, checked: a checksum proves that a file is as it was written, not that an honest writer wrote it."""
    stored = Stored(**{**value, "shape": tuple(value["shape"]), "block": tuple(value["block"])})
    numbers = [*stored.shape, *stored.block, stored.low_bits, *stored.checksums.values()]
    numbers += [] if stored.kept is None else [stored.kept]
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(stored.dtype, str):
        raise ValueError(f"{value} holds something that is no whole number >= 0")
    if len(stored.block) != 2 or min(stored.block) < 1 or stored.checksums.keys() != stored.pieces().keys():
        raise ValueError(f"{value} is incomplete")
    if stored.block != (1, 1):
        rows, columns = stored.shape
        if rows % stored.block[0] or columns % stored.block[1]:
            raise ValueError(f"blocks of {stored.block} don't divide {stored.shape}")
    if stored.kept is not None and stored.kept > stored.units:
        raise ValueError(f"{stored.kept} of {stored.units} units")
    return stored


def _restore(stored: Stored, pieces: Mapping[str, Tensor]) -> Tensor:
    """Raises: ValueError: the pieces don't belong together; the message is a clause."""
    for suffix, piece in pieces.items():
        wanted = "uint8" if suffix in (HIGH, LOW) else stored.dtype
        if str(piece.dtype) != f"torch.{wanted}":
            raise ValueError(f"is stored as {piece.dtype}, its layout says {wanted}")
        if _checksum(piece) != stored.checksums[suffix]:
            raise ValueError("has another checksum than when it was written")
    if stored.kept is None:
        return pieces[""].clone()  # not a view of the file, which may be replaced
    values = pieces[VALUES]
    if values.itemsize not in BITS or pieces[HIGH].dim() != 1:
        raise ValueError(f"has {values.dtype} values, or positions of shape {list(pieces[HIGH].shape)}")
    code = gaps.Gaps(stored.low_bits, pieces[HIGH].numpy(), pieces[LOW].numpy())
    positions_K = torch.from_numpy(gaps.decode(code, stored.kept, stored.units))
    bits = torch.zeros(stored.shape, dtype=BITS[values.itemsize])
    if stored.block == (1, 1):
        bits.view(-1)[positions_K] = values.view(bits.dtype)
    else:
        columns = stored.shape[1] // stored.block[1]
        _in_blocks(bits, stored.block)[positions_K // columns, positions_K % columns] = values.view(bits.dtype)
    return bits.view(values.dtype)


def entropy_bytes(elements: int, kept: int, itemsize: int) -> float:
    """The least that `kept` values at random positions can take: their bytes and the positions' entropy, N H(K / N) bits."""
    share = kept / elements
    bits = -sum(p * np.log2(p) for p in (share, 1 - share) if p > 0)
    return kept * itemsize + elements * float(bits) / 8
