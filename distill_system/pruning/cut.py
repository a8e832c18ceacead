"""Takes neurons, heads and layers out of a model: the matrices become smaller, and the config says so as far as it can.

What a unit is made of lies in one `Group` per layer, which scores, masks and the cut read alike: a model whose units are masked and one whose units
are cut give the same outputs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill_system.models.anatomy import UnknownAnatomy, cut_config, find_anatomy
from distill_system.models.parts import (
    HEADS,
    KEY_VALUE_HEADS,
    TOTALS,
    LayerParts,
    find_parts,
    input_axis,
    sizes,
    stored_shape,
)
from distill_system.models.resized import INNER, LAYER_NUMBER, check_places, settle
from distill_system.pruning.base import Group, Slice, Surgery

LAYERS = "layers"  # key of the layers that stay in `Surgery.keep`


@dataclass
class CutReport:
    """What a cut did.

    Attributes:
        lines: one for each place, for a person: what, how many of how many, which remain.
        loads_plainly: whether the config can say the result, so that plain `from_pretrained` loads it.
    """

    lines: list[str] = field(default_factory=list)
    loads_plainly: bool = True


@dataclass(frozen=True)
class Source:
    """Where a tensor of the cut model comes from: `before[lines]`, along each axis named."""

    name: str
    shape: tuple[int, ...]
    lines: dict[int, Tensor]

    def take(self, before: Tensor) -> Tensor:
        for axis, lines_n in self.lines.items():
            before = before.index_select(axis, lines_n.to(before.device))
        return before


def unit_groups(model: nn.Module, kind: Literal["neurons", "heads"]) -> list[Group]:
    """One group of units for each layer that has such a part, in the model's order.

    A unit of heads is a head of keys and values with the heads of queries that it serves.

    Raises:
        UnknownAnatomy: no layer has the part, or it can't be told where it is.
    """
    parts = find_parts(model)
    wanted = "feed-forward" if kind == "neurons" else "attention"
    groups = [
        _neurons(model, layer, i) if kind == "neurons" else _heads(model, layer, i)
        for i, layer in enumerate(parts)
        if (layer.ffn if kind == "neurons" else layer.attention)
    ]
    if not groups:
        why = next((f": {layer.why}" for layer in parts if layer.why), "")
        raise UnknownAnatomy(f"has no {wanted} whose linears have known names{why}")
    return groups


def _lines(model: nn.Module, module: str, side: int, first: int, width: int) -> tuple[Slice, tuple[Slice, ...]]:
    """The slice of a linear's weight on its outputs (side 0) or inputs (side 1), and of its bias if that has these lines."""
    linear = model.get_submodule(module)
    into = input_axis(linear)
    weight = Slice(f"{module}.weight", stored_shape(linear), into if side else 1 - into, into, first, width)
    if side or linear.bias is None:
        return weight, ()
    return weight, (Slice(f"{module}.bias", (sizes(linear)[0], 1), 0, 1, first, width),)


def _group(model: nn.Module, name: str, layer: int, units: int, lines: list[tuple[str, int, int, int]]) -> Group:
    """Of (module, side, first line, lines a unit); the module whose inputs are cut is the one that is watched."""
    found = [_lines(model, *line) for line in lines]
    watched = next(module for module, side, *_ in lines if side)
    return Group(
        name,
        layer,
        units,
        tuple(weight for weight, _ in found),
        tuple(bias for _, biases in found for bias in biases),
        watched,
    )


def _neurons(model: nn.Module, layer: LayerParts, number: int) -> Group:
    ffn = layer.ffn
    assert ffn is not None
    inputs = [(name, 0, first, 1) for name in ffn.inputs for first in ([0, ffn.size] if ffn.halves else [0])]
    return _group(model, f"layer {number} neurons", number, ffn.size, [*inputs, (ffn.output, 1, 0, 1)])


def _heads(model: nn.Module, layer: LayerParts, number: int) -> Group:
    part = layer.attention
    assert part is not None
    queries, dim = part.heads // part.kv_heads * part.head_dim, part.head_dim
    starts = [0, part.heads * dim, (part.heads + part.kv_heads) * dim] if part.fused else [0, 0, 0]
    lines = [(part.q, 0, starts[0], queries), (part.k, 0, starts[1], dim), (part.v, 0, starts[2], dim)]
    return _group(model, f"layer {number} heads", number, part.kv_heads, [*lines, (part.out, 1, 0, queries)])


def kept_lines(model: nn.Module, surgery: Surgery) -> dict[str, dict[int, Tensor]]:
    """Lines of each parameter that stay, by parameter and axis, for neurons and heads.

    Raises:
        ValueError: nothing is taken out, a group isn't in the model, all units of one would go, or there is no such unit.
    """
    groups = {group.name: group for group in unit_groups(model, surgery.kind)}  # type: ignore[arg-type]
    if unknown := surgery.keep.keys() - groups.keys():
        raise ValueError(f"no {surgery.kind} to cut in {sorted(unknown)[0]!r}: the model has {', '.join(groups)}")
    masks: dict[tuple[str, int], Tensor] = {}
    for name, keep in surgery.keep.items():
        group = groups[name]
        _check_kept(keep, group.units, f"{name}: ")
        if len(keep) == group.units:
            continue
        gone_U = torch.ones(group.units, dtype=torch.bool)
        gone_U[keep] = False
        for part in (*group.slices, *group.biases):
            mask = masks.setdefault((part.name, part.axis), torch.ones(part.shape[part.axis], dtype=torch.bool))
            mask[part.first : part.first + group.units * part.width] &= ~gone_U.repeat_interleave(part.width)
    if not masks:
        raise ValueError(f"this cut of {surgery.kind} takes nothing out")
    found: dict[str, dict[int, Tensor]] = {}
    for (parameter, axis), mask in masks.items():
        found.setdefault(parameter, {})[axis] = mask.nonzero().flatten()
    return found


def _check_kept(keep: list[int], count: int, where: str) -> None:
    if not keep:
        raise ValueError(f"{where}all {count} would be cut; keep at least one")
    if list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= count:
        raise ValueError(f"{where}{keep} must be ascending numbers from 0 to {count - 1}, each once")


def cut(model: Any, surgery: Surgery) -> CutReport:
    """Takes units out of a transformers model, in place; its config is changed in place too.

    Args:
        model: whole, not sharded; the parameters may be on the meta device. Parameters that change are new objects.
        surgery: which units stay.

    Returns:
        What was taken out, and whether the config can say the result. Where it can't, `config.reshape` records it.

    Raises:
        ValueError: nothing would be taken out, a layer would lose all its units, or the record doesn't fit the model.
        UnknownAnatomy: the model's parts can't be told.
    """
    if surgery.kind == LAYERS:
        return _cut_layers(model, surgery)
    kept = kept_lines(model, surgery)
    parts = find_parts(model)
    groups = unit_groups(model, surgery.kind)  # type: ignore[arg-type]
    report = CutReport(
        [
            f"layer {group.layer}: {group.units - len(keep)} of {group.units} {surgery.kind} removed; {listed(keep)} remain"
            for group in groups
            if len(keep := surgery.keep.get(group.name, range(group.units))) < group.units
        ]
    )
    for name, lines in kept.items():
        _take(model, name, lines)
    for group in groups:
        if group.name in surgery.keep and group.layer is not None:
            count = _count_heads if surgery.kind == "heads" else _count_neurons
            count(model, parts[group.layer], len(surgery.keep[group.name]))
    report.loads_plainly = settle(model)
    return report


def listed(numbers: Any, most: int = 8) -> str:
    """`0 to 3, 5, 7`; of many runs the first, and how many numbers there are."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [
        str(run[0]) if len(run) == 1 else f"{run[0]}{' to ' if len(run) > 2 else ', '}{run[-1]}" for run in runs[:most]
    ]
    return ", ".join(words) + (f", ... ({len(numbers)} in all)" if len(runs) > most else "")


def _take(model: nn.Module, name: str, lines: dict[int, Tensor]) -> None:
    """Cuts a parameter, and masks and scores that lie beside it, and tells its module the new size."""
    prefix, _, own = name.rpartition(".")
    module: Any = model.get_submodule(prefix)
    for other, parameter in list(module.named_parameters(recurse=False)):
        if other == own or other.startswith(f"{own}_"):
            values = parameter.data
            for axis, lines_n in lines.items():
                if other == own or values.shape[axis] > 1:
                    values = values.index_select(axis, lines_n.to(values.device))
            new = nn.Parameter(values, requires_grad=parameter.requires_grad)
            vars(new).update(vars(parameter))  # learning rates and the like that others noted on it
            setattr(module, other, new)
    if own == "weight":
        for axis, lines_n in lines.items():
            inputs = axis == input_axis(module)
            setting = ("in_features", "out_features") if isinstance(module, nn.Linear) else ("nx", "nf")
            setattr(module, setting[0 if inputs else 1], len(lines_n))


def _count_heads(model: nn.Module, layer: LayerParts, kv_heads: int) -> None:
    part = layer.attention
    assert part is not None
    heads = part.heads // part.kv_heads * kv_heads
    module = model.get_submodule(part.module)
    counts = [(HEADS, heads), (KEY_VALUE_HEADS, kv_heads), (TOTALS, heads * part.head_dim)]
    for names, value in counts:
        for name in names:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, value)


def _count_neurons(model: nn.Module, layer: LayerParts, size: int) -> None:
    part = layer.ffn
    assert part is not None
    module = model.get_submodule(part.output.rpartition(".")[0])
    for name, value in list(vars(module).items()):
        if type(value) is int and value == part.size and INNER.search(name):
            setattr(module, name, size)


def _chosen_layers(model: nn.Module, surgery: Surgery) -> tuple[str, list[int], int]:
    anatomy = find_anatomy(model)
    keep = surgery.keep.get(LAYERS)
    if keep is None or len(surgery.keep) != 1:
        raise ValueError(f"a cut of layers keeps {{'{LAYERS}': [...]}}, not {surgery.keep}")
    _check_kept(keep, anatomy.count, "layers: ")
    if len(keep) == anatomy.count:
        raise ValueError("this cut of layers takes nothing out")
    return anatomy.layers, keep, anatomy.count


def _cut_layers(model: Any, surgery: Surgery) -> CutReport:
    prefix, keep, count = _chosen_layers(model, surgery)
    new = cut_config(model.config, keep)
    check_places(model, new, prefix, keep)
    stack = model.get_submodule(prefix)
    layers = [stack[i] for i in keep]
    stack._modules.clear()
    stack.extend(layers)
    for i, (before, layer) in enumerate(zip(keep, layers, strict=True)):
        for module in layer.modules():  # the place in the cache for keys and values
            for name, value in list(vars(module).items()):
                if LAYER_NUMBER.fullmatch(name) and value == before:
                    setattr(module, name, i)
    for name, value in vars(new).items():
        if name in vars(model.config) and vars(model.config)[name] != value:
            setattr(model.config, name, value)
    removed = [i for i in range(count) if i not in keep]
    line = f"layers: {len(removed)} of {count} removed ({listed(removed)}); {listed(keep)} remain"
    return CutReport([line], settle(model))


def sources(model: nn.Module, surgery: Surgery) -> Callable[[str], Source | None]:
    """Where the tensors of a cut model come from.

    Args:
        model: before the cut.
        surgery: the cut.

    Returns:
        For the name of a parameter or buffer after the cut: its name and shape before it, and the lines that stay. None: not in the model.

    Raises:
        ValueError: as `cut`.
    """
    shapes = {
        name: tuple(getattr(tensor, "ds_shape", tensor.shape))
        for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    }
    if surgery.kind == LAYERS:
        prefix, keep, _ = _chosen_layers(model, surgery)
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)(\..*)", re.DOTALL)

        def of_layers(name: str) -> Source | None:
            match = pattern.fullmatch(name)
            if match:
                if int(match[1]) >= len(keep):
                    return None
                name = f"{prefix}.{keep[int(match[1])]}{match[2]}"
            return Source(name, shapes[name], {}) if name in shapes else None

        return of_layers
    kept = kept_lines(model, surgery)
    return lambda name: Source(name, shapes[name], kept.get(name, {})) if name in shapes else None
