"""Neurons of the feed-forward networks: whole rows of one matrix and columns of the next, cut out of the model at the end."""

from typing import ClassVar, Literal

from torch import nn

from distill_system.pruning.base import Group
from distill_system.pruning.cut import unit_groups
from distill_system.pruning.patterns import chosen
from distill_system.pruning.scores.base import Score
from distill_system.schema import Count


class Neurons:
    """Prunes feed-forward neurons: with one go its input weights (of a gated network both), its bias and its output weights.

    Args:
        score: of weights (a neuron is worth the mean over its input and output weights), or of activations.
        uniform: every layer keeps equally many, so that plain configs can say it; false: all layers' neurons compete, and layers may differ.
        multiple_of: counts that stay are rounded up to a multiple of it, for kernels that like that.
        include: patterns of parameter names; a layer counts if all its matrices match; empty: every layer.
        exclude: patterns of parameter names.
        allocation: an earlier phase of kind sensitivity, whose suggestion says how much of each layer goes (with uniform=false).
    """

    kind: ClassVar[Literal["neurons"]] = "neurons"
    cuts = True

    def __init__(
        self,
        score: Score,
        uniform: bool = True,
        multiple_of: Count = 1,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        allocation: str | None = None,
    ) -> None:
        self.score, self.uniform, self.multiple_of = score, uniform, multiple_of
        self.include, self.exclude, self.allocation = include or [], exclude or [], allocation

    def groups(self, model: nn.Module, key: str) -> list[Group]:
        return chosen(unit_groups(model, self.kind), self.include, self.exclude, key)
