"""Builds a model around the packed matrices of a folder: `from_pretrained` reads the whole tensors, and never makes room for the packed ones.

While the library builds the model, on the meta device, each module of a packed matrix gives its place to a stand-in; afterwards that gives it to a packed
module. Matrices of other modules, such as tables whose own code shifts positions, get their values here.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill_system.models.packed_file import matrices_of, read_stored
from distill_system.models.packed_matrix import PackedMatrix
from distill_system.models.packed_modules import PackedEmbedding, PackedLinear


class StandIn(nn.Module):
    """Holds a module's place, and its bias, while the library loads what isn't packed."""

    def __init__(self, module: nn.Module, matrix: PackedMatrix) -> None:
        super().__init__()
        self.matrix, self.embedding = matrix, isinstance(module, nn.Embedding)
        self.padding_idx = getattr(module, "padding_idx", None)
        self.register_parameter("bias", module._parameters.get("bias"))
        weight = module._parameters["weight"]
        weight._is_hf_initialized = True  # type: ignore[union-attr]  # initialising code that asks for it leaves it alone
        self.__dict__["weight"] = weight

    def packed(self, dtype: torch.dtype) -> nn.Module:
        made = (
            PackedEmbedding(self.matrix, self.padding_idx) if self.embedding else PackedLinear(self.matrix, self.bias)
        )
        return (made if self.matrix.dtype == dtype else made.to(dtype)).eval()


def load_packed(cls: Any, folder: Path | str, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """A model with packed modules, in eval mode and without gradients, and the report of what was missing or too much.

    Args:
        cls: the model's class.
        folder: with packed weights.
        options: of `from_pretrained`.

    Raises:
        ValueError: the file is damaged, or a matrix has another shape than the config says. Whatever else `from_pretrained` raises.
    """
    stored = read_stored(folder)
    matrices = matrices_of(stored)
    whole: dict[str, Any] = {name: piece for name, piece in stored.items() if isinstance(piece, Tensor)}
    left: set[str] = set()
    standing_in: dict[str, StandIn] = {}

    def vacate(model: Any) -> None:
        held = _held(model)
        for name, matrix in matrices.items():
            known = _known_as(model, name, held)
            if known is None:
                left.add(name)
            elif (wanted := tuple(held[known].parameter.shape)) != matrix.shape:
                raise ValueError(f"{folder} has {name} of shape {list(matrix.shape)}, its config says {list(wanted)}")
            elif _input_axis(held[known].module) not in (None, matrix.on_grid.input_axis):
                raise ValueError(
                    f"{folder} has {name} the other way round: its inputs lie on another axis in the model"
                )
            elif places := _plain_places(model, known, matrix, held):
                standing_in.update(places)
            else:
                whole[name] = matrix.dense()  # the library comes to read this after it has built the model
        _put(model, standing_in)

    model, report = _vacated(cls).from_pretrained(None, vacate, state_dict=whole, **options)
    model.__class__ = cls
    dtype = model.dtype
    _put(model, {place: module.packed(dtype) for place, module in standing_in.items()})
    vars(model.config).pop("packed", None)  # saved by the library, it is a plain model
    return model.requires_grad_(False), {**report, "unexpected_keys": {*report["unexpected_keys"], *left}}


@functools.cache
def _vacated(cls: Any) -> Any:
    """The class of a model that is handed what makes room in it, as soon as it is built."""
    from transformers.initialization import no_init_weights

    def __init__(self: Any, config: Any, vacate: Callable[[Any], None]) -> None:
        with no_init_weights():  # none will be used
            cls.__init__(self, config)
        vacate(self)

    return type(cls.__name__, (cls,), {"__init__": __init__, "__module__": cls.__module__})


class Held(NamedTuple):
    """A parameter, and where it is."""

    place: str
    module: nn.Module
    parameter: nn.Parameter


def _held(model: nn.Module) -> dict[str, Held]:
    """All parameters by each of their names."""
    held = {}
    for place, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                held[f"{place}.{name}" if place else name] = Held(place, module, parameter)
    return held


def _known_as(model: Any, name: str, held: Mapping[str, Held]) -> str | None:
    """The name of a parameter in a model that may have a head that the stored one hasn't, or the other way round."""
    prefix = f"{model.base_model_prefix}."
    return next((known for known in (name, prefix + name, name.removeprefix(prefix)) if known in held), None)


def _put(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Modules in the place of others."""
    for place, module in modules.items():
        parent, _, name = place.rpartition(".")
        model.get_submodule(parent)._modules[name] = module


def _plain_places(model: Any, name: str, matrix: PackedMatrix, held: Mapping[str, Held]) -> dict[str, StandIn]:
    """What stands in for the modules that share a weight; empty where one of them computes in its own way. The library need not tie them any more."""
    tied: dict[str, str] = model.all_tied_weights_keys
    source = tied.get(name, name)
    names = {source, *(target for target, other in tied.items() if other == source)}
    shared = {id(held[one].parameter) for one in names}
    sharing = {place: module for place, module, parameter in held.values() if id(parameter) in shared}
    if not all(_is_plain(module) for module in sharing.values()):
        return {}
    model.all_tied_weights_keys = {target: other for target, other in tied.items() if other != source}
    return {place: StandIn(module, matrix) for place, module in sharing.items()}


def _input_axis(module: nn.Module) -> int | None:
    """Of a module's weight; None where this can't be told."""
    from transformers.pytorch_utils import Conv1D

    return 0 if isinstance(module, Conv1D) else 1 if isinstance(module, nn.Linear | nn.Embedding) else None


def _is_plain(module: nn.Module) -> bool:
    """Whether a packed module does the same as a module whose weight it has: a subclass may have a forward of its own."""
    from transformers.pytorch_utils import Conv1D

    forward = type(module).forward
    return forward in (nn.Linear.forward, Conv1D.forward) or (
        forward is nn.Embedding.forward and getattr(module, "max_norm", None) is None
    )
