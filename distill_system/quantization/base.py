"""What every quantizer is: weights of a group become codes of a few levels, and gradients of the levels become gradients of the weights.

A quantizer sees matrices as `[G, N]` (see `models.grid`) and is pure: all that it learns or keeps stands in tensors `[G, 1]` beside the weight, all that
changes from step to step in a `Moment`. Training multiplies with `quantize`, which is `decode(encode)` to the bit; so the packed file, which holds the
codes, gives what training saw.

Shapes: G groups, N weights of a group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from distill_system.models.grid import Granularity, Grid

Given = Mapping[str, Tensor]  # a quantizer's own tensors beside a weight, by name
TINY = 1e-12  # least scale: a group of zeros stays zero


@dataclass
class Moment:
    """Where training stands; shared by all modules of a model, and set before each step.

    Attributes:
        step: finished optimizer steps.
        progress: share of the phase's steps that are done.
        mixing: how much of the forward is quantized; the rest is full precision.
        seed: of draws.
    """

    step: int = 0
    progress: float = 0.0
    mixing: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Draw:
    """Randomness of one weight in one step: the same on every rank, in every micro-batch, in the backward, and after a resume."""

    seed: int
    step: int
    number: int  # of the weight in the model
    training: bool

    def uniform(self, like: Tensor, place: int = 0) -> Tensor:
        """Numbers in [0, 1) of a tensor's shape; another `place` is another draw. Made on the CPU, so that devices agree."""
        seed = ((self.seed * 1_000_003 + self.step) * 8191 + self.number) * 61 + place
        generator = torch.Generator().manual_seed(seed % 2**63)
        return torch.rand(like.shape, generator=generator, dtype=torch.float32).to(like.device)


class Quantizer(Protocol):
    """Restated by each quantizer as class attributes, which config checks read without importing torch: has_zero, names, trained, curvature.

    Attributes:
        granularity: which weights share a grid.
        scale_lr: learning rate of what it learns, over the phase's own.
        has_zero: whether 0 is a level, so that pruned weights can stay zero.
        names: of its tensors beside the weight.
        trained: those of them that gradients train; the others are kept as buffers.
        curvature: whether its scales are fitted to the optimizer's second moments after each step.
    """

    granularity: Granularity
    scale_lr: float
    has_zero: bool
    names: tuple[str, ...]
    trained: tuple[str, ...]
    curvature: bool

    def levels(self, progress: float) -> int:
        """How many values a weight may have, at this share of the phase."""

    def initial(self, weight_GN: Tensor) -> dict[str, Tensor]:
        """Its tensors beside a full-precision weight, by name, each `[G, 1]`."""

    def encode(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> tuple[Tensor, Grid]:
        """Codes `[G, N]` (uint8), and the grid that gives them values."""

    def quantize(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> Tensor:
        """`grid.decode(codes)`, to the bit, perhaps in fewer passes."""

    def gradients(
        self, upstream_GN: Tensor, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What a gradient of the quantized weights means for the weights `[G, N]`, and for each tensor of `trained`."""


def mean_magnitude(weight_GN: Tensor) -> Tensor:
    """Mean of |w| `[G, 1]` over the weights that aren't zero: what was pruned doesn't count. 0 for a group of zeros."""
    count_G1 = weight_GN.sign().abs_().sum(1, keepdim=True).clamp_(min=1)
    return weight_GN.abs().sum(1, keepdim=True) / count_G1


def straight_through(upstream_GN: Tensor, weight_GN: Tensor, bound_G1: Tensor | float | None) -> Tensor:
    """The straight-through estimator with clipping: the gradient passes where |w| <= bound (Bengio et al. 2013, https://arxiv.org/abs/1308.3432;
    clipped as in Courbariaux et al. 2016, https://arxiv.org/abs/1602.02830). None: everywhere.
    """
    if bound_G1 is None:
        return upstream_GN
    return weight_GN.abs().le_(bound_G1).mul_(upstream_GN)  # many times faster than `where`
