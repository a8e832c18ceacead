"""Sizes between a teacher and its student: planned in equal ratios of parameters, depth first; and whether given ones stand in order.

With n assistants between a teacher of P_t parameters and a student of P_s, the i-th is to have

    P_i = P_t^(1 - i/(n+1)) * P_s^(i/(n+1))

The sizes that can be had lie on one path: the student's recipe with more and more layers up to the teacher's number of them, then at that depth with
more and more heads (which stay as wide as they are), its feed-forward blocks in proportion. Of this path the n sizes are taken that fall strictly and
whose logarithms lie nearest to the targets' by the sum of squares.

Teacher assistants: Mirzadeh et al. 2020, https://arxiv.org/abs/1902.03393. Differs from the paper in that sizes are counted in parameters.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill_system.errors import refuse
from distill_system.models.anatomy import UnknownAnatomy, cut_config, even_layers
from distill_system.models.common import auto_class, quiet, resolve_labels, set_labels
from distill_system.models.from_config import FromConfig
from distill_system.models.from_layers import FromLayers
from distill_system.models.own import register
from distill_system.models.reading import folder_config, from_config
from distill_system.models.weights import number_of_layers
from distill_system.phases.base import build_student
from distill_system.phases.context import Context
from distill_system.phases.steps import planned

INNER = (
    "intermediate_size",
    "n_inner",
    "hidden_dim",
    "ffn_dim",
)  # width of feed-forward blocks, as architectures name it
MOST_WIDTHS = 64  # that are looked at; of more, every second, third, ...


@dataclass(frozen=True)
class Size:
    """A recipe with what its model will have."""

    recipe: Any
    parameters: int
    layers: int | None
    width: int | None

    def __str__(self) -> str:
        plural = "s" if self.layers != 1 else ""
        shape = f" ({self.layers} layer{plural} of width {self.width})" if self.layers and self.width else ""
        return f"{self.parameters:,} parameters{shape}"


def plan(student: Any, teacher: Path, count: int, context: Context) -> tuple[dict[str, Size], list[float]]:
    """Assistants from the largest to the smallest by the names of their steps, and the numbers of parameters that were wished for.

    Args:
        student: its recipe.
        teacher: folder of its model.
        count: of assistants.
        context: of the phase.

    Raises:
        Refusal: there are fewer sizes between the two.
    """
    above, below = size_of_folder(teacher, context), size_of(student, context)
    key = f"phases.{context.name}"
    if below.parameters >= above.parameters:
        text = f"has {below}, the teacher {above}: nothing lies between; take a smaller student"
        raise refuse(f"{key}.model", text)
    targets = [
        math.exp(math.log(above.parameters) + (i + 1) / (count + 1) * math.log(below.parameters / above.parameters))
        for i in range(count)
    ]
    between = [size for size in path(student, above, context) if below.parameters < size.parameters < above.parameters]
    between.sort(key=lambda size: -size.parameters)
    if len(between) < count:
        fix = f"nearest: {len(between)}" if between else "name assistants with +models@" + f"{key}.assistants.a=..."
        room = f"{len(between) or 'no'} size{'s' if len(between) != 1 else ''}"
        text = f"is {count}, but the student's recipe has {room} between its {below} and the teacher's {above}"
        raise refuse(f"{key}.count", f"{text}; {fix}")
    chosen = choose([size.parameters for size in between], targets)
    return dict(zip(planned(count), (between[i] for i in chosen), strict=True)), targets


def choose(sizes: Sequence[int], targets: Sequence[float]) -> list[int]:
    """Places in `sizes` (falling), one after the other, whose logarithms lie nearest to those of `targets` (falling)."""
    cheapest: list[tuple[float, list[int]]] = [(0.0, [])] * (len(sizes) + 1)  # among the first 0, 1, 2, ... sizes
    for target in targets:
        longer: list[tuple[float, list[int]]] = [(math.inf, [])]
        for place, size in enumerate(sizes):
            cost, chosen = cheapest[place]
            longer.append(min(longer[-1], (cost + math.log(size / target) ** 2, [*chosen, place])))
        cheapest = longer
    return cheapest[-1][1]


def path(student: Any, teacher: Size, context: Context) -> list[Size]:
    """All sizes on the way from the student to the teacher: deeper first, then wider."""
    start = size_of(student, context)
    if start.layers is None or not isinstance(student, FromConfig | FromLayers):
        return []
    deepest = teacher.layers or 0
    if isinstance(student, FromLayers):  # it can't keep more layers than there are
        deepest = min(deepest, number_of_layers(student.config(context.artifacts) or {}) or deepest)
    found = [size_of(deeper(student, depth, context), context) for depth in range(start.layers + 1, deepest + 1)]
    last = found[-1] if found else start
    if isinstance(student, FromConfig) and last.parameters < teacher.parameters:
        found += wider(last, teacher.parameters, context)
    return found


def deeper(student: Any, layers: int, context: Context) -> Any:
    if isinstance(student, FromLayers):
        return dataclasses.replace(student, layers="even", num_layers=layers)
    return changed(student, config_of(student, context), {"num_hidden_layers": layers})


def wider(size: Size, limit: int, context: Context) -> list[Size]:
    """The same depth with more heads, until a model has `limit` parameters."""
    config = config_of(size.recipe, context)
    heads, width = getattr(config, "num_attention_heads", None), size.width
    if not isinstance(heads, int) or not isinstance(width, int) or width % heads:
        return []
    groups = getattr(config, "num_key_value_heads", None) or heads
    unit = heads // groups  # heads that share one key and value stay together
    most = heads * limit // size.parameters  # parameters grow at least as fast as the width
    stride = unit * max(1, math.ceil((most - heads) / unit / MOST_WIDTHS))
    found = []
    for more in range(heads + stride, most + stride, stride):
        values = {"hidden_size": width // heads * more, "num_attention_heads": more}
        if unit > 1 or "num_key_value_heads" in size.recipe.values:
            values["num_key_value_heads"] = more // unit
        inner = {name: getattr(config, name, None) for name in INNER}
        values |= {name: round(value * more / heads) for name, value in inner.items() if isinstance(value, int)}
        found.append(size_of(changed(size.recipe, config, values), context))
        if found[-1].parameters >= limit:
            break
    return found


def changed(recipe: FromConfig, config: Any, values: Mapping[str, int]) -> FromConfig:
    """The recipe with other values, under the names that it gives them already (`n_layer` for `num_hidden_layers`)."""
    own = getattr(config, "attribute_map", {})
    renamed = {own[name] if own.get(name) in recipe.values else name: value for name, value in values.items()}
    return FromConfig(
        recipe.architecture,
        recipe.tokenizer,
        recipe.tokenizer_phase,
        recipe.dropout,
        recipe.frozen,
        **(recipe.values | renamed),
    )


def size_of(recipe: Any, context: Context, key: str = "model") -> Size:
    """Counted on the meta device, where a model has no weights; what can only be told by building it is built."""
    model = bare(recipe, context)
    if model is None:
        model = build_student(recipe, context, key=key)[0]
    return measured(model, recipe)


def size_of_folder(folder: Path, context: Context) -> Size:
    config = folder_config(folder, local_files_only=True)
    with quiet(), torch.device("meta"):
        return measured(from_config(auto_class(context.task, config), config), None)


def measured(model: nn.Module, recipe: Any) -> Size:
    config: Any = model.config
    width = getattr(config, "hidden_size", None)
    layers = number_of_layers(config.to_dict()) or getattr(config, "num_hidden_layers", None)
    return Size(recipe, sum(p.numel() for p in model.parameters()), layers, width if isinstance(width, int) else None)


def config_of(recipe: Any, context: Context) -> Any:
    model = bare(recipe, context)
    assert model is not None
    return model.config


def bare(recipe: Any, context: Context) -> nn.Module | None:
    """A recipe's model on the meta device; None where its files have to be read for that."""
    if isinstance(recipe, FromConfig):
        with torch.device("meta"):
            return recipe.build(
                task=context.task, label_names=context.label_names, artifacts=context.artifacts, key="model"
            )[0]
    if not isinstance(recipe, FromLayers):
        return None
    from transformers import AutoConfig

    folder = context.artifacts.get(recipe.phase) if recipe.phase else None
    values = recipe.config(context.artifacts)
    if values is None or number_of_layers(values) is None:
        return None
    try:
        if folder is not None:
            config = folder_config(folder, local_files_only=True)
        else:
            register()
            config = AutoConfig.for_model(**values)
        set_labels(config, resolve_labels(context.task, context.label_names, None), context.task)
        total = config.num_hidden_layers
        layers = even_layers(total, recipe.num_layers or total) if recipe.layers == "even" else list(recipe.layers)
        with quiet(), torch.device("meta"):
            return from_config(auto_class(context.task, config), cut_config(config, layers))
    except (UnknownAnatomy, TypeError, ValueError, AttributeError, AssertionError):
        return None  # its own build will say what is wrong


def check_order(sizes: Mapping[str, Size], teacher: Size, phase: str, keys: Mapping[str, str]) -> None:
    """Each step at most as large as what teaches it.

    Args:
        sizes: of the steps, in their order.
        teacher: of the first.
        phase: name.
        keys: of the steps' recipes, below the phase.

    Raises:
        Refusal: one is larger.
    """
    above, name = teacher, "the teacher"
    for step, size in sizes.items():
        if size.parameters > above.parameters:
            text = f"has {size}, more than {name}, which teaches it and has {above}"
            raise refuse(f"phases.{phase}.{keys[step]}", f"{text}; sizes must fall from the teacher to the student")
        above, name = size, step
