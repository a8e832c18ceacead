"""The models that are measured, and the way to a cut or sparse one: random weights, pruned by magnitude with the package's own parts.

Shapes: B rows, T tokens, U units, n elements.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from distill_system.models.from_config import FromConfig
from distill_system.pruning.base import Group, Run, Surgery
from distill_system.pruning.cut import CutReport, cut, unit_groups
from distill_system.pruning.scores.magnitude import Magnitude
from distill_system.pruning.scores.units import units_of
from distill_system.pruning.selection import select, select_units
from distill_system.pruning.weights import element_groups

WORDS = 30522  # of BERT's and MiniLM's vocabulary
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
QUICK = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 384}
TOKENS = 64
LABELS = ["no", "yes"]


def encoder(quick: bool = False, *, words: int | None = WORDS, **more: int) -> tuple[Any, Any]:
    """(model, tokenizer): a BERT for classification in the shape of MiniLM; `words` None: as many as the byte tokenizer knows."""
    sizes = (QUICK if quick else MINILM) | more
    if words is not None:
        sizes = sizes | {"vocab_size": 1000 if quick else words}
    recipe = FromConfig("bert", tokenizer="bytes", dropout=0.0, **sizes)
    return recipe.build(task="classification", label_names=LABELS)


def batch(rows: int, tokens: int = TOKENS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    ids_BT = torch.randint(5, 200, (rows, tokens), generator=generator)
    return {
        "input_ids": ids_BT,
        "attention_mask": torch.ones_like(ids_BT),
        "labels": torch.randint(0, len(LABELS), (rows,), generator=generator),
        "valid": torch.ones(rows, dtype=torch.bool),
        "index": torch.arange(rows),
    }


def cut_by_magnitude(model: Any, kind: Any, share: float) -> CutReport:
    """Scores, selects and cuts a share of each layer's neurons or heads, in place."""
    groups = unit_groups(model, kind)
    scores = {group.name: units_of(group, runs_of(model, group), Magnitude()) for group in groups}
    keep = select_units(scores, {group.name: round(share * group.units) for group in groups})
    return cut(model, Surgery(kind, {name: keep_U.nonzero().flatten().tolist() for name, keep_U in keep.items()}))


def runs_of(model: Any, group: Group) -> Iterator[tuple[Run, None]]:
    for part in group.slices:
        values_n = model.get_parameter(part.name).detach().view(-1)
        yield Run(part.name, part.shape, part.input_axis, 0, values_n), None


def prune_by_magnitude(model: Any, share: float) -> list[str]:
    """Sets the smallest weights of all linears in the body together to zero, in place; the names of their matrices."""
    weights = {group.name: model.get_parameter(group.name).detach().view(-1) for group in element_groups(model, (1, 1))}
    total = sum(weight_n.numel() for weight_n in weights.values())

    def stream() -> Iterable[tuple[str, int, Tensor]]:
        return ((name, 0, weight_n.abs()) for name, weight_n in weights.items())

    found = select(stream, round(share * total), {name: weight_n.numel() for name, weight_n in weights.items()})
    for name, weight_n in weights.items():
        weight_n.masked_fill_(~found.keep(name, 0, weight_n.abs()), 0.0)
    return list(weights)
