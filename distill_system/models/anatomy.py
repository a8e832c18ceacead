"""Where a transformer keeps its layers, its embeddings and its head: found from the module tree, not from a list of architectures."""

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")

LAYER_LISTS = re.compile(
    r"layer|_types$|_pattern$|^attention_window$|^num_(attention|key_value|query)_heads$|^ffn_multipliers$"
)
LAYER_INDICES = ("mlp_only_layers", "cross_attention_layers", "kv_share_layers", "full_attn_idxs", "attn_layer_indices")


class UnknownAnatomy(ValueError):
    """A model whose layers can't be told apart; the message says why, as a clause that goes on after the model's name."""


@dataclass(frozen=True)
class Anatomy:
    """Names inside a model's module tree.

    Attributes:
        layers: the ModuleList of transformer layers (`bert.encoder.layer`).
        count: how many layers it holds.
        embeddings: the modules in front of the layers (`bert.embeddings`; `transformer.wte`, `transformer.wpe`).
        head: the modules behind the body (`classifier`, `lm_head`), those without parameters left out.
    """

    layers: str
    count: int
    embeddings: tuple[str, ...]
    head: tuple[str, ...]


def find_anatomy(model: nn.Module) -> Anatomy:
    """Finds layers, embeddings and head of a Hugging Face model.

    Raises:
        UnknownAnatomy: no list of layers, several of them (encoder and decoder), or layers that share one set of weights.
    """
    layers, count = _find_layers(model)
    body = getattr(model, "base_model_prefix", "")
    inside = f"{body}." if body and hasattr(model, body) else ""
    head = tuple(
        name
        for name, child in model.named_children()
        if inside and name != body and any(True for _ in child.parameters())
    )
    return Anatomy(layers, count, _find_embeddings(model, layers), head)


def _find_layers(model: nn.Module) -> tuple[str, int]:
    config = getattr(model, "config", None)
    expected = getattr(config, "num_hidden_layers", None)
    if hasattr(config, "depths"):
        raise UnknownAnatomy("has stages of different widths and no single layers to choose from")
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) > 0
    }
    outer = {name: m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    found = [name for name, module in outer.items() if expected is None or len(module) == expected]
    if len(found) == 1:
        return found[0], len(outer[found[0]])
    sizes = ", ".join(f"{name} ({len(module)})" for name, module in outer.items()) or "none"
    if found:
        raise UnknownAnatomy(f"has several stacks of layers ({sizes}); only models with one can be cut")
    if expected is not None and any(len(module) < expected for module in outer.values()):
        raise UnknownAnatomy(
            f"shares weights between its {expected} layers ({sizes}); there are no single layers to choose from"
        )
    raise UnknownAnatomy(f"has no list of {expected or 'its'} layers (lists: {sizes})")


def _find_embeddings(model: nn.Module, layers: str) -> tuple[str, ...]:
    """The module that embeds the input; where the tables lie beside the layers (GPT-2), each of them."""
    get = getattr(model, "get_input_embeddings", None)
    try:
        table = get() if get else None
    except NotImplementedError:
        table = None
    if table is None:
        return ()
    name = next((name for name, module in model.named_modules() if module is table), "")
    parent = name.rpartition(".")[0]
    if not layers.startswith(f"{parent}." if parent else ""):
        top = _common_parent(parent, layers)
        return (".".join(parent.split(".")[: len(top) + 1]),)
    children = model.get_submodule(parent).named_children()
    return tuple(
        f"{parent}.{child}" if parent else child for child, module in children if isinstance(module, nn.Embedding)
    )


def _common_parent(one: str, other: str) -> list[str]:
    common = []
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        common.append(a)
    return common


def parameters_under(model: nn.Module, prefixes: Iterable[str]) -> list[str]:
    """Names of the parameters that lie in the modules `prefixes`."""
    starts = tuple(f"{prefix}." for prefix in prefixes)
    return [name for name, _ in model.named_parameters(remove_duplicate=False) if name.startswith(starts)]


def even_layers(source: int, wanted: int) -> list[int]:
    """`wanted` of `source` layers, evenly spread: the i-th is round((i + 0.5) * source / wanted - 0.5), halves rounded up (2 of 6: 1 and 4)."""
    assert 1 <= wanted <= source, (source, wanted)
    return [((2 * i + 1) * source // wanted) // 2 for i in range(wanted)]


def cut_config(config: Any, layers: list[int]) -> Any:
    """A copy of a config for the chosen layers: their number, and every per-layer list in it."""
    source = config.num_hidden_layers
    new = copy.deepcopy(config)
    for name, value in list(vars(config).items()):
        if not isinstance(value, list | tuple):
            continue
        if name in LAYER_INDICES:
            setattr(new, name, [layers.index(i) for i in value if i in layers])
        elif len(value) == source and LAYER_LISTS.search(name):
            setattr(new, name, type(value)(value[i] for i in layers))
    new.num_hidden_layers = len(layers)
    return new


def cut_record(record: dict[str, Any] | None, prefix: str, layers: list[int]) -> dict[str, Any] | None:
    """`config.reshape` of a model that keeps only the chosen layers of `prefix`; see `cut_state`."""
    return {part: cut_state(names, prefix, layers) for part, names in record.items()} if record else None


def cut_state(state: dict[str, T], prefix: str, layers: list[int]) -> dict[str, T]:
    """The state dict of a model that keeps only the chosen layers of `prefix`, renumbered in the given order."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.(.*)", re.DOTALL)
    new: dict[str, T] = {}
    for name, tensor in state.items():
        match = pattern.fullmatch(name)
        if match is None:
            new[name] = tensor
            continue
        for position, layer in enumerate(layers):
            if layer == int(match[1]):
                new[f"{prefix}.{position}.{match[2]}"] = tensor
    return new
