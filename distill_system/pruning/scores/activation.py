"""Activation: a weight is worth its absolute value times the size of the input that it meets."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill_system.pruning.base import Run
from distill_system.pruning.calibration import Watcher
from distill_system.pruning.scores.base import Score


def activation(values_n: Tensor, norms_n: Tensor) -> Tensor:
    """S_ij = |W_ij| * ||X_j||, with ||X_j|| the norm of input feature j over the calibration's tokens.

    Sun et al. 2023 (Wanda), https://arxiv.org/abs/2306.11695, equation 1.
    Differs from the paper in: the root mean square of the feature instead of its norm (the same order in a matrix, and independent of how many tokens
    go through it); weights compete in the whole matrix or model instead of each output's alone.
    """
    return values_n.to(torch.float32).abs() * norms_n


class Activation(Score):
    """Absolute values times input norms (`activation`), measured on calibration rows."""

    suits: ClassVar[tuple[str, ...]] = ("weights", "blocks", "neurons", "heads")
    watches: ClassVar[str] = "inputs"

    def of_elements(self, run: Run, seen: Tensor | None) -> Tensor:
        assert seen is not None
        norms_I = seen.to(device=run.values_n.device, dtype=torch.float32)
        return activation(run.values_n, norms_I[run.lines(run.input_axis)])

    def watcher(self, modules: Mapping[str, nn.Module]) -> Watcher:
        return InputNorms(modules)


class InputNorms(Watcher):
    """Root mean square of each input feature over real tokens, sqrt(sum of x^2 / N)."""

    def start(self, features: int, device: torch.device) -> Tensor:
        return torch.zeros(features + 1, dtype=torch.float64, device=device)  # sums of squares, then N

    def see(self, name: str, x_NI: Tensor, kept: Tensor) -> None:
        kept[:-1] += x_NI.to(torch.float32).square().sum(0, dtype=torch.float64).to(kept.device)
        kept[-1] += len(x_NI)

    def is_empty(self, kept: Tensor) -> bool:
        return bool(kept[-1] == 0)

    def result(self, name: str) -> Tensor:
        kept = self.seen[name]
        return (kept[:-1] / kept[-1]).sqrt().to(torch.float32)
