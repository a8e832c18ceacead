"""Single weights: unstructured sparsity, under one threshold for the whole model or one for each matrix, or n of each m neighbours (2:4)."""

from typing import Literal

from torch import nn

from distill_system.models.parts import matrices
from distill_system.pruning.base import Group, Slice
from distill_system.pruning.patterns import chosen
from distill_system.pruning.scores.base import Score
from distill_system.schema import Count


class Weights:
    """Prunes single weights of the linears in the body; the file shrinks, the latency doesn't (unless a runtime uses the zeros).

    Args:
        score: what a weight is worth.
        scope: `global`: the weights of all matrices compete; `layer`: those of each matrix, which all get the same sparsity.
        pattern: [n, m]: of each m consecutive inputs n stay (Mishra et al. 2021, https://arxiv.org/abs/2104.08378); None: anywhere.
        include: patterns of parameter names; empty: every linear of the body.
        exclude: patterns of parameter names.
        allocation: an earlier phase of kind sensitivity, whose suggestion says how much of each matrix goes.
    """

    kind = "weights"
    cuts = False

    def __init__(
        self,
        score: Score,
        scope: Literal["global", "layer"] = "global",
        pattern: list[Count] | None = None,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        allocation: str | None = None,
    ) -> None:
        self.score, self.scope, self.pattern = score, scope, pattern
        self.include, self.exclude, self.allocation = include or [], exclude or [], allocation

    def groups(self, model: nn.Module, key: str) -> list[Group]:
        return chosen(element_groups(model, (1, 1)), self.include, self.exclude, key)


def element_groups(model: nn.Module, block: tuple[int, int]) -> list[Group]:
    """A group for each matrix of the body, its units its blocks (of 1 x 1: its elements), numbered row after row."""
    groups = []
    for name, _, input_axis in matrices(model):
        weight = model.get_parameter(name)
        rows, columns = getattr(weight, "ds_shape", weight.shape)
        part = Slice(name, (rows, columns), axis=-1, input_axis=input_axis)
        units = -(-rows // block[0]) * -(-columns // block[1])
        groups.append(Group(name, layer_number(name), units, (part,), block=block))
    return groups


def layer_number(name: str) -> int | None:
    """The first number in a parameter's name: transformer layers are counted there."""
    return next((int(word) for word in name.split(".") if word.isdigit()), None)
