"""Weights of 2 to 8 bits, evenly spaced, with a step that is learned or follows from the range of the weights.

Shapes: G groups, N weights of a group.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from distill_system.errors import refuse
from distill_system.models.grid import Granularity, Grid
from distill_system.quantization.base import TINY, Draw, Given, Moment, mean_magnitude
from distill_system.schema import Count, Positive, Range


class Kbit:
    """q = s clip(round(w / s), -z, 2^b - 1 - z): b bits, step s, and z the code of 0, which is a whole number: zeros stay zero.

    Learned step: Esser et al. 2019 (LSQ), https://arxiv.org/abs/1902.08153. With Qn = 2^(b-1), Qp = 2^(b-1) - 1 and v = w / s, dq/ds is round(v) - v where
    -z <= v <= 2^b - 1 - z, -Qn below and Qp above (equation 3); dq/dw is 1 between and 0 outside (equation 5): that is the clipping.
    Learned is gamma, with s = |gamma| / sqrt(Qp): LSQ's first step is gamma = 2 mean|w|, whatever b. So bits can fall on a schedule and gamma goes on.
    Symmetric: z = Qn. Else Bhalgat et al. 2020 (LSQ+), https://arxiv.org/abs/2004.09576: a learned offset o moves the range, z = round(Qn - o / s), within
    0 and 2^b - 1; dq/do is 0 between the ends of the range and 1 outside; it begins at the mean of the weights, whatever b.
    Differs from the papers in: steps of rows or groups; no scaling of the step's gradient, which Adam would undo; z is whole, and its rounding and limits
    are passed straight through; pruned weights don't count in the means.

    From the range: nothing is learned, s = max|w| / Qp, or (max - min) / (2^b - 1) and z = round(-min / s), with 0 counted among the weights (Jacob et
    al. 2017, https://arxiv.org/abs/1712.05877, section 3). No weight is clipped, by more than half a step, and the gradient passes everywhere.

    Args:
        bits: b, 2 to 8; of the trained model.
        symmetric: whether z is the middle.
        range: `learned`; or `weights`: from the range of the weights.
        schedule: bits that fall, such as [8, 4, 2], the last of them `bits`; None: `bits` from the first step.
        schedule_until: share of the phase at which the last of them begins; the others have equal shares before.
        granularity: which weights share a step.
        group_size: neighbours in a row that share one, with granularity "group".
        scale_lr: learning rate of what is learned, over the phase's own.

    Raises:
        Refusal: the schedule doesn't fall to `bits`.
    """

    has_zero: bool = True
    names: tuple[str, ...] = ("step",)
    trained: tuple[str, ...] = ("step",)
    curvature: bool = False

    def __init__(
        self,
        bits: Annotated[int, Range(at_least=2, at_most=8)] = 4,
        symmetric: bool = True,
        range: Literal["learned", "weights"] = "learned",
        schedule: list[Annotated[int, Range(at_least=2, at_most=8)]] | None = None,
        schedule_until: Annotated[float, Range(above=0, below=1)] = 0.5,
        granularity: Literal["tensor", "row", "group"] = "row",
        group_size: Count = 64,
        scale_lr: Positive = 1.0,
    ) -> None:
        problem = None if schedule is None else schedule_problem(bits, schedule)
        if problem:
            raise refuse("schedule", problem)
        self.bits, self.symmetric, self.range, self.scale_lr = bits, symmetric, range, scale_lr
        self.schedule, self.schedule_until = tuple(schedule or [bits]), schedule_until
        self.granularity = Granularity(granularity, group_size)
        if range == "weights":
            self.names = self.trained = ()
        elif not symmetric:
            self.names = self.trained = ("step", "offset")

    def bits_at(self, progress: float) -> int:
        """b at a share of the phase."""
        if progress >= self.schedule_until:
            return self.schedule[-1]
        return self.schedule[int(progress / self.schedule_until * (len(self.schedule) - 1))]

    def levels(self, progress: float) -> int:
        return 1 << self.bits_at(progress)

    def initial(self, weight_GN: Tensor) -> dict[str, Tensor]:
        if self.range == "weights":
            return {}
        tensors = {"step": 2 * mean_magnitude(weight_GN)}
        if not self.symmetric:
            count_G1 = (weight_GN != 0).sum(1, keepdim=True).clamp_(min=1)
            tensors["offset"] = weight_GN.sum(1, keepdim=True) / count_G1
        return tensors

    def _grid(self, weight_GN: Tensor, given: Given, bits: int) -> tuple[Tensor, Tensor | float]:
        """(s, z): z is a number where all groups have the same."""
        top, half = (1 << bits) - 1, 1 << (bits - 1)
        if self.range == "weights" and self.symmetric:
            return weight_GN.abs().amax(1, keepdim=True).clamp_(min=TINY).div_(half - 1), float(half)
        if self.range == "weights":
            least_G1, most_G1 = weight_GN.amin(1, keepdim=True).clamp_(max=0), weight_GN.amax(1, keepdim=True)
            step_G1 = (most_G1.clamp_(min=0) - least_G1).clamp_(min=TINY).div_(top)
            return step_G1, least_G1.div_(step_G1).neg_().round_().clamp_(0, top)
        step_G1 = given["step"].abs().clamp_(min=TINY).div_((half - 1) ** 0.5)
        if self.symmetric:
            return step_G1, float(half)
        return step_G1, (half - given["offset"] / step_G1).round_().clamp_(0, top)

    def encode(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> tuple[Tensor, Grid]:
        bits = self.bits_at(moment.progress)
        step_G1, zero = self._grid(weight_GN, given, bits)
        code_GN = limited((weight_GN / step_G1).round_(), zero, bits).add_(zero).to(torch.uint8)
        zero_G1 = zero if isinstance(zero, Tensor) else step_G1.new_full((1, 1), zero)
        return code_GN, Grid(1 << bits, step_G1, zero_G1)

    def quantize(self, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw) -> Tensor:
        bits = self.bits_at(moment.progress)
        step_G1, zero = self._grid(weight_GN, given, bits)
        return limited((weight_GN / step_G1).round_(), zero, bits).mul_(step_G1)

    def gradients(
        self, upstream_GN: Tensor, weight_GN: Tensor, given: Given, moment: Moment, draw: Draw
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.range == "weights":
            return upstream_GN, {}
        bits = self.bits_at(moment.progress)
        step_G1, zero = self._grid(weight_GN, given, bits)
        ratio_GN = weight_GN / step_G1
        slope_GN = limited(ratio_GN.clone(), zero, bits)
        inside_GN = slope_GN.clone().eq_(ratio_GN)
        inner_GN = inside_GN * upstream_GN
        slope_GN.round_().sub_(ratio_GN.mul_(inside_GN))  # round(v) - v between; outside the ends of the range
        by_step_G1 = slope_GN.mul_(upstream_GN).sum(1, keepdim=True)
        half, own = 1 << (bits - 1), {}
        if not self.symmetric:
            own["offset"] = (upstream_GN - inner_GN).sum(1, keepdim=True)
            by_step_G1 += (zero - half) * own["offset"]  # from the ends that z gives to -Qn and Qp
        sign_G1 = torch.where(given["step"] < 0, -1.0, 1.0).to(by_step_G1.dtype)
        return inner_GN, own | {"step": by_step_G1 * sign_G1 / (half - 1) ** 0.5}


def limited(ratio_GN: Tensor, zero: Tensor | float, bits: int) -> Tensor:
    """clip(v, -z, 2^b - 1 - z), in place."""
    return ratio_GN.clamp_(-zero, (1 << bits) - 1 - zero)  # type: ignore[arg-type]  # both numbers or both tensors


def schedule_problem(bits: int, schedule: Sequence[int]) -> str | None:
    """What is wrong with bits that should fall to `bits`, as a clause."""
    given = f"is {list(schedule)}"
    if not schedule:
        return f"{given}, which names no bits; must end with bits={bits}, or be null"
    wrong = next((entry for entry in schedule if not 2 <= entry <= 8), None)
    if wrong is not None:
        return f"{given}, whose {wrong} isn't within 2 and 8 bits; nearest: {min(max(wrong, 2), 8)}"
    for before, after in itertools.pairwise(schedule):
        if after > before:
            return f"{given}, which raises bits from {before} to {after}, but bits must fall; nearest: {sorted(schedule, reverse=True)}"
    if schedule[-1] != bits:
        return f"{given}, which ends with {schedule[-1]}, but bits={bits}; nearest: bits={schedule[-1]}"
    return None
