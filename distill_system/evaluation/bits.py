"""How many bits a saved model's weights have: those of a code where they lie on a grid of few levels, else those of their numbers."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from distill_system.evaluation.size import weight_files
from distill_system.models.grids_file import read_grids
from distill_system.models.packed_file import read_stored
from distill_system.models.packed_matrix import PackedMatrix
from distill_system.models.packing import bits_of
from distill_system.models.reading import is_packed, is_sparse
from distill_system.models.sparse_file import read_layout
from distill_system.models.weights import ITEM_BITS, read_header


def bits(folder: Path | str) -> dict[str, Any]:
    """`{"mean": of all weights, "weights": {bits: number of weights}}`, of what is a floating-point number; grids and masks don't count.

    A plain folder whose weights lie on grids (`grids.safetensors`) has the bits that its weights need, though each fills a whole number.

    Raises:
        ValueError: a file is damaged. Refusal: there are no weights.
    """
    counts: Counter[float] = Counter()
    for own, weights in _tensors(Path(folder)):
        counts[own] += weights
    total = sum(counts.values())
    mean = sum(own * weights for own, weights in counts.items()) / total if total else 0.0
    return {"mean": round(mean, 4), "weights": {f"{own:g}": weights for own, weights in sorted(counts.items())}}


def _tensors(folder: Path) -> Iterator[tuple[float, int]]:
    """(bits of a weight, weights) of each tensor of floating-point numbers."""
    if is_packed(folder):
        for stored in read_stored(folder).values():
            if isinstance(stored, PackedMatrix):
                yield bits_of(stored.count), stored.outputs * stored.inputs
            elif stored.is_floating_point():
                yield 8 * stored.itemsize, stored.numel()
        return
    grids = {name: on.grid.count for name, on in read_grids(folder).items()}
    for name, own, elements in _plain(folder):
        if own is not None:
            yield bits_of(grids[name]) if name in grids else own, elements


def _plain(folder: Path) -> Iterator[tuple[str, int | None, int]]:
    """(name, bits of a number, elements) of each tensor; None: its numbers are whole."""
    if is_sparse(folder):
        for name, stored in read_layout(folder).items():
            dtype = getattr(torch, stored.dtype)
            yield name, 8 * dtype.itemsize if dtype.is_floating_point else None, stored.elements
        return
    for path in weight_files(folder):
        for name, entry in read_header(path).items():
            own = ITEM_BITS[entry.dtype] if entry.dtype.startswith(("F", "BF")) else None
            yield name, own, math.prod(entry.shape)
