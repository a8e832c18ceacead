"""A quantized model in the bytes that its bits promise: `packed.safetensors`, read bit for bit or not at all.

It holds, for each tensor NAME of the model, either NAME itself (norms, biases, whatever isn't quantized), or

- `NAME:codes`: the codes of the matrix as `[O, I]`, packed row by row as `models.packing` says, `[O, B]`; and
- `NAME:scale` and `NAME:zero`, or `NAME:levels`: its grid.

Where most weights have one and the same code (zeros of a pruned matrix), `NAME:kept` is a bitmap of the others, row by row, the lowest bit first, and
`NAME:codes` is one row of the codes of those; this is written if it takes a tenth less than all codes would.

The layout tells of each quantized tensor what `models.grids_file` tells, and `inputs`; with a bitmap also `outputs` and `common`, the code that isn't
stored. The file has not the name that plain `from_pretrained` looks for: that finds no weights and says so.

Shapes: O outputs, I inputs, B bytes of a row; N = O * I; K kept weights; G groups.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_system.models.checked_file import (
    Head,
    Kind,
    check_memory,
    damaged,
    read_checked,
    read_checked_head,
    write_checked,
)
from distill_system.models.grid import OnGrid
from distill_system.models.grids_file import check_groups, grid_tensors, layout_of, on_grid, parts_of
from distill_system.models.packed_matrix import PackedMatrix
from distill_system.models.packing import largest_code, pack_rows, row_bytes, unpack_rows
from distill_system.models.weights import PACKED

VERSION = 1
KIND = Kind("distill_packed", VERSION, "packed model")
LEAST_SAVING = 0.1  # of the bytes of all codes: reading a bitmap takes longer
CODES, KEPT = ":codes", ":kept"
OWN = ("inputs", "outputs", "common")  # of the layout, beside what tells the grid
KINDS = {"codes": "codes", "kept": "bitmaps", "scale": "scales", "zero": "scales", "levels": "scales"}


@dataclass(frozen=True)
class Stored:
    """How one quantized matrix lies in the file."""

    grid: dict[str, Any]  # what `grids_file` tells
    inputs: int
    outputs: int = 0  # told only beside a bitmap
    common: int | None = None  # the code of weights that aren't stored; None: all are

    @staticmethod
    def of(value: Any) -> "Stored":
        """One entry of the layout, checked.

        Raises:
            ValueError: it can't be; the message is a clause.
        """
        own = {key: value[key] for key in OWN if key in value} if isinstance(value, dict) else {}
        least = {"inputs": 1, "outputs": 1, "common": 0}
        if own.keys() not in ({"inputs"}, set(OWN)) or any(type(n) is not int or n < least[k] for k, n in own.items()):
            raise ValueError(f"has an impossible layout: {value}")
        return Stored({key: part for key, part in value.items() if key not in OWN}, **own)

    @property
    def pieces(self) -> tuple[str, ...]:
        return (CODES,) if self.common is None else (CODES, KEPT)

    @property
    def spread_bytes(self) -> int:
        """What a bitmap's matrix fills once all its codes are written out; the others fill no more than the file does."""
        return self.outputs * self.inputs


def write_packed(folder: Path, tensors: Iterable[tuple[str, Tensor]], grids: Mapping[str, OnGrid]) -> Path:
    """Writes the file into a folder that is there. The packed model is held in memory until it is written, and one tensor of `tensors` at a time.

    Args:
        folder: of the artifact.
        tensors: (name, tensor), each name once; tied tensors once.
        grids: of those that are packed, by name.

    Raises:
        ValueError: a name comes twice or holds a colon, a grid's tensor never comes or has values that aren't on the grid, or there are no tensors.
    """
    layout: dict[str, Any] = {}
    pieces: dict[str, Tensor] = {}
    seen: set[str] = set()
    for name, tensor in tensors:
        if name in seen:
            raise ValueError(f"{name} was handed over twice")
        if ":" in name:
            raise ValueError(f"{name} can't be stored: a colon separates a tensor's name from its parts")
        seen.add(name)
        if name in grids:
            layout[name], parts = compress(name, tensor, grids[name])
            pieces |= parts
        else:
            pieces[name] = tensor.detach().cpu().contiguous().clone()  # a view would keep, and share, its buffer
    if grids.keys() - seen:
        raise ValueError(f"{min(grids.keys() - seen)} has a grid, but the model has no such tensor")
    write_checked(folder / PACKED, KIND, pieces, layout)
    return folder / PACKED


def compress(name: str, weight: Tensor, on: OnGrid) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the layout says of a matrix, and its pieces.

    Raises:
        ValueError: it has values that aren't on its grid, or another shape or type than the grid's.
    """
    weight = weight.detach().cpu()
    try:
        if weight.dim() != 2:
            raise ValueError(f"has shape {list(weight.shape)}, and only matrices lie on grids")
        check_groups(on, *(weight.shape if on.input_axis == 1 else weight.shape[::-1]))
        code_OI = on.codes(weight)
        if (dtype := next(iter(on.grid.tensors().values())).dtype) != weight.dtype:
            raise ValueError(f"is {weight.dtype}, but its grid is {dtype}")
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    count, told = on.grid.count, layout_of(on) | {"inputs": code_OI.shape[1]}
    pieces = grid_tensors(name, on.grid)
    common = int(torch.bincount(code_OI.reshape(-1).int(), minlength=count).argmax())
    kept_N = code_OI.reshape(-1) != common
    kept = int(kept_N.sum())
    whole = len(code_OI) * row_bytes(code_OI.shape[1], count)
    if (kept_N.numel() + 7) // 8 + row_bytes(kept, count) > (1 - LEAST_SAVING) * whole:
        return told, pieces | {name + CODES: pack_rows(code_OI, count)}
    pieces[name + KEPT] = torch.from_numpy(np.packbits(kept_N.numpy(), bitorder="little"))
    pieces[name + CODES] = pack_rows(code_OI.reshape(1, -1)[:, kept_N], count).view(-1)
    return told | {"outputs": len(code_OI), "common": common}, pieces


def read_packed_head(folder: Path | str) -> Head:
    """What the file's header says, after its own checks; pieces aren't read.

    Raises:
        ValueError: there is no such file, its header is damaged, or a newer version wrote it.
    """
    return read_checked_head(Path(folder) / PACKED, KIND)


def bytes_by_kind(folder: Path | str) -> dict[str, int]:
    """What the file's bytes are spent on; together they are the file's size."""
    path = Path(folder) / PACKED
    head = read_checked_head(path, KIND)
    sizes = dict.fromkeys(["codes", "bitmaps", "scales", "whole", "header"], 0)
    for name in head.pieces:
        sizes[KINDS.get(name.partition(":")[2], "whole")] += head.nbytes(name)
    return sizes | {"header": path.stat().st_size - sum(sizes.values())}


def read_stored(folder: Path | str) -> dict[str, Tensor | PackedMatrix]:
    """The model's tensors: whole ones as they are, quantized ones as packed rows, after a check of every byte and of everything that bytes can say.

    Raises:
        ValueError: there is no such file, it is truncated or damaged in any byte that matters, promises more than this machine's memory holds, says what
            can't be, or a newer version wrote it. Nothing is returned then.
    """
    path = Path(folder) / PACKED
    head, pieces = read_checked(path, KIND)
    stored: dict[str, Tensor | PackedMatrix] = {}
    layout = {}
    for name, value in head.layout.items():
        try:
            layout[name] = Stored.of(value)
        except ValueError as error:
            raise damaged(path, f"{name} {error}") from error
    check_memory(path, sum(entry.spread_bytes for entry in layout.values()))
    for name, entry in layout.items():
        if name in pieces or not all(name + suffix in pieces for suffix in entry.pieces):
            raise damaged(path, f"its tensors are not those of its layout: {name}")
        grid = {part: pieces.pop(f"{name}:{part}") for part in parts_of(name, pieces)}
        try:
            stored[name] = _matrix(entry, grid, {suffix: pieces.pop(name + suffix) for suffix in entry.pieces})
        except ValueError as error:
            raise damaged(path, f"{name} {error}") from error
    if strange := [name for name in pieces if ":" in name]:
        raise damaged(path, f"its tensors are not those of its layout: {min(strange)}")
    return stored | pieces


def _matrix(entry: Stored, grid: dict[str, Tensor], pieces: dict[str, Tensor]) -> PackedMatrix:
    """Raises: ValueError: the pieces don't belong together; the message is a clause."""
    on = on_grid(entry.grid, grid)
    codes = pieces[CODES] if entry.common is None else _spread(entry, on.grid.count, pieces[CODES], pieces[KEPT])
    check_groups(on, len(codes) if codes.dim() else 0, entry.inputs)
    matrix = PackedMatrix(codes, entry.inputs, on)
    matrix.check()
    return matrix


def _spread(entry: Stored, count: int, codes: Tensor, bitmap: Tensor) -> Tensor:
    """Packed rows `[O, B]` of a bitmap and the codes of what it keeps."""
    number = entry.outputs * entry.inputs
    if bitmap.dtype != torch.uint8 or tuple(bitmap.shape) != ((number + 7) // 8,):
        raise ValueError(f"has a bitmap of {list(bitmap.shape)} bytes for {entry.outputs} rows of {entry.inputs}")
    kept_N = torch.from_numpy(np.unpackbits(bitmap.numpy(), count=number, bitorder="little").view(bool))
    kept = int(kept_N.sum())
    if codes.dtype != torch.uint8 or tuple(codes.shape) != (row_bytes(kept, count),):
        raise ValueError(f"has {list(codes.shape)} bytes of codes, and its bitmap keeps {kept} weights")
    if max(entry.common or 0, largest_code(codes.view(1, -1), count)) >= count:
        raise ValueError(f"has codes beyond its {count} levels")
    code_N = torch.full((number,), entry.common or 0, dtype=torch.uint8, device="cpu")
    code_N[kept_N] = unpack_rows(codes.view(1, -1), kept, count).view(-1)
    return pack_rows(code_N.view(entry.outputs, entry.inputs), count)


def read_tensors(folder: Path | str) -> dict[str, Tensor]:
    """The model's tensors with their values, bit for bit as they were packed.

    Raises:
        ValueError: as `read_stored`.
    """
    stored = read_stored(folder)
    size = sum(matrix.outputs * matrix.inputs * matrix.dtype.itemsize for matrix in matrices_of(stored).values())
    check_memory(Path(folder) / PACKED, size)
    return {name: piece.dense() if isinstance(piece, PackedMatrix) else piece for name, piece in stored.items()}


def matrices_of(stored: Mapping[str, Tensor | PackedMatrix]) -> dict[str, PackedMatrix]:
    return {name: piece for name, piece in stored.items() if isinstance(piece, PackedMatrix)}
