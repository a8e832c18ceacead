"""Reads a checkpoint: any run of elements of any tensor, from whichever ranks' files hold them; and proves first that the files are whole."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from distill_system import distributed
from distill_system.files import digest_value, read_json
from distill_system.training.engine import Piece

VERSION = 1


class Damaged(RuntimeError):
    """A checkpoint that can't be used: truncated, changed, of another phase or another version."""


def checksum(path: Path) -> int:
    """CRC-32 of a file: it is to find accidents, and costs little beside the writing."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


@dataclass(frozen=True)
class Origin:
    """Where a tensor of a model that was cut lay before the cut: `after == before[lines]`, axis by axis."""

    name: str
    lines: Mapping[int, Tensor]  # by axis; one that isn't there stayed whole


class Store:
    """Reads a checkpoint: any run of elements of any tensor, from whichever files hold them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = self._verified_state()
        self.places: dict[tuple[str, str], list[tuple[int, int, str, str]]] = {}
        self._files: dict[str, Any] = {}
        for file in self.state["files"]:
            handle = self._files[file] = safe_open(folder / file, framework="pt")
            for key in handle.keys():  # noqa: SIM118 (a safetensors handle isn't a dict)
                name, part, offset = key.rsplit("|", 2)
                count = handle.get_slice(key).get_shape()[0]
                self.places.setdefault((name, part), []).append((int(offset), count, file, key))

    def _verified_state(self) -> dict[str, Any]:
        try:
            state = read_json(self.folder / "state.json")
            if state["version"] != VERSION:
                raise Damaged(f"has version {state['version']}, this program reads {VERSION}")
            if state.pop("digest") != digest_value(state):
                raise Damaged("has a state.json that was changed")
            for number, (name, entry) in enumerate(state["files"].items()):
                path = self.folder / name
                if not path.is_file():
                    raise Damaged(f"lacks {name}")
                # Ranks share the reading, and then what they found (`opened`).
                mine = number % distributed.world() == distributed.rank()
                if path.stat().st_size != entry["bytes"] or (mine and checksum(path) != entry["crc32"]):
                    raise Damaged(f"has a {name} that is truncated or was changed")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"has a state.json that can't be read ({error})") from error
        return state

    def fill(self, piece: Piece) -> None:
        """Copies the piece's elements out of the files, into the piece's own memory.

        Raises:
            Damaged: elements are missing.
        """
        start, stop = piece.offset, piece.offset + piece.values.numel()
        filled = 0
        for offset, count, file, key in self.places.get((piece.name, piece.part), []):
            low, high = max(start, offset), min(stop, offset + count)
            if low < high:
                piece.values[low - start : high - start].copy_(
                    self._files[file].get_slice(key)[low - offset : high - offset]
                )
                filled += high - low
        if filled != piece.values.numel():
            raise Damaged(f"holds {filled} of {piece.values.numel()} elements of {piece.name} ({piece.part})")

    def whole(self, name: str, part: str) -> Tensor:
        """One tensor of the state, put together from all files."""
        shape = self.state["shapes"][name]
        places = self.places.get((name, part), [])
        if not places:
            raise Damaged(f"holds no {name} ({part})")
        dtype = self._files[places[0][2]].get_slice(places[0][3])[:0].dtype
        values = torch.empty(math.prod(shape), dtype=dtype)
        self.fill(Piece(name, part, 0, values, replicated=True))
        return values.view(shape)

    def fill_from(self, piece: Piece, origin: Origin) -> None:
        """The piece's elements from a tensor that had more lines."""
        tensor = self.whole(origin.name, piece.part)
        for axis, lines in origin.lines.items():
            tensor = tensor.index_select(axis, lines)
        piece.values.copy_(tensor.reshape(-1)[piece.offset : piece.offset + piece.values.numel()])
