"""Writes into the config how large a cut model has become; what the config has no words for goes into `config.reshape`.

What it can say isn't looked up: changed configs are tried, by building an empty model from each and comparing sizes.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from distill_system.models.anatomy import UnknownAnatomy
from distill_system.models.common import quiet, seeded
from distill_system.models.parts import find_parts, is_matrix, sizes
from distill_system.models.reshape import reshaped
from distill_system.models.tokenizers import first_sentence

LAYER_NUMBER = re.compile(r"layer_?(idx|index|id|number)")
INNER = re.compile(
    r"inner|intermediate|ffn|mlp|hidden_dim"
)  # how settings and attributes for a feed-forward's size are called
Differences = dict[tuple[str, str], Any]  # (module, attribute) -> value, or (module, "") -> [outputs, inputs]


def plain_class(model: nn.Module) -> Any:
    """The library's class of a model that may be of a class made by `reshape.reshaped`."""
    return getattr(type(model), "plain", type(model))


def build_empty(cls: Any, config: Any) -> Any:
    """A model without memory, as the config builds it; neither the config nor the random state changes."""
    with quiet(), seeded(0), torch.device("meta"):
        return cls(copy.deepcopy(config))


def _inside(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules inside lists: only what lies in layers is ever cut."""
    lists = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    return ((name, module) for name, module in model.named_modules() if name.startswith(lists))


def differences(model: nn.Module, reference: nn.Module) -> Differences:
    """Sizes of linears and whole-number attributes in which a model's layers differ from those of another with the same modules.

    Raises:
        UnknownAnatomy: a module is missing in one of them.
    """
    mine = dict(_inside(model))
    found: Differences = {}
    for name, other in _inside(reference):
        if name not in mine:
            raise UnknownAnatomy(f"isn't built from its config alone: {name} is missing")
        module = mine.pop(name)
        if is_matrix(other):
            if sizes(module) != sizes(other):
                found[name, ""] = list(sizes(module))
            continue
        for attribute, value in vars(other).items():
            if type(value) is int and vars(module).get(attribute) != value:
                found[name, attribute] = vars(module).get(attribute)
    if mine:
        raise UnknownAnatomy(f"isn't built from its config alone: the config knows no {next(iter(mine))}")
    return found


def as_record(found: Differences) -> dict[str, Any]:
    """Differences as `config.reshape` holds them."""
    attributes: dict[str, dict[str, int]] = {}
    for (name, attribute), value in found.items():
        if attribute:
            attributes.setdefault(name, {})[attribute] = value
    return {
        "modules": {name: value for (name, attribute), value in found.items() if not attribute},
        "attributes": attributes,
    }


def settle(model: Any) -> bool:
    """Brings config and class of a cut model in line with its sizes, in place.

    Returns:
        Whether the config says all, so that plain `from_pretrained` loads the model. Otherwise `config.reshape` has the rest, and the model's class
        is the one that reads it.
    """
    cls, config = plain_class(model), model.config
    vars(config).pop("reshape", None)
    reference = build_empty(cls, config)
    left = differences(model, reference)
    for change in _proposals(model, reference, config) if left else ():
        fewer = _try(model, cls, config, change)
        if fewer is not None and fewer.keys() < left.keys():
            left = fewer
            for name, value in change.items():
                setattr(config, name, value)
    if left:
        config.reshape = as_record(left)
    model.__class__ = reshaped(cls) if left else cls
    return not left


def _proposals(model: nn.Module, reference: nn.Module, config: Any) -> Iterator[dict[str, int]]:
    """Settings that might say how large the feed-forwards and attentions are, where all layers have the same size."""
    try:
        parts, before = find_parts(model), find_parts(reference)
    except UnknownAnatomy:  # layers were cut whose insides aren't known
        return
    attentions = {(a.heads, a.kv_heads, a.head_dim) for layer in parts if (a := layer.attention)}
    if len(attentions) == 1:
        heads, kv_heads, dim = next(iter(attentions))
        change = {"num_attention_heads": heads, "head_dim": dim}
        yield change | ({"num_key_value_heads": kv_heads} if hasattr(config, "num_key_value_heads") else {})
    inner = {layer.ffn.size for layer in parts if layer.ffn}
    old = {layer.ffn.size for layer in before if layer.ffn}
    if len(inner) == 1 == len(old) and inner != old:
        for name, value in list(config.to_dict().items()):
            if (type(value) is int and value in old) or (
                value is None and INNER.search(name)
            ):  # null: as the hidden size says
                yield {name: next(iter(inner))}


def _try(model: nn.Module, cls: Any, config: Any, change: dict[str, int]) -> Differences | None:
    """What would be left to say after a change; None where the config refuses it, or builds other modules."""
    try:
        changed = copy.deepcopy(config)
        for name, value in change.items():
            setattr(changed, name, value)
        # As a reader of config.json would make it: with all its checks.
        return differences(model, build_empty(cls, type(config).from_dict(changed.to_dict())))
    except Exception:  # whatever a config or a model has against these values
        return None


def check_places(model: Any, config: Any, prefix: str, keep: list[int]) -> None:
    """Refuses a choice of layers for models that compute with a layer's place in the stack: moved layers would be other functions.

    Args:
        model: before the cut.
        config: for the layers that stay.
        prefix: of the layers.
        keep: numbers of the layers that stay.

    Raises:
        UnknownAnatomy: a layer would be built otherwise at its new place, or the smaller model can't be built.
    """
    cls, old = plain_class(model), copy.deepcopy(model.config)
    vars(old).pop("reshape", None)
    try:
        before, after = build_empty(cls, old), build_empty(cls, type(config).from_dict(_without_reshape(config)))
    except Exception as error:
        raise UnknownAnatomy(f"can't be cut to layers {keep} ({first_sentence(error)})") from error
    for place, layer in enumerate(keep):
        there = dict(before.get_submodule(f"{prefix}.{layer}").named_modules())
        for name, module in after.get_submodule(f"{prefix}.{place}").named_modules():
            other = there.get(name)
            for attribute, value in _scalars(module).items():
                if other is None or vars(other).get(attribute) != value:
                    text = f"computes with a layer's place in the stack ({name}.{attribute})"
                    raise UnknownAnatomy(f"{text}: layer {layer} would be another one at place {place}")


def _without_reshape(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name != "reshape"}


def _scalars(module: nn.Module) -> dict[str, Any]:
    """Plain attributes, but for the layer's number and for dropout, which may grow with depth."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int | float | str)
        and not LAYER_NUMBER.fullmatch(name)
        and not re.search(r"drop|^p$", name)
    }
