"""The two halves of a transformer's layer, attention and feed-forward: where their linears are, how many heads and neurons they have.

Found from the module tree by the names that families give to these linears, and checked by their sizes, which are read from the modules and not from
the parameters: under ZeRO-3 these are empty until they are gathered.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from distill_system.models.anatomy import UnknownAnatomy

# Ends of the names of queries, keys, values and the projection of their result, one convention a line.
ATTENTIONS = (
    ("self.query", "self.key", "self.value", "attention.output.dense"),
    ("attention.query", "attention.key", "attention.value", "attention.dense"),
    ("attention.query", "attention.key", "attention.value", "attention.output.dense"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("attn.q", "attn.k", "attn.v", "attn.o"),
)
FUSED = (("c_attn", "attn.c_proj"),)  # queries, keys and values side by side in one
# Ends of the names of a feed-forward's linears from the hidden size, and of the one back to it.
FEED_FORWARDS = (
    (("intermediate.dense",), "output.dense"),
    (("ffn",), "ffn_output"),
    (("lin1",), "lin2"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("up_proj",), "down_proj"),
    (("mlp.c_fc",), "mlp.c_proj"),
    (("fc1",), "fc2"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("mlp.Wi",), "mlp.Wo"),
    (("w1", "w3"), "w2"),
)
HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_attn_heads")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
HEAD_DIMS = ("head_dim", "attention_head_size", "head_size")
TOTALS = ("all_head_size", "split_size")  # heads times head_dim


@dataclass(frozen=True)
class Ffn:
    """A feed-forward.

    Attributes:
        inputs: modules from the hidden size: `up`, or `gate` and `up`.
        output: module back to the hidden size.
        size: neurons.
        halves: whether gate and up lie one after the other in the only input.
    """

    inputs: tuple[str, ...]
    output: str
    size: int
    halves: bool = False


@dataclass(frozen=True)
class Attention:
    """An attention.

    Attributes:
        q, k, v: modules of the three projections; one and the same where they are fused.
        out: module of the projection of the heads' result.
        fused: the module that holds all three side by side, or None.
        heads: of queries.
        kv_heads: of keys and values; each serves `heads / kv_heads` heads of queries that follow one another.
        head_dim: features of a head.
        module: whose whole-number attributes tell how many heads there are.
    """

    q: str
    k: str
    v: str
    out: str
    fused: str | None
    heads: int
    kv_heads: int
    head_dim: int
    module: str


@dataclass(frozen=True)
class LayerParts:
    """One layer; where layers share their weights, once. A part is None if it isn't there or can't be told; `why` says so."""

    prefix: str
    ffn: Ffn | None
    attention: Attention | None
    why: str = ""


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def input_axis(module: nn.Module) -> int:
    """Axis of the input features in the stored weight."""
    return 0 if isinstance(module, Conv1D) else 1


def sizes(module: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a linear, also while its parameters are sharded away."""
    found = (module.nf, module.nx) if isinstance(module, Conv1D) else (module.out_features, module.in_features)
    return int(found[0]), int(found[1])  # type: ignore[arg-type]


def stored_shape(module: nn.Module) -> tuple[int, int]:
    """Shape of the weight as it is stored: `[O, I]`, of a Conv1D `[I, O]`."""
    out, into = sizes(module)
    return (into, out) if input_axis(module) == 0 else (out, into)


def find_parts(model: nn.Module) -> list[LayerParts]:
    """Attention and feed-forward of each layer, in order; layers that share their weights come once.

    Raises:
        UnknownAnatomy: no layer has linears under names that are known here.
    """
    layers: dict[str, nn.Module] = {}
    for name, stack in _stacks(model):
        layers |= {f"{name}.{i}": layer for i, layer in enumerate(stack)}
    # The innermost lists whose elements are layers: ALBERT has a list of groups, each a list of layers.
    found = {prefix: parts for prefix, layer in layers.items() if (parts := _parts(layer, prefix))}
    if beside := _bias_by_position(model, {a.heads for parts in found.values() if (a := parts.attention)}):
        why = f"gives each head a bias by position ({beside})"
        found = {prefix: LayerParts(prefix, parts.ffn, None, why) for prefix, parts in found.items()}
    inner = [parts for prefix, parts in found.items() if not any(other.startswith(f"{prefix}.") for other in found)]
    if not inner:
        raise UnknownAnatomy("has no layers whose attention or feed-forward lie under known names")
    return inner


def matrices(model: nn.Module) -> list[tuple[str, str, int]]:
    """(parameter, module, axis of the input features) of the linears' weights inside the layers, in the model's order.

    Embeddings, norms and the head of the task lie outside, and so do weights that are tied to one of them.

    Raises:
        UnknownAnatomy: there are no such linears.
    """
    stacks = [name for name, _ in _stacks(model)]
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found = [
        (f"{name}.weight", name, input_axis(module))
        for name, module in model.named_modules()
        if is_matrix(module) and name.startswith(tuple(f"{stack}." for stack in stacks))
        if owners.get(id(module.weight), 0) == 1
    ]
    if not found:
        raise UnknownAnatomy("has no linears inside a list of layers")
    return found


def _stacks(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of modules in the body: inside what `base_model_prefix` names, if the model has it."""
    body = getattr(model, "base_model_prefix", "")
    inside = f"{body}." if body and isinstance(getattr(model, body, None), nn.Module) else ""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and name.startswith(inside):
            yield name, module


def _parts(layer: nn.Module, prefix: str) -> LayerParts | None:
    """None if nothing in the module has a known name."""
    linears = {name: module for name, module in layer.named_modules() if name and is_matrix(module)}
    why = []
    attention = ffn = None
    try:
        attention = _attention(layer, linears, prefix)
    except UnknownAnatomy as error:
        why.append(f"{prefix} {error}")
    own = {attention.q, attention.k, attention.v, attention.out} if attention else set()
    rest = {name: module for name, module in linears.items() if f"{prefix}.{name}" not in own}
    try:
        ffn = _feed_forward(rest, prefix)
    except UnknownAnatomy as error:
        why.append(f"{prefix} {error}")
    return LayerParts(prefix, ffn, attention, "; ".join(why)) if attention or ffn or why else None


def _only(linears: dict[str, nn.Module], end: str) -> str | None:
    """The one name that is `end`, or ends with it; a name that is it goes before those that end with it."""
    if end in linears:
        return end
    found = [name for name in linears if name.endswith(f".{end}")]
    return found[0] if len(found) == 1 else None


def _feed_forward(linears: dict[str, nn.Module], prefix: str) -> Ffn | None:
    for ends, last in FEED_FORWARDS:
        inputs, output = [_only(linears, end) for end in ends], _only(linears, last)
        if output is None or None in inputs:
            continue
        size = sizes(linears[output])[1]
        widths = [sizes(linears[name])[0] for name in inputs if name]
        halves = widths == [2 * size]
        if not halves and set(widths) != {size}:
            raise UnknownAnatomy(f"has a feed-forward whose linears don't meet ({widths} and {size} neurons)")
        return Ffn(tuple(f"{prefix}.{name}" for name in inputs), f"{prefix}.{output}", size, halves)
    return None


def _attention(layer: nn.Module, linears: dict[str, nn.Module], prefix: str) -> Attention | None:
    for *ends, last in (*ATTENTIONS, *FUSED):
        inputs = [name for end in ends if (name := _only(linears, end))]
        # `output.dense` of BERT's feed-forward ends like that of its attention: the attention's own lies beside it.
        output = _only(linears, last)
        if output is None or len(inputs) != len(ends):
            continue
        module = inputs[0].rpartition(".")[0]
        q, k, v = inputs if len(inputs) == 3 else inputs * 3
        fused = len(inputs) == 1
        dim = _whole(layer.get_submodule(module), HEAD_DIMS)
        if dim is None:
            raise UnknownAnatomy(f"has an attention that doesn't tell the size of its heads ({', '.join(HEAD_DIMS)})")
        widths = [sizes(linears[name])[0] for name in (q, k, v)]
        if fused:
            widths = [width // 3 for width in widths]
        heads, kv_heads = widths[0] // dim, widths[1] // dim
        if widths != [heads * dim, kv_heads * dim, kv_heads * dim] or sizes(linears[output])[1] != widths[0]:
            raise UnknownAnatomy(f"has an attention whose linears don't meet (widths {widths}, heads of {dim})")
        if not kv_heads or heads % kv_heads:
            raise UnknownAnatomy(f"has {heads} heads of queries, which {kv_heads} heads of keys don't divide")
        _check_beside(layer.get_submodule(module), {n.rpartition(".")[2] for n in (q, k, v, output)}, heads, dim)
        q, k, v, output = (f"{prefix}.{name}" for name in (q, k, v, output))
        return Attention(q, k, v, output, q if fused else None, heads, kv_heads, dim, f"{prefix}.{module}")
    return None


def _bias_by_position(model: nn.Module, heads: set[int]) -> str | None:
    """A table beside the layers with a column for each head, as MPNet's: heads couldn't be cut without it."""
    embeddings = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    return next((n for n, table in embeddings if table.embedding_dim in heads and "bias" in n.rpartition(".")[2]), None)


def _whole(module: Any, names: tuple[str, ...]) -> int | None:
    values = (getattr(module, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)


def _check_beside(attention: nn.Module, projections: set[str], heads: int, dim: int) -> None:
    """Refuses an attention with parameters that belong to heads (sinks, biases by position) or that norm all heads together."""
    for name, parameter in attention.named_parameters():
        module = name.split(".")[0]
        if module in projections or re.fullmatch(r"(layer_?norm|output)", module, re.IGNORECASE):
            continue
        if tuple(getattr(parameter, "ds_shape", parameter.shape)) != (dim,):
            raise UnknownAnatomy(f"has an attention with {name} beside its projections, which its {heads} heads share")
