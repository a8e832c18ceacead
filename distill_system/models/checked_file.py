"""A safetensors file with one JSON entry of metadata that says what it is, and a checksum of every piece: read whole and unchanged, or not at all.

The entry holds `format`, `version`, `layout` (what the format has to say of its tensors), `checksums` (crc32 of the pieces, in the order of their names)
and `checksum`: of layout, checksums, and the names, dtypes and shapes in the file's own header. One entry only: safetensors writes several in an order
that changes from run to run, and a model's digest would change with it.

The file is mapped, as `from_pretrained` does it, and pieces are views of it: a page is read once, and processes with the same model share it. So a file
that is in use may be replaced by another (by renaming, as all writers here do), but not be written into.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from distill_system.files import TEMPORARY
from distill_system.models.streaming import DTYPES
from distill_system.models.weights import Entry, Unsound, read_head

LARGEST = 2**62  # elements, so that no product of sides runs over
NAMES = {dtype: name for name, dtype in DTYPES.items()}  # as the file's header calls them


@dataclass(frozen=True)
class Kind:
    """What a file is: the name of its format, the version that is written and read, and a word for people."""

    format: str
    version: int
    word: str


@dataclass(frozen=True)
class Head:
    """A file's header, checked: its layout, its pieces, and the checksum of each."""

    layout: dict[str, Any]
    pieces: dict[str, Entry]
    checksums: dict[str, int]

    def nbytes(self, name: str) -> int:
        return self.pieces[name].end - self.pieces[name].begin


def write_checked(path: Path, kind: Kind, pieces: Mapping[str, Tensor], layout: Mapping[str, Any]) -> None:
    """Writes the file under a temporary name, and renames it when it is whole on the disk.

    Raises:
        ValueError: there is nothing to write, or a piece has a dtype that can't be.
    """
    from safetensors.torch import save_file

    if not pieces:
        raise ValueError(f"a {kind.word} without tensors can't be written")
    strange = [name for name, piece in pieces.items() if piece.dtype not in NAMES]
    if strange:
        raise ValueError(f"{strange[0]} can't be stored: {pieces[strange[0]].dtype} has no name in safetensors files")
    layout = dict(sorted(layout.items()))  # whatever order a model's shards come in, the file is the same
    checksums = {name: checksum(piece) for name, piece in pieces.items()}
    described = {name: (NAMES[piece.dtype], tuple(piece.shape)) for name, piece in pieces.items()}
    header = {
        "format": kind.format,
        "version": kind.version,
        "checksum": _checksum_of_head(layout, described, checksums),
        "checksums": [checksums[name] for name in sorted(checksums)],
        "layout": layout,
    }
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        save_file(dict(pieces), temporary, metadata={kind.format: _dumps(header)})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_checked_head(path: Path, kind: Kind) -> Head:
    """What a file says it holds; its pieces aren't read.

    Raises:
        ValueError: there is no such file, its header is damaged, or a newer version wrote it.
    """
    with _open(path) as file:
        return _head(path, file, kind)


def read_checked(path: Path, kind: Kind) -> tuple[Head, dict[str, Tensor]]:
    """The header, and every piece of the file.

    Raises:
        ValueError: as `read_checked_head`, and where a piece isn't as it was written, or the file is larger than this machine's memory.
    """
    with _open(path) as file:
        head = _head(path, file, kind)
        check_memory(path, size := os.fstat(file.fileno()).st_size)
    whole = _mapped(path, size)
    view, pieces = _bytes_of(whole), {}
    for name, entry in head.pieces.items():
        if zlib.crc32(view[entry.begin : entry.end]) != head.checksums[name]:
            raise damaged(path, f"{name} has another checksum than when it was written")
        pieces[name] = _piece(whole, entry)
    return head, pieces


def check_memory(path: Path, size: int) -> None:
    if size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise ValueError(f"{path} would fill {size:,} bytes of memory, this machine has {memory:,}")


def damaged(path: Path, clause: str) -> ValueError:
    return ValueError(f"{path} is damaged: {clause}; write it again, or copy it anew from where it came")


def checksum(piece: Tensor) -> int:
    return zlib.crc32(_bytes_of(piece))


def _bytes_of(piece: Tensor) -> memoryview:
    return memoryview(piece.reshape(-1).view(torch.uint8).numpy())


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _checksum_of_head(
    layout: Any, described: Mapping[str, tuple[str, tuple[int, ...]]], checksums: Mapping[str, int]
) -> int:
    rows = [[name, described[name][0], list(described[name][1]), checksums[name]] for name in sorted(described)]
    return zlib.crc32(_dumps([layout, rows]).encode())


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no {path.name}")
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror})") from error


def _head(path: Path, file: BinaryIO, kind: Kind) -> Head:
    try:
        entries, metadata = read_head(file)
    except Unsound as error:
        raise damaged(path, f"it {error}") from error
    try:
        header = json.loads(metadata.get(kind.format, "{}"))
    except (ValueError, RecursionError):
        header = {}
    if not isinstance(header, dict) or header.get("format") != kind.format or type(header.get("version")) is not int:
        raise ValueError(
            f"{path} is no {kind.word} of distill_system: its header doesn't name the format {kind.format}"
        )
    if header["version"] != kind.version:
        raise ValueError(
            f"{path} has version {header['version']} of the format, this program reads {kind.version}: update distill_system"
        )
    layout, values = header.get("layout"), header.get("checksums")
    if not isinstance(layout, dict) or not isinstance(values, list) or len(values) != len(entries):
        raise damaged(path, "its header doesn't tell its layout, or not the checksums of its pieces")
    checksums = dict(zip(sorted(entries), values, strict=True))
    described = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
    if header.get("checksum") != _checksum_of_head(layout, described, checksums):
        raise damaged(path, "its header has another checksum")
    for name, entry in entries.items():
        if entry.dtype not in DTYPES or math.prod(side for side in entry.shape if side) > LARGEST:
            raise damaged(path, f"{name} is {entry.dtype} of shape {list(entry.shape)}, which no tensor can be")
    return Head(layout, entries, checksums)


def _mapped(path: Path, size: int) -> Tensor:
    """The bytes of a file."""
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8, device="cpu")
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} can't be read ({error})") from error


def _piece(whole: Tensor, entry: Entry) -> Tensor:
    """A view of a file's bytes, of the piece's dtype; a copy where they don't lie as that needs."""
    dtype = DTYPES[entry.dtype]
    part = whole[entry.begin : entry.end]
    return (part if entry.begin % dtype.itemsize == 0 else part.clone()).view(dtype).view(entry.shape)
