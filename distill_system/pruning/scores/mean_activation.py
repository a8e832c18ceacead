"""Mean activation: a unit is worth how large its activation is on the average."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill_system.pruning.calibration import Watcher
from distill_system.pruning.scores.base import Score


class MeanActivation(Score):
    """Mean over real tokens of |activation| (`Means`); a head's is the mean over its features.

    Molchanov et al. 2017, https://arxiv.org/abs/1611.06440, section 2.2 (mean activation).
    Differs from the paper in: the absolute value, which of a ReLU is the activation itself; a GELU's or a gated network's may be negative.
    """

    suits: ClassVar[tuple[str, ...]] = ("neurons", "heads")
    watches: ClassVar[str] = "activations"

    def watcher(self, modules: Mapping[str, nn.Module]) -> Watcher:
        return Means(modules)


class Means(Watcher):
    """Mean of |x| of each input feature over real tokens."""

    def start(self, features: int, device: torch.device) -> Tensor:
        return torch.zeros(features + 1, dtype=torch.float64, device=device)  # sums, then N

    def see(self, name: str, x_NI: Tensor, kept: Tensor) -> None:
        kept[:-1] += x_NI.abs().sum(0, dtype=torch.float64).to(kept.device)
        kept[-1] += len(x_NI)

    def is_empty(self, kept: Tensor) -> bool:
        return bool(kept[-1] == 0)

    def result(self, name: str) -> Tensor:
        kept = self.seen[name]
        return (kept[:-1] / kept[-1]).to(torch.float32)
