"""Reads what a quantize phase recorded: its tensors by kind of matrix, what its packed file spends its bytes on.

Records may lack any optional key (of an older version, of a phase that stopped), so nothing here takes one for granted.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from distill_system.tracking.figures import is_number
from distill_system.tracking.pruning_parts import Record, list_of, short_stems, stem_of

KEY = "quantization"  # of a phase in the manifest
# What a packed file's bytes are spent on, in the order in which they are shown.
SPENT = {
    "codes": "codes",
    "bitmaps": "masks",
    "scales": "scales",
    "whole": "what isn’t quantized",
    "header": "header",
}


@dataclass
class Alike:
    """Matrices of one kind (queries of all layers, say) that are quantized alike."""

    stem: str
    kind: str
    quantizer: str
    levels: int | None
    bits: float | None
    layers: list[int] = field(default_factory=list)
    count: int = 0
    weights: int = 0
    scales: int = 0
    zeros: list[tuple[float, int]] = field(default_factory=list)  # (share, weights) of each


def tensors_of(record: Record) -> list[Record]:
    return [tensor for tensor in list_of(record, "tensors") if isinstance(tensor, dict)]


def layer_in(name: str) -> int | None:
    """The first number in a parameter's name.

    >>> layer_in("bert.encoder.layer.3.attention.self.query.weight"), layer_in("bert.embeddings.word_embeddings.weight")
    (3, None)
    """
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def elements_of(tensor: Record) -> int:
    shape = list_of(tensor, "shape")
    if not shape or not all(map(is_number, shape)):
        return 0
    product = 1
    for side in shape:
        product *= int(side)
    return product


def alike(record: Record) -> list[Alike]:
    """Tensors by kind of matrix, in the order in which they come, under the shortest names that still differ."""
    found: dict[tuple[Any, ...], Alike] = {}
    for tensor in tensors_of(record):
        name = str(tensor.get("name") or "")
        layer = layer_in(name)
        levels, bits = (tensor.get(key) if is_number(tensor.get(key)) else None for key in ("levels", "bits"))
        kind, quantizer = str(tensor.get("kind") or "linear"), str(tensor.get("quantizer") or "")
        stem = stem_of(name, layer)
        one = found.setdefault(
            (stem, kind, quantizer, levels, bits),
            Alike(stem, kind, quantizer, None if levels is None else int(levels), bits),
        )
        one.count += 1
        one.layers += [] if layer is None else [layer]
        size = elements_of(tensor)
        one.weights += size
        groups, zeros = tensor.get("groups"), tensor.get("zeros")
        one.scales += int(groups) if is_number(groups) else 0
        one.zeros += [(float(zeros), size)] if is_number(zeros) else []
    names = short_stems(list(dict.fromkeys(one.stem for one in found.values())))
    for one in found.values():
        one.stem = names[one.stem]
    return list(found.values())


def share_of_zeros(rows: list[Alike]) -> float | None:
    """Over all their weights; None where it isn't known."""
    known = [pair for row in rows for pair in row.zeros]
    total = sum(size for _, size in known)
    return sum(share * size for share, size in known) / total if total else None


def packed_of(record: Record) -> Record:
    packed = record.get("packed")
    return packed if isinstance(packed, dict) else {}


def packed_bytes(record: Any) -> int | None:
    """Of a phase's record; None where nothing was packed."""
    size = packed_of(record).get("bytes") if isinstance(record, dict) else None
    return int(size) if is_number(size) and size > 0 else None


def spent(record: Record) -> dict[str, int]:
    """What the packed file's bytes are spent on, in words; what is nothing is left out."""
    packed = packed_of(record)
    return {words: int(packed[key]) for key, words in SPENT.items() if is_number(packed.get(key)) and packed[key] > 0}
