"""Magnitude: a weight is worth its absolute value."""

from typing import ClassVar

import torch
from torch import Tensor

from distill_system.pruning.base import Run
from distill_system.pruning.scores.base import Score


def magnitude(values_n: Tensor) -> Tensor:
    """S = |w|.

    Han et al. 2015, https://arxiv.org/abs/1506.02626, section 3.
    Differs from the paper in: how many weights go is given, where the paper's thresholds are multiples of each layer's standard deviation.
    """
    return values_n.to(torch.float32).abs()


class Magnitude(Score):
    """Absolute values (`magnitude`)."""

    suits: ClassVar[tuple[str, ...]] = ("weights", "blocks", "neurons", "heads")
    watches: ClassVar[str] = ""

    def of_elements(self, run: Run, seen: Tensor | None) -> Tensor:
        return magnitude(run.values_n)
