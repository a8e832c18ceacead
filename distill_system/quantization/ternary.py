"""Weights of three values, -s, 0 and s: by thresholds, or drawn.

Shapes: G groups, N weights of a group.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from distill_system.models.grid import Granularity, Grid
from distill_system.quantization.base import Draw, Given, Moment, mean_magnitude, straight_through
from distill_system.schema import Count, Positive, Range

OVER_MEAN = 1.4  # half of it is 0.7, over mean|w| the best threshold of normal weights (Li et al. 2016)


def group_scale(weight_GN: Tensor, scale: Literal["mean", "max", "none"]) -> Tensor:
    """s, `[G, 1]`: 1.4 times mean|w| over the weights that aren't zero; max|w|; or 1."""
    if scale == "mean":
        return OVER_MEAN * mean_magnitude(weight_GN)
    return weight_GN.abs().amax(1, keepdim=True) if scale == "max" else weight_GN.new_ones(len(weight_GN), 1)


def ternary_grid(state_GN: Tensor, scale_G1: Tensor) -> tuple[Tensor, Grid]:
    """Codes of states -1, 0, 1 and their grid."""
    return (state_GN + 1).to(torch.uint8), Grid(3, scale_G1, scale_G1.new_ones(1, 1))


class TernaryConnect:
    """q = s where w / s > threshold, -s where w / s < -threshold_negative, else 0.

    Lin et al. 2015 (ternary connect), https://arxiv.org/abs/1510.03009, rounded where the paper draws: thresholds 0.5. With the `mean` scale that is
    0.7 mean|w|, the threshold of ternary weight networks: Li et al. 2016, https://arxiv.org/abs/1605.04711.
    Differs from the papers in: weights are normalised by a scale of their group, where Lin et al. keep them in [-1, 1] (`none`); Li et al.'s scale is the
    mean |w| of the weights beyond the threshold, 6 % above 1.4 mean|w| if they are normal. The gradient of q goes straight through to w where
    |w| <= clip * s; that s depends on w is left out. Pruned weights don't count in the mean, and stay zero.

    Args:
        scale: s: 1.4 times mean|w| of the group, max|w|, or 1.
        threshold: for 1, in units of s.
        threshold_negative: for -1, without its sign; None: the same.
        clip: of the gradient, in units of s; None: it always passes.
        granularity: which weights share a scale.
        group_size: neighbours in a row that share one, with granularity "group".
    """

    has_zero: bool = True
    names: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    curvature: bool = False
    scale_lr: float = 1.0  # nothing is learned

    def __init__(
        self,
        scale: Literal["mean", "max", "none"] = "mean",
        threshold: Annotated[float, Range(above=0, below=1)] = 0.5,
        threshold_negative: Annotated[float, Range(above=0, below=1)] | None = None,
        clip: Positive | None = 3.0,
        granularity: Literal["tensor", "row", "group"] = "row",
        group_size: Count = 64,
    ) -> None:
        self.scale, self.threshold, self.clip = scale, threshold, clip
        self.threshold_negative = threshold if threshold_negative is None else threshold_negative
        self.granularity = Granularity(granularity, group_size)

    def levels(self, progress: float) -> int:
        return 3

    def initial(self, weight_GN: Tensor) -> dict[str, Tensor]:
        return {}

    def _state(self, weight_GN: Tensor, scale_G1: Tensor) -> Tensor:
        """-1, 0 or 1, `[G, N]`; 0 where s is 0."""
        state_GN = weight_GN.clone().gt_(self.threshold * scale_G1)
        return state_GN.sub_(weight_GN.clone().lt_(-self.threshold_negative * scale_G1))

    def encode(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> tuple[Tensor, Grid]:
        scale_G1 = group_scale(weight_GN, self.scale)
        return ternary_grid(self._state(weight_GN, scale_G1), scale_G1)

    def quantize(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> Tensor:
        scale_G1 = group_scale(weight_GN, self.scale)
        return self._state(weight_GN, scale_G1).mul_(scale_G1)

    def gradients(
        self, upstream_GN: Tensor, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw
    ) -> tuple[Tensor, dict[str, Tensor]]:
        bound_G1 = None if self.clip is None else self.clip * group_scale(weight_GN, self.scale)
        return straight_through(upstream_GN, weight_GN, bound_G1), {}


class BernoulliTernary:
    """q = s sign(w) b with b drawn anew in each step, P(b = 1) = min(1, |w| / s): on average q is w, where |w| <= s.

    Lin et al. 2015 (ternary connect), https://arxiv.org/abs/1510.03009, section 3.
    Differs from the paper in: weights are normalised by a scale of their group, where the paper keeps them in [-1, 1] (`none`); evaluation, for which the
    paper keeps full precision, uses three values too: P rounded, or of n draws that don't depend on the step the one that is closest to w, group by group.
    The gradient of q goes straight through to w where |w| <= clip * s; that s depends on w is left out. Pruned weights don't count in the mean, and stay
    zero.

    Args:
        scale: s: 1.4 times mean|w| of the group, max|w|, or 1.
        evaluation: `expectation`: b = 1 where P > 0.5; or `best_of`.
        draws: of `best_of`.
        clip: of the gradient, in units of s; None: it always passes.
        granularity: which weights share a scale.
        group_size: neighbours in a row that share one, with granularity "group".
    """

    has_zero: bool = True
    names: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    curvature: bool = False
    scale_lr: float = 1.0  # nothing is learned

    def __init__(
        self,
        scale: Literal["mean", "max", "none"] = "mean",
        evaluation: Literal["expectation", "best_of"] = "expectation",
        draws: Count = 8,
        clip: Positive | None = 3.0,
        granularity: Literal["tensor", "row", "group"] = "row",
        group_size: Count = 64,
    ) -> None:
        self.scale, self.evaluation, self.draws, self.clip = scale, evaluation, draws, clip
        self.granularity = Granularity(granularity, group_size)

    def levels(self, progress: float) -> int:
        return 3

    def initial(self, weight_GN: Tensor) -> dict[str, Tensor]:
        return {}

    def _state(self, weight_GN: Tensor, scale_G1: Tensor, draw: Draw) -> Tensor:
        """-1, 0 or 1, `[G, N]`; 0 where s is 0 and so w."""
        if draw.training:
            return drawn(weight_GN, scale_G1, draw.uniform(weight_GN))
        if self.evaluation == "expectation":
            return weight_GN.abs().gt_(0.5 * scale_G1).copysign_(weight_GN)
        return self._best(weight_GN, scale_G1, replace(draw, step=0))

    def _best(self, weight_GN: Tensor, scale_G1: Tensor, draw: Draw) -> Tensor:
        best_GN, least_G1 = torch.zeros_like(weight_GN), torch.full_like(scale_G1, torch.inf)
        for place in range(1, self.draws + 1):
            state_GN = drawn(weight_GN, scale_G1, draw.uniform(weight_GN, place))
            error_G1 = (state_GN * scale_G1 - weight_GN).square_().sum(1, keepdim=True)
            best_GN = torch.where(error_G1 < least_G1, state_GN, best_GN)
            least_G1 = torch.minimum(error_G1, least_G1)
        return best_GN

    def encode(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> tuple[Tensor, Grid]:
        scale_G1 = group_scale(weight_GN, self.scale)
        return ternary_grid(self._state(weight_GN, scale_G1, draw), scale_G1)

    def quantize(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> Tensor:
        scale_G1 = group_scale(weight_GN, self.scale)
        return self._state(weight_GN, scale_G1, draw).mul_(scale_G1)

    def gradients(
        self, upstream_GN: Tensor, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw
    ) -> tuple[Tensor, dict[str, Tensor]]:
        bound_G1 = None if self.clip is None else self.clip * group_scale(weight_GN, self.scale)
        return straight_through(upstream_GN, weight_GN, bound_G1), {}


def drawn(weight_GN: Tensor, scale_G1: Tensor, uniform_GN: Tensor) -> Tensor:
    """sign(w) where u < |w| / s, else 0."""
    return uniform_GN.mul_(scale_G1).lt_(weight_GN.abs()).copysign_(weight_GN).to(weight_GN.dtype)
