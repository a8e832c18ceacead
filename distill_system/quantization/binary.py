"""Weights of two values: the sign times a common scale, or two constants that are learned.

Shapes: G groups, N weights of a group.
"""

from typing import Literal

import torch
from torch import Tensor

from distill_system.models.grid import Granularity, Grid
from distill_system.quantization.base import Draw, Given, Moment, straight_through
from distill_system.schema import Count, Positive

LLOYD_STEPS = 10  # of the first constants


class DeterministicBinary:
    """q = s sign(w), with s = mean|w| of the group, or 1; sign(0) = 1. Of all s, the mean makes the squared error least.

    Courbariaux et al. 2015 (BinaryConnect), https://arxiv.org/abs/1511.00363, equation 1, and Rastegari et al. 2016 (XNOR-Net),
    https://arxiv.org/abs/1603.05279, equation 6.
    Differs from the papers in: the gradient of q goes straight through to w where |w| <= clip * s (Courbariaux et al. 2016,
    https://arxiv.org/abs/1602.02830, has 1 in place of clip * s), and the part that goes through s, 1/N of it, is left out; weights aren't clipped.

    Args:
        scaled: whether s is the mean; else 1.
        clip: of the gradient, in units of s; None: it always passes.
        granularity: which weights share a scale.
        group_size: neighbours in a row that share one, with granularity "group".
    """

    has_zero: bool = False
    names: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    curvature: bool = False
    scale_lr: float = 1.0  # nothing is learned

    def __init__(
        self,
        scaled: bool = True,
        clip: Positive | None = 3.0,
        granularity: Literal["tensor", "row", "group"] = "row",
        group_size: Count = 64,
    ) -> None:
        self.scaled, self.clip = scaled, clip
        self.granularity = Granularity(granularity, group_size)

    def levels(self, progress: float) -> int:
        return 2

    def initial(self, weight_GN: Tensor) -> dict[str, Tensor]:
        return {}

    def _scale(self, weight_GN: Tensor) -> Tensor:
        return weight_GN.abs().mean(1, keepdim=True) if self.scaled else weight_GN.new_ones(len(weight_GN), 1)

    def encode(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> tuple[Tensor, Grid]:
        scale_G1 = self._scale(weight_GN)
        return (weight_GN >= 0).to(torch.uint8), Grid(2, 2 * scale_G1, scale_G1.new_full((1, 1), 0.5))

    def quantize(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> Tensor:
        return torch.copysign(self._scale(weight_GN), weight_GN + 0.0)  # the sum makes -0 a 0

    def gradients(
        self, upstream_GN: Tensor, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw
    ) -> tuple[Tensor, dict[str, Tensor]]:
        bound_G1 = None if self.clip is None else self.clip * self._scale(weight_GN)
        return straight_through(upstream_GN, weight_GN, bound_G1), {}


class BinaryConstants:
    """q = C2 where w >= m, else C1, with learned constants C1 < C2; m = (C1 + C2) / 2 (the nearest constant), or 0 (the sign).

    dL/dC1 and dL/dC2 are the sums of dL/dq over the weights that have the constant: as for the centroids of trained weight sharing, Han et al. 2015,
    https://arxiv.org/abs/1510.00149, equation 3, or for the scales of Zhu et al. 2016, https://arxiv.org/abs/1612.01064, equation 7.
    Differs from the papers in: two constants; the gradient of q also goes straight through to w, where w is within clip times half the distance of the
    constants from their middle; m counts as fixed.

    They begin at the means of their members: Lloyd's iterations from the means below and above the mean, or the means of both signs (`sign`). A side
    without members begins at minus the other. Where the learned constants are closer than `gap` times mean|w|, or have crossed, each is moved by half of what is missing,
    and gradients are what they would be without that: so they can come apart again. A group of zeros stays zero.

    Args:
        assign: by the nearest constant, or by sign.
        gap: least distance of the constants, over mean|w| of the group.
        clip: of the weights' gradient; None: it always passes.
        granularity: which weights share constants.
        group_size: neighbours in a row that share them, with granularity "group".
        scale_lr: learning rate of the constants, over the phase's own.
    """

    has_zero: bool = False
    names: tuple[str, ...] = ("low", "high")
    trained: tuple[str, ...] = ("low", "high")
    curvature: bool = False

    def __init__(
        self,
        assign: Literal["nearest", "sign"] = "nearest",
        gap: Positive = 0.01,
        clip: Positive | None = 3.0,
        granularity: Literal["tensor", "row", "group"] = "row",
        group_size: Count = 64,
        scale_lr: Positive = 1.0,
    ) -> None:
        self.assign, self.gap, self.clip, self.scale_lr = assign, gap, clip, scale_lr
        self.granularity = Granularity(granularity, group_size)

    def levels(self, progress: float) -> int:
        return 2

    def initial(self, weight_GN: Tensor) -> dict[str, Tensor]:
        if self.assign == "sign":
            low_G1, high_G1 = means_around(weight_GN, torch.zeros_like(weight_GN[:, :1]))
            return {"low": low_G1, "high": high_G1}
        low_G1, high_G1 = means_around(weight_GN, weight_GN.mean(1, keepdim=True))
        for _ in range(LLOYD_STEPS):
            low_G1, high_G1 = means_around(weight_GN, (low_G1 + high_G1) / 2)
        return {"low": low_G1, "high": high_G1}

    def _constants(self, weight_GN: Tensor, given: Given) -> tuple[Tensor, Tensor, Tensor]:
        """(C1, C2, m), each `[G, 1]`."""
        low_G1, high_G1 = given["low"], given["high"]
        gap_G1 = self.gap * weight_GN.abs().mean(1, keepdim=True)
        missing_G1 = (gap_G1 - (high_G1 - low_G1)).clamp_(min=0) / 2
        low_G1, high_G1 = low_G1 - missing_G1, high_G1 + missing_G1
        return low_G1, high_G1, (low_G1 + high_G1) / 2 if self.assign == "nearest" else torch.zeros_like(low_G1)

    def encode(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> tuple[Tensor, Grid]:
        low_G1, high_G1, middle_G1 = self._constants(weight_GN, given)
        return (weight_GN >= middle_G1).to(torch.uint8), Grid(2, levels_GL=torch.cat([low_G1, high_G1], 1))

    def quantize(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> Tensor:
        low_G1, high_G1, middle_G1 = self._constants(weight_GN, given)
        value_GN = (
            weight_GN.clone().lt_(middle_G1).mul_(low_G1)
        )  # of each sum one part is 0: many times faster than `where`
        return value_GN.add_(weight_GN.clone().ge_(middle_G1).mul_(high_G1))

    def gradients(
        self, upstream_GN: Tensor, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw
    ) -> tuple[Tensor, dict[str, Tensor]]:
        low_G1, high_G1, middle_G1 = self._constants(weight_GN, given)
        own = {
            "low": weight_GN.clone().lt_(middle_G1).mul_(upstream_GN).sum(1, keepdim=True),
            "high": weight_GN.clone().ge_(middle_G1).mul_(upstream_GN).sum(1, keepdim=True),
        }
        if self.clip is None:
            return upstream_GN, own
        centred_GN = weight_GN - (low_G1 + high_G1) / 2
        return straight_through(upstream_GN, centred_GN, self.clip / 2 * (high_G1 - low_G1)), own


def means_around(weight_GN: Tensor, middle_G1: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the weights below a middle, and of the others; minus the other mean where there are none. Each `[G, 1]`."""
    above_GN = weight_GN >= middle_G1
    count_G1, size = above_GN.sum(1, keepdim=True), weight_GN.shape[1]
    high_G1 = (weight_GN * above_GN).sum(1, keepdim=True) / count_G1.clamp(min=1)
    low_G1 = (weight_GN * ~above_GN).sum(1, keepdim=True) / (size - count_G1).clamp(min=1)
    return torch.where(count_G1 == size, -high_G1, low_G1), torch.where(count_G1 == 0, -low_G1, high_G1)
