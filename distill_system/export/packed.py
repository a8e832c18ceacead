"""Packs a model folder whose weights lie on grids: the same model in as few bytes as its bits promise (`models.packed_file`).

Plain `from_pretrained` finds no weights in such a folder and says so; `distill_system.load` reads it.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distill_system.artifacts import artifact_files
from distill_system.files import read_json, sync_folder, write_json
from distill_system.models.grid import OnGrid
from distill_system.models.grids_file import read_grids
from distill_system.models.packed_file import (
    VERSION,
    bytes_by_kind,
    matrices_of,
    read_stored,
    read_tensors,
    write_packed,
)
from distill_system.models.reading import is_packed, is_sparse
from distill_system.models.weights import GRIDS, PACKED, weight_map

__all__ = ["PackReport", "grids_of", "is_packed", "pack", "read_tensors", "stored_tensors"]

WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


@dataclass(frozen=True)
class PackReport:
    """What `pack` wrote.

    Attributes:
        files: with weights.
        bytes: theirs, by `os.stat`.
        by_kind: what they are spent on: codes, bitmaps, scales (grids), whole (tensors that aren't quantized) and header; together `bytes`.
        parameters: of the model.
        negative_zeros: weights that were -0.0 on a grid that gives 0.0: the sign is not kept.
    """

    files: list[Path]
    bytes: int
    by_kind: dict[str, int]
    parameters: int
    negative_zeros: int

    @property
    def ratio(self) -> float:
        """To the bytes of the same parameters in float32."""
        return self.bytes / (4 * self.parameters)


def pack(source: Path, target: Path) -> PackReport:
    """Writes a packed folder out of a plain (or sparse) one with grids. Put the whole artifact into `files.folder_atomic`.

    Args:
        source: a model folder with `grids.safetensors`; isn't changed.
        target: a folder without weights, made if it isn't there. Config, tokenizer and whatever else `source` holds is copied; passport and card aren't,
            they speak of other files.

    Raises:
        ValueError: the source has no grids, weights that aren't on them, or damaged files; the target holds weights.
    """
    if is_packed(source):
        raise ValueError(f"{source} is packed already")
    grids = read_grids(source)
    if not grids:
        raise ValueError(f"{source} has no {GRIDS}: its weights lie on no grids; take the model of a quantize phase")
    if taken := sorted(path.name for path in target.glob("*.safetensors") if path.name != PACKED):
        raise ValueError(f"{target} holds {taken[0]}, beside which a packed model must not lie; name another folder")
    target.mkdir(parents=True, exist_ok=True)
    count = Counter(grids)
    file = write_packed(target, count(stored_tensors(source)), grids)
    copy_rest(source, target)
    config = read_json(source / "config.json")
    write_json(target / "config.json", config | {"packed": VERSION})  # last: a folder without it is no model
    sync_folder(target)
    return PackReport([file], file.stat().st_size, bytes_by_kind(target), count.parameters, count.negative_zeros)


class Counter:
    """Counts what goes by."""

    def __init__(self, grids: dict[str, OnGrid]) -> None:
        self.grids, self.parameters, self.negative_zeros = grids, 0, 0

    def __call__(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            if tensor.is_floating_point():
                self.parameters += math.prod(tensor.shape)
            if name in self.grids:
                self.negative_zeros += int(((tensor == 0) & torch.signbit(tensor)).sum())
            yield name, tensor


def copy_rest(source: Path, target: Path) -> None:
    """All files of a model folder but its weights, its config.json, and what speaks of its files."""
    for path in artifact_files(source):
        place = path.relative_to(source)
        if not path.name.endswith(WEIGHTS) and str(place) != "config.json":
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / place)


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a folder's weight files, in whatever form; of plain files one tensor at a time.

    Raises:
        ValueError: they are damaged.
    """
    from safetensors import SafetensorError, safe_open

    if is_sparse(folder):
        from distill_system.models.sparse_file import read_tensors as read_sparse

        yield from read_sparse(folder).items()
        return
    if is_packed(folder):
        yield from read_tensors(folder).items()
        return
    by_file: dict[str, list[str]] = {}
    for name, file in weight_map(folder).items():
        by_file.setdefault(file, []).append(name)
    for file, names in by_file.items():
        try:
            with safe_open(folder / file, framework="pt") as opened:
                for name in names:
                    yield name, opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{folder / file} can't be read ({error})") from error


def grids_of(folder: Path) -> dict[str, OnGrid]:
    """The grids of a model folder in any form; empty where it isn't quantized.

    Raises:
        ValueError: their file is damaged.
    """
    if is_packed(folder):
        return {name: matrix.on_grid for name, matrix in matrices_of(read_stored(folder)).items()}
    return read_grids(folder)
