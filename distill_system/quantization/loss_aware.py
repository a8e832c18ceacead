"""Loss-aware quantization: the scale that costs the loss least, by the curvature that Adam's second moments estimate.

Shapes: G groups, N weights of a group, n some weights.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from distill_system.models.grid import Granularity, Grid
from distill_system.quantization.base import TINY, Draw, Given, Moment, mean_magnitude, straight_through
from distill_system.schema import Count, Positive, Range

FIRST_ITERATIONS = 20  # of the first scale, which no step before has come close to


class LossAware:
    """q = a b, with codes b of few values and a scale a of the group that make sum d (w - a b)^2 least, d = sqrt(v) of Adam: the loss to second order.

    For fixed a each b is the code nearest to w / a, whatever d; for fixed b, a = sum(d b w) / sum(d b^2). Binary codes (b = sign(w), sign(0) = 1) don't
    depend on a, so that a = sum(d |w|) / sum(d) in one pass: Hou et al. 2016, https://arxiv.org/abs/1611.01600, proposition 3.1. Others alternate between
    both: Hou and Kwok 2018, https://arxiv.org/abs/1802.08635.
    Training refits a after each step, on one set of weights as on shards of them: only the sums need all (`terms`). It begins at the solution for d = 1.
    Differs from the papers in: scales of rows or groups; one scale for both signs; after a step alternation goes on from the last a, for a fixed number of
    times; k bits mean the codes -Q ... Q with Q = 2^(k-1) - 1, and a is the step between them, where the paper has a b / Q. The gradient of q goes straight
    through to w where |w| <= clip * a Q (the papers clip nothing).

    Args:
        states: of b: -1 and 1; -1, 0 and 1; or -Q ... Q.
        bits: k, 3 to 8 (with 2 it would be ternary); only with states "kbit".
        iterations: how often b and a are fitted in turn after a step; binary needs but one.
        clip: of the gradient, in units of the largest value; None: it always passes.
        granularity: which weights share a scale.
        group_size: neighbours in a row that share one, with granularity "group".
    """

    has_zero: bool  # unless binary
    names: tuple[str, ...] = ("alpha",)
    trained: tuple[str, ...] = ()
    curvature: bool = True
    scale_lr: float = 1.0  # nothing is trained by gradients

    def __init__(
        self,
        states: Literal["binary", "ternary", "kbit"] = "ternary",
        bits: Annotated[int, Range(at_least=3, at_most=8)] = 4,
        iterations: Count = 3,
        clip: Positive | None = 3.0,
        granularity: Literal["tensor", "row", "group"] = "row",
        group_size: Count = 64,
    ) -> None:
        self.binary, self.clip = states == "binary", clip
        self.has_zero = not self.binary
        self.most = (1 << (bits - 1)) - 1 if states == "kbit" else 1  # Q
        self.iterations = 1 if self.binary else iterations
        self.granularity = Granularity(granularity, group_size)

    def levels(self, progress: float) -> int:
        return 2 if self.binary else 2 * self.most + 1

    def initial(self, weight_GN: Tensor) -> dict[str, Tensor]:
        ones_GN = torch.ones_like(weight_GN)
        alpha_G1 = 2 * mean_magnitude(weight_GN) / self.most**0.5  # LSQ's first step
        for _ in range(1 if self.binary else FIRST_ITERATIONS):
            over_GN, under_GN = self.terms(weight_GN, ones_GN, alpha_G1)
            under_G1 = under_GN.sum(1, keepdim=True)
            fitted_G1 = over_GN.sum(1, keepdim=True) / under_G1
            alpha_G1 = torch.where(under_G1 > 0, fitted_G1, alpha_G1)
        return {"alpha": alpha_G1}

    def terms(self, weight_n: Tensor, curvature_n: Tensor, alpha_n: Tensor) -> tuple[Tensor, Tensor]:
        """What each weight adds to numerator and denominator of its group's new a: d b w and d b^2, with b from the old a.

        Where the denominator's sum is 0, a stays.
        """
        code_n = self._code(weight_n, alpha_n)
        curved_n = curvature_n * code_n
        return curved_n * weight_n, curved_n.mul_(code_n)

    def _code(self, weight_n: Tensor, alpha_n: Tensor) -> Tensor:
        """b."""
        if self.binary:
            return torch.copysign(weight_n.new_ones(()), weight_n + 0.0)  # the sum makes -0 a 0
        return (weight_n / alpha_n.clamp(min=TINY)).round_().clamp_(-self.most, self.most)

    def encode(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> tuple[Tensor, Grid]:
        alpha_G1 = given["alpha"]
        if self.binary:
            return (weight_GN >= 0).to(torch.uint8), Grid(2, 2 * alpha_G1, alpha_G1.new_full((1, 1), 0.5))
        code_GN = self._code(weight_GN, alpha_G1).add_(self.most).to(torch.uint8)
        return code_GN, Grid(2 * self.most + 1, alpha_G1, alpha_G1.new_full((1, 1), self.most))

    def quantize(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> Tensor:
        if self.binary:
            return torch.copysign(given["alpha"], weight_GN + 0.0)
        return self._code(weight_GN, given["alpha"]).mul_(given["alpha"])

    def gradients(
        self, upstream_GN: Tensor, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw
    ) -> tuple[Tensor, dict[str, Tensor]]:
        bound_G1 = None if self.clip is None else self.clip * self.most * given["alpha"]
        return straight_through(upstream_GN, weight_GN, bound_G1), {}
