"""A quantized model's linears as tensors of torchao, in `torchao.safetensors`: with our codes and scales, so that their values are ours to the bit.

- 8 bits with one zero in the middle, per row or tensor: `Int8Tensor` without activations, whose products differ from ours by the order of rounding.
- Whatever else `export.integers` tells: `IntxUnpackedToInt8Tensor`, of 4 or 8 bits, by groups and with zeros of their own. It gives the whole matrix its
  values for each product, and holds a byte for each weight, also at 4 bits: torchao's half bytes for CPUs (`Int4OpaqueTensor`) are none of those that
  its support of safetensors knows, and the others need other devices.

Embeddings and Conv1D keep their floats: torchao has no product for the one, and would give a whole table its values at each look-up.
The file is of torchao's own support of safetensors, a prototype; no pickle is in it.

Shapes: O outputs, I inputs of a matrix.
"""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill_system.export.dense import load, named_tensors, saved_class
from distill_system.export.integers import Integers, integers_of, lines_of
from distill_system.export.packed import copy_rest
from distill_system.files import sync_folder
from distill_system.models.common import quiet
from distill_system.models.grids_file import GRIDS, read_grids
from distill_system.models.reading import folder_config, is_packed, round_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "torchao.safetensors"


def missing_packages() -> list[str]:
    """What this module needs and isn't installed."""
    return [name for name in ("torchao",) if importlib.util.find_spec(name) is None]


def write_torchao(source: Path, target: Path) -> list[str]:
    """Writes a folder that `read_torchao` reads, out of a plain (or sparse) one with grids. Put the whole artifact into `files.folder_atomic`.

    Args:
        source: a model folder with `grids.safetensors`; isn't changed.
        target: made if it isn't there. Config, tokenizer and whatever else `source` holds is copied; passport and card aren't.

    Returns:
        What became codes, and what didn't and why: a line each.

    Raises:
        ValueError: the source has no grids, weights that aren't on them, none that torchao can express, or damaged files.
        RuntimeError: the file doesn't give the same values again.
    """
    if is_packed(source):
        raise ValueError(f"{source} is packed; take the model it was packed from")
    grids = read_grids(source)
    if not grids:
        raise ValueError(f"{source} has no {GRIDS}: its weights lie on no grids; take the model of a quantize phase")
    try:
        model = load(source)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model)}
    matrices, floats = integers_of(tensors, grids)
    holders = _holders(model)
    for name in list(matrices):
        if others := sorted({type(module).__name__ for module in holders[name]} - {"Linear"}):
            floats[name] = f"belongs to {' and '.join(others)}, where torchao only has products of linears"
            del matrices[name]
    if not matrices:
        reasons = "; ".join(lines_of((), floats)[1:])
        raise ValueError(f"no matrix of {source} can be a tensor of torchao ({reasons}); take format=packed")
    target.mkdir(parents=True, exist_ok=True)
    _save(target / FILE, tensors | {name: _tensor(matrix) for name, matrix in matrices.items()})
    _compare(target, tensors)
    copy_rest(source, target)
    shutil.copyfile(source / "config.json", target / "config.json")  # last: a folder without it is no model
    sync_folder(target)
    size, whole = (target / FILE).stat().st_size, sum(tensor.nbytes for tensor in tensors.values())
    told = f"{size:,} bytes of weights, {size / max(1, whole):.3f} of the {whole:,} that they take as floats"
    return [told, *lines_of(matrices, floats)]


def read_torchao(folder: Path | str) -> "PreTrainedModel":
    """The model of such a folder, in eval mode and without gradients, its linears with weights of torchao.

    Raises:
        ValueError: there is no such file, it is damaged, or another version of torchao wrote it.
        RuntimeError: a weight of the model isn't in it, or has another shape.
    """
    from transformers import GenerationConfig

    folder = Path(folder)
    stored = _read(folder)
    config = folder_config(folder, local_files_only=True)
    floats = {name: _values(tensor) for name, tensor in stored.items()}
    with quiet():
        kind = saved_class(folder, config)
        model, report = kind.from_pretrained(None, state_dict=floats, config=config, output_loading_info=True)
    for fault in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report[fault]:
            raise RuntimeError(
                f"{folder} is no whole model: {fault.replace('_', ' ')} {sorted(map(str, report[fault]))[:5]}"
            )
    holders = _holders(model)
    for name, tensor in stored.items():
        if type(tensor) is not Tensor:
            weight = nn.Parameter(tensor, requires_grad=False)
            for module in holders[name]:
                module.weight = weight
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    round_inputs(model, config)
    return model.requires_grad_(False).eval()  # type: ignore[no-any-return]


def _holders(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Which modules hold a parameter, by each of its names: several where it is tied."""
    by_id: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            by_id.setdefault(id(parameter), []).append(module)
    return {name: by_id[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def _tensor(matrix: Integers) -> Any:
    from torchao.quantization import Int8Tensor, IntxUnpackedToInt8Tensor

    outputs, inputs = matrix.code_OI.shape
    block = [outputs // matrix.parts[0], inputs // matrix.parts[1]]
    scale = matrix.scale.contiguous()
    if matrix.width == 8 and matrix.parts[1] == 1:
        signed_OI = matrix.code_OI.short() - matrix.zero.short()
        if int(signed_OI.min()) >= -128 and int(signed_OI.max()) <= 127:  # its products know no zero
            return Int8Tensor(signed_OI.to(torch.int8), scale, block, torch.float32)
    middle = 1 << (matrix.width - 1)
    signed_OI, zero = ((part.short() - middle).to(torch.int8) for part in (matrix.code_OI, matrix.zero))
    kind = torch.int4 if matrix.width == 4 else torch.int8
    return IntxUnpackedToInt8Tensor(signed_OI, scale, zero, kind, block, torch.float32, None)


def _values(tensor: Any) -> Tensor:
    return tensor if type(tensor) is Tensor else tensor.dequantize()


def _save(path: Path, tensors: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    pieces, metadata = flatten_tensor_state_dict(dict(tensors))
    save_file({name: piece.contiguous() for name, piece in pieces.items()}, path, metadata=metadata)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _read(folder: Path) -> dict[str, Any]:
    """Raises: ValueError: the file is none of torchao's, or not whole."""
    from safetensors import safe_open

    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {FILE}")
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    try:
        with safe_open(path, framework="pt") as opened:
            pieces = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            stored, left = unflatten_tensor_state_dict(pieces, opened.metadata() or {})
            names = set(opened.metadata()) - {"tensor_names", "format"}
    except Exception as error:  # what a prototype raises at a file that it doesn't know is written nowhere
        raise ValueError(f"{path} can't be read ({error})") from error
    if left or names != stored.keys():
        raise ValueError(f"{path} isn't whole: {sorted(left.keys() | (names - stored.keys()))[:5]}")
    return dict(stored)


def _compare(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises: RuntimeError: the file doesn't hold these values."""
    again = _read(folder)
    for name, tensor in tensors.items():
        if not torch.equal(_values(again[name]), tensor):
            raise RuntimeError(f"{folder} does not give {name} back after reloading")
