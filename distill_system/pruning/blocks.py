"""Blocks of weights: block-sparse matrices, whose file holds the kept blocks one after another."""

from typing import Literal

from torch import nn

from distill_system.errors import refuse
from distill_system.pruning.base import Group
from distill_system.pruning.patterns import chosen
from distill_system.pruning.scores.base import Score
from distill_system.pruning.weights import element_groups
from distill_system.schema import Count


class Blocks:
    """Prunes rectangles of weights in the linears of the body (Gray et al. 2017, GPU kernels for block-sparse weights; Lagunas et al. 2021,
    https://arxiv.org/abs/2109.04838, which combines them with movement).

    Args:
        score: of weights; a block is worth the mean of its own.
        block: [outputs, inputs] of a block; both sides of every matrix must divide by it.
        scope: `global`: the blocks of all matrices compete; `layer`: those of each matrix.
        include: patterns of parameter names; empty: every linear of the body.
        exclude: patterns of parameter names.
        allocation: an earlier phase of kind sensitivity, whose suggestion says how much of each matrix goes.
    """

    kind = "blocks"
    cuts = False

    def __init__(
        self,
        score: Score,
        block: list[Count] | None = None,
        scope: Literal["global", "layer"] = "global",
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        allocation: str | None = None,
    ) -> None:
        height, width = block or [16, 16]
        self.score, self.block, self.scope = score, (height, width), scope
        self.include, self.exclude, self.allocation = include or [], exclude or [], allocation

    def groups(self, model: nn.Module, key: str) -> list[Group]:
        found = []
        for group in chosen(element_groups(model, (1, 1)), self.include, self.exclude, key):
            (part,) = group.slices
            block = self.block if part.input_axis == 1 else self.block[::-1]  # a Conv1D is stored [inputs, outputs]
            for side, length in zip(part.shape, block, strict=True):
                if side % length:
                    text = f"is {list(self.block)}, but {part.name} is {part.shape[0]} x {part.shape[1]}, which it doesn't divide"
                    raise refuse(f"{key}.block", f"{text}; take sides that divide all matrices, or exclude this one")
            units = part.shape[0] // block[0] * (part.shape[1] // block[1])
            found.append(Group(group.name, group.layer, units, group.slices, block=block))
        return found
