"""Pieces of a model's tensors straight from its safetensors files, so that a rank of a sharded model loads its own piece and nothing more."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from distill_system.models.weights import read_header, weight_map

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class Location:
    """Where one tensor lies: its file, the byte it begins at, its shape and dtype."""

    file: Path
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return prod(self.shape)


def tensor_locations(folder: Path) -> dict[str, Location]:
    """Every tensor of a model folder by its name in the files, from headers and index alone.

    Raises:
        Unsound: a file is damaged (`distill_system.models.weights`).
    """
    names = weight_map(folder)
    headers = {file: read_header(folder / file) for file in sorted(set(names.values()))}
    found = {name: (folder / file, headers[file][name]) for name, file in names.items()}
    return {
        name: Location(file, entry.begin, entry.shape, DTYPES[entry.dtype]) for name, (file, entry) in found.items()
    }


def read_flat_range(location: Location, start: int, stop: int) -> torch.Tensor:
    """Elements `start` to `stop` of the flattened tensor, as a new 1-D tensor; what lies behind its end is left out.

    A safetensors file holds each tensor in row-major order without gaps, so a flat range is one range of bytes: only these are read.
    """
    assert min(start, stop) >= 0, (start, stop)
    stop = min(stop, location.numel)
    if start >= stop:
        return torch.empty(0, dtype=location.dtype)
    piece = torch.empty(stop - start, dtype=location.dtype)
    with open(location.file, "rb", buffering=0) as file:
        file.seek(location.begin + start * location.dtype.itemsize)
        view = memoryview(piece.view(torch.uint8).numpy())
        while len(view):  # one call reads at most 2 GiB
            count = file.readinto(view)
            if not count:
                raise EOFError(
                    f"{location.file} ends inside a tensor: it was changed or truncated after its header was read"
                )
            view = view[count:]
    return piece


def read_tensor(location: Location) -> torch.Tensor:
    """The whole tensor in its own shape."""
    return read_flat_range(location, 0, location.numel).view(location.shape)
