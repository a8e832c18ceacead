"""ONNX files of our models, for any number of rows and tokens, compared with torch in onnxruntime before they are handed over.

Shapes: B rows, T tokens, C classes or words.
"""

import contextlib
import copy
import importlib.util
import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill_system.export.dense import load
from distill_system.files import TEMPORARY, sync_folder
from distill_system.models.tokenizers import first_sentence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
OUTPUT = "logits"
ONE_FILE = 1_500_000_000  # bytes of weights; a file of ONNX itself can hold 2 GB, larger weights lie beside it


@dataclass(frozen=True)
class Exported:
    """What was written, and how near to torch it is."""

    files: list[Path]
    inputs: list[str]
    difference: float  # the largest, of logits at real positions


def missing_packages() -> list[str]:
    """What `export_onnx` needs and isn't installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


class Logits(nn.Module):
    """A model as a function of tensors alone, in the order of `names`; a language model without its cache."""

    def __init__(self, model: "PreTrainedModel", names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def forward(self, *tensors: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, tensors, strict=True)), **self.options).logits
        return logits


def export_onnx(
    model: "PreTrainedModel",
    path: Path,
    batch: Mapping[str, Tensor],
    tolerance: float = 1e-4,
    rewrite: Callable[[Path], None] | None = None,
) -> Exported:
    """Writes `path` (and `path.data` beside it, where the weights are too large for one file), if onnxruntime gives torch's outputs.

    Compared are the batch itself, its first row alone and shortened, all rows twice, and the batch with its last token as padding: what the file takes
    then is what it was promised to take.

    Args:
        model: a classifier of texts or pictures, or a causal language model, on the CPU; left as it is. Or the folder that holds one, in any form that
            `dense.load` reads. Other floats than float32 are exported as that.
        path: of the file, in a folder that exists.
        batch: an example of the inputs on the CPU (`input_ids [B, T]` and `attention_mask [B, T]`, or `pixel_values [B, channels, height, width]`);
            keys that the model doesn't take are left out.
        tolerance: largest absolute difference, relative to the largest logit where that is above 1.
        rewrite: changes the file before its outputs are compared.

    Raises:
        ValueError: torch can't export the model, or the outputs differ; nothing is written.
    """
    if isinstance(model, Path):
        model = load(model)
    parameters = inspect.signature(model.forward).parameters
    inputs = {name: batch[name] for name in INPUTS if name in batch and name in parameters}
    if not inputs:
        raise ValueError(
            f"{type(model).__name__} takes none of {sorted(batch)}; a batch for it holds {' or '.join(INPUTS)}"
        )
    wrapped = Logits(model if model.dtype == torch.float32 else copy.deepcopy(model).float(), list(inputs))
    training = model.training
    wrapped.eval()
    try:
        with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{path.name}-", dir=path.parent) as folder:
            written = Path(folder) / path.name
            _write(wrapped, inputs, written)
            if rewrite is not None:
                rewrite(written)
            difference = _compare(wrapped, inputs, written, tolerance)
            files = [found.rename(path.parent / found.name) for found in sorted(written.parent.iterdir())]
    finally:
        model.train(training)
    sync_folder(path.parent)
    return Exported(files, list(inputs), difference)


def _write(wrapped: Logits, inputs: Mapping[str, Tensor], path: Path) -> None:
    sizes = sum(parameter.nbytes for parameter in wrapped.parameters())
    example = tuple(_at_least_two(tensor) for tensor in inputs.values())
    names = ("batch", "length")
    dynamic = tuple({axis: names[axis] for axis in range(1 if name == "pixel_values" else 2)} for name in inputs)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                wrapped,
                example,
                input_names=list(inputs),
                output_names=[OUTPUT],
                dynamic_shapes=(dynamic,),  # of the one parameter `*tensors`
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # the lines of source that it came from: larger than a small model, with this machine's paths
        program.save(str(path), external_data=sizes > ONE_FILE)
    except Exception as error:  # the exporter has a class for each of its stages
        raise ValueError(
            f"{type(wrapped.model).__name__} can't be exported to ONNX ({first_sentence(error)})"
        ) from error
    for found in path.parent.iterdir():
        with open(found, "rb+") as file:
            os.fsync(file.fileno())


def _at_least_two(tensor: Tensor) -> Tensor:
    """Rows, and tokens, repeated where there is one: an axis of length 1 in the example is taken for a constant."""
    for axis in range(min(tensor.dim(), 2)):
        if tensor.shape[axis] == 1 and (axis == 0 or tensor.dim() == 2):
            tensor = torch.cat([tensor, tensor], axis)
    return tensor


def _variants(inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The inputs, and others of other lengths and paddings; no row is ever padding alone, of which no model says anything that means something."""
    yield dict(inputs)
    yield {name: tensor.repeat(2, *[1] * (tensor.dim() - 1)) for name, tensor in inputs.items()}
    mask_BT = inputs.get("attention_mask")
    if "input_ids" not in inputs:
        yield {name: tensor[:1] for name, tensor in inputs.items()}
        return
    width = inputs["input_ids"].shape[1]
    real_T = torch.arange(width) if mask_BT is None else mask_BT[0].nonzero().view(-1)
    yield {name: tensor[:1, real_T[: max(1, len(real_T) // 2)]] for name, tensor in inputs.items()}
    if mask_BT is not None:
        padded_BT = mask_BT.clone()
        padded_BT[mask_BT.sum(1) > 1, -1] = 0
        yield dict(inputs) | {"attention_mask": padded_BT}


def _compare(wrapped: Logits, inputs: Mapping[str, Tensor], path: Path, tolerance: float) -> float:
    """Raises: ValueError: they differ by more than the tolerance."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {node.name for node in session.get_inputs()}  # an input that the model ignores is left out of the file
    largest = 0.0
    for variant in _variants(inputs):
        with torch.no_grad():
            expected = wrapped(*variant.values())
        feeds = {name: tensor.numpy() for name, tensor in variant.items() if name in taken}
        found = torch.from_numpy(session.run([OUTPUT], feeds)[0])
        if found.shape != expected.shape:
            raise ValueError(f"onnxruntime gives logits of shape {list(found.shape)}, torch {list(expected.shape)}")
        difference = (found - expected).abs()
        if difference.dim() == 3 and "attention_mask" in variant:
            difference = difference[variant["attention_mask"].bool()]
        worst = float(difference.max()) if difference.numel() else 0.0
        if not worst <= tolerance * max(1.0, float(expected.abs().max())):  # also true for nan
            shape = list(next(iter(variant.values())).shape)
            raise ValueError(
                f"onnxruntime does not give torch's outputs of {type(wrapped.model).__name__} for inputs of shape {shape}: "
                f"they differ by up to {worst:.3g}, allowed is {tolerance:g}"
            )
        largest = max(largest, worst)
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on operators of libraries that aren't installed."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
