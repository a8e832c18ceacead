"""ONNX files whose quantized weights lie in them as codes: one byte a weight, half a byte where a grid has at most 16 levels.

A DequantizeLinear gives each matrix its values when the file runs: `(code - zero) * scale`, as `Grid.decode` does, to the bit. Any runtime that knows
opset 21 (2024) reads such a file.

Between it and the product stands a Reshape that changes nothing. Without it onnxruntime merges both into a kernel of its own that rounds the *inputs* to
8 bits as well: fast, and 0.6 % off (of the largest output of 1024 x 1024 weights, where 3e-7 are what remains with it). So the file is small and exact,
not fast: one row takes 2.7 times as long as with floats at 8 bits a row, 17 times at 4 bits, because the values are made anew in each run.

What `export.integers` can't tell so keeps its floats.

Shapes: O outputs, I inputs of a matrix.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill_system.export.dense import load
from distill_system.export.integers import Integers, integers_of
from distill_system.export.onnx import ONE_FILE, Exported, export_onnx
from distill_system.models.grid import OnGrid
from distill_system.models.packing import pack_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPSET = 21  # the first with four bits and with groups


@dataclass(frozen=True)
class Quantized(Exported):
    """What was written; `codes` and `floats` name the quantized tensors that lie in it as the one or the other, these with the reason."""

    codes: list[str]
    floats: dict[str, str]


def export_qdq(
    model: "PreTrainedModel | Path",
    grids: Mapping[str, OnGrid],
    path: Path,
    example: Mapping[str, Tensor],
    tolerance: float = 1e-4,
) -> Quantized:
    """`onnx.export_onnx`, with codes in place of those weights that lie on grids.

    Args:
        model: a plain one whose weights lie on the grids, or its folder; float32.
        grids: by the names of its tensors.
        path: of the file.
        example: of the inputs.
        tolerance: of outputs, as in `export_onnx`; compared after the weights were replaced.

    Raises:
        ValueError: as `export_onnx`; or a tensor isn't on its grid, or there is none.
    """
    if isinstance(model, Path):
        model = load(model)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items() if name in grids}
    matrices, floats = integers_of(weights, grids)
    by_digest: dict[str, tuple[str, bool]] = {}
    digests: dict[str, set[str]] = {}
    for name in matrices:
        stored_OI = weights[name] if grids[name].input_axis == 1 else weights[name].t()
        for turned in (True, False):  # where both digests are the same, the matrix as it is
            digest = _digest(stored_OI.t() if turned else stored_OI)
            by_digest[digest] = (name, turned)
            digests.setdefault(name, set()).add(digest)
    found: set[str] = set()

    def rewrite(written: Path) -> None:
        found.update(_replace(written, by_digest, matrices))

    exported = export_onnx(model, path, example, tolerance, rewrite)
    codes = sorted(name for name in matrices if digests[name] & found)
    floats |= dict.fromkeys(sorted(matrices.keys() - set(codes)), "isn't found in the exported graph")
    return Quantized(exported.files, exported.inputs, exported.difference, codes, floats)


def _digest(matrix: Tensor) -> str:
    """Of values and shape: the exporter turns matrices round and gives them other names."""
    return f"{list(matrix.shape)}{hashlib.sha256(matrix.contiguous().numpy().tobytes()).hexdigest()}"


def _replace(path: Path, by_digest: Mapping[str, tuple[str, bool]], matrices: Mapping[str, Integers]) -> set[str]:
    """Rewrites the file; the digests of what was found in it and replaced."""
    import onnx
    from onnx import numpy_helper, version_converter

    file = onnx.load(str(path))
    kept, nodes, replaced = [], [], set()
    for initializer in file.graph.initializer:
        digest = ""
        if initializer.data_type == onnx.TensorProto.FLOAT and len(initializer.dims) == 2:
            digest = _digest(torch.from_numpy(numpy_helper.to_array(initializer).copy()))
        if digest not in by_digest:
            kept.append(initializer)
            continue
        name, turned = by_digest[digest]
        replaced.add(digest)
        tensors, made = _nodes(initializer.name, matrices[name], turned)
        kept += tensors
        nodes += made
    del file.graph.initializer[:]
    file.graph.initializer.extend(kept)
    rest = list(file.graph.node)
    del file.graph.node[:]
    file.graph.node.extend(nodes + rest)
    file = version_converter.convert_version(file, OPSET)
    for old in path.parent.iterdir():
        old.unlink()
    large = sum(len(tensor.raw_data) for tensor in file.graph.initializer) > ONE_FILE
    more: dict[str, Any] = {"save_as_external_data": True, "location": f"{path.name}.data"} if large else {}
    onnx.save(file, str(path), **more)
    for written in path.parent.iterdir():
        with open(written, "rb+") as opened:
            os.fsync(opened.fileno())
    return replaced


def _nodes(name: str, matrix: Integers, turned: bool) -> tuple[list[Any], list[Any]]:
    """The initializers of a matrix, and the nodes that give `name` its values."""
    from onnx import TensorProto, helper

    kind = TensorProto.UINT4 if matrix.width == 4 else TensorProto.UINT8
    outputs, in_row = matrix.parts
    shape, scale, zero = list(matrix.code_OI.shape), matrix.scale, matrix.zero
    attributes = {"axis": 1, "block_size": shape[1] // in_row}
    if in_row == 1:
        attributes = {} if outputs == 1 else {"axis": 0}
        scale, zero = (part.reshape([] if outputs == 1 else [-1]) for part in (scale, zero))

    def stored(part: str, kind: int, tensor: Tensor, data: Tensor) -> Any:
        raw = data.contiguous().numpy().tobytes()
        return helper.make_tensor(f"{name}_{part}", kind, list(tensor.shape), raw, raw=True)

    def integers(part: str, tensor: Tensor) -> Any:
        data = tensor.reshape(1, -1)
        # Of four bits, the first lies in the lower half of a byte.
        return stored(part, kind, tensor, pack_rows(data, 16) if matrix.width == 4 else data)

    size = torch.tensor(shape)
    tensors = [
        integers("codes", matrix.code_OI),
        stored("scale", TensorProto.FLOAT, scale, scale),
        integers("zero", zero),
    ]
    values, kept = f"{name}_values", f"{name}_kept"
    nodes = [
        helper.make_node("DequantizeLinear", [tensor.name for tensor in tensors], [values], **attributes),
        helper.make_node("Reshape", [values, f"{name}_shape"], [kept if turned else name]),
    ]
    if turned:
        nodes.append(helper.make_node("Transpose", [kept], [name], perm=[1, 0]))
    return [*tensors, stored("shape", TensorProto.INT64, size, size)], nodes
