"""Attention heads: rows of queries, keys and values and columns of the output projection, cut out of the model at the end."""

from typing import ClassVar, Literal

from torch import nn

from distill_system.pruning.base import Group
from distill_system.pruning.cut import unit_groups
from distill_system.pruning.patterns import chosen
from distill_system.pruning.scores.base import Score


class Heads:
    """Prunes attention heads (Michel et al. 2019, https://arxiv.org/abs/1905.10650). Heads that share keys and values go together.

    Args:
        score: of weights (a head is worth the mean over its own), or of activations.
        uniform: every layer keeps equally many; false: all layers' heads compete, and layers may differ.
        include: patterns of parameter names; a layer counts if all its matrices match; empty: every layer.
        exclude: patterns of parameter names.
        allocation: an earlier phase of kind sensitivity, whose suggestion says how much of each layer goes (with uniform=false).
    """

    kind: ClassVar[Literal["heads"]] = "heads"
    cuts = True
    multiple_of = 1

    def __init__(
        self,
        score: Score,
        uniform: bool = True,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        allocation: str | None = None,
    ) -> None:
        self.score, self.uniform = score, uniform
        self.include, self.exclude, self.allocation = include or [], exclude or [], allocation

    def groups(self, model: nn.Module, key: str) -> list[Group]:
        return chosen(unit_groups(model, self.kind), self.include, self.exclude, key)
