"""Trained ternary quantization: three values -Wn, 0 and Wp, of which two are learned.

Shapes: G groups, N weights of a group.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from distill_system.models.grid import Granularity, Grid
from distill_system.quantization.base import Draw, Given, Moment
from distill_system.schema import Count, Positive, Range

LEAST, MOST = 0.001, 0.999  # of a learned threshold


class TrainedTernary:
    """q = Wp where w > D, -Wn where w < -D, else 0, with D = t M and M = max|w| of the group; Wp and Wn are learned.

    Zhu et al. 2016 (TTQ), https://arxiv.org/abs/1612.01064. Equation 7: dL/dWp is the sum of dL/dq over the weights above D; dL/dWn is minus the sum of
    dL/dq over those below -D (the paper leaves out the minus, which is the derivative of -Wn). Equation 8: dL/dw is dL/dq times Wp / M above D, times 1
    between, times Wn / M below -D; the division by M is the paper's normalisation of weights to [-1, 1]. Nothing is clipped, as in the paper.
    Differs from the paper in: scales belong to rows, groups or tensors, where the paper has two a layer (`tensor`); they begin at the means of the |w| that
    they stand for (a side without members begins at the other's); that D depends on w is left out.

    With `learn_threshold` t is learned too. The step of q at D has no derivative; a rectangle of width D around it stands in for it, so
    dL/dt = (1 / t) * sum over D/2 < |w| < 3D/2 of dL/dq * (-Wp if w > 0, Wn if w < 0), which never sees pruned weights. t is held within 0.001 and 0.999.

    Args:
        threshold: t.
        learn_threshold: whether t is only where it begins.
        granularity: which weights share scales.
        group_size: neighbours in a row that share them, with granularity "group".
        scale_lr: learning rate of the scales (and t), over the phase's own.
    """

    has_zero: bool = True
    names: tuple[str, ...] = ("positive", "negative")
    trained: tuple[str, ...] = ("positive", "negative")
    curvature: bool = False

    def __init__(
        self,
        threshold: Annotated[float, Range(above=0, below=1)] = 0.05,
        learn_threshold: bool = False,
        granularity: Literal["tensor", "row", "group"] = "row",
        group_size: Count = 64,
        scale_lr: Positive = 1.0,
    ) -> None:
        self.threshold, self.learn_threshold, self.scale_lr = threshold, learn_threshold, scale_lr
        self.granularity = Granularity(granularity, group_size)
        if learn_threshold:
            self.names = self.trained = ("positive", "negative", "threshold")

    def levels(self, progress: float) -> int:
        return 3

    def initial(self, weight_GN: Tensor) -> dict[str, Tensor]:
        bound_G1 = self.threshold * largest(weight_GN)
        positive_G1, negative_G1 = mean_above(weight_GN, bound_G1), mean_above(-weight_GN, bound_G1)
        tensors = {
            "positive": torch.where(positive_G1 == 0, negative_G1, positive_G1),
            "negative": torch.where(negative_G1 == 0, positive_G1, negative_G1),
        }
        return tensors | ({"threshold": torch.full_like(bound_G1, self.threshold)} if self.learn_threshold else {})

    def _share(self, given: Given) -> Tensor | float:
        return given["threshold"].clamp(LEAST, MOST) if self.learn_threshold else self.threshold

    def encode(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> tuple[Tensor, Grid]:
        bound_G1 = self._share(given) * largest(weight_GN)
        code_GN = (weight_GN.clone().gt_(bound_G1) - weight_GN.clone().lt_(-bound_G1)).add_(1).to(torch.uint8)
        zero_G1 = torch.zeros_like(given["positive"])
        return code_GN, Grid(3, levels_GL=torch.cat([-given["negative"], zero_G1, given["positive"]], 1))

    def quantize(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> Tensor:
        bound_G1 = self._share(given) * largest(weight_GN)
        value_GN = weight_GN.clone().gt_(bound_G1).mul_(given["positive"])  # of each difference one part is 0
        return value_GN.sub_(weight_GN.clone().lt_(-bound_G1).mul_(given["negative"]))

    def gradients(
        self, upstream_GN: Tensor, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw
    ) -> tuple[Tensor, dict[str, Tensor]]:
        positive_G1, negative_G1, most_G1 = given["positive"], given["negative"], largest(weight_GN)
        bound_G1 = self._share(given) * most_G1
        above_GN, below_GN = weight_GN.clone().gt_(bound_G1), weight_GN.clone().lt_(-bound_G1)
        own = {
            "positive": (above_GN * upstream_GN).sum(1, keepdim=True),
            "negative": (below_GN * upstream_GN).sum(1, keepdim=True).neg_(),
        }
        if self.learn_threshold:
            own["threshold"] = self._threshold_gradient(upstream_GN, weight_GN, given, bound_G1)
        safe_G1 = most_G1 + (most_G1 == 0)
        slope_GN = above_GN.mul_(positive_G1 / safe_G1 - 1).add_(below_GN.mul_(negative_G1 / safe_G1 - 1)).add_(1)
        return slope_GN.mul_(upstream_GN), own

    def _threshold_gradient(self, upstream_GN: Tensor, weight_GN: Tensor, given: Given, bound_G1: Tensor) -> Tensor:
        size_GN = weight_GN.abs()
        near_GN = size_GN.clone().gt_(bound_G1 / 2).mul_(size_GN.lt_(1.5 * bound_G1)).mul_(upstream_GN)
        negative_GN = weight_GN.clone().lt_(0).mul_(near_GN)
        below_G1 = negative_GN.sum(1, keepdim=True)
        above_G1 = near_GN.sub_(negative_GN).sum(1, keepdim=True)
        return (given["negative"] * below_G1 - given["positive"] * above_G1) / self._share(given)


def largest(weight_GN: Tensor) -> Tensor:
    return weight_GN.abs().amax(1, keepdim=True)


def mean_above(weight_GN: Tensor, bound_G1: Tensor) -> Tensor:
    """Mean of the weights above a bound, `[G, 1]`; 0 where there are none."""
    above_GN = weight_GN > bound_G1
    return (weight_GN * above_GN).sum(1, keepdim=True) / above_GN.sum(1, keepdim=True).clamp(min=1)
