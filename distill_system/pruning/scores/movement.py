"""Movement: a weight is worth how far training has moved it away from zero; accumulated beside the training, or learned as a parameter."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from distill_system.errors import refuse
from distill_system.pruning.base import Run
from distill_system.pruning.scores.base import Score
from distill_system.schema import NonNegative, Positive, ProperFraction


def movement(values_n: Tensor, gradient_n: Tensor) -> Tensor:
    """-w g with g = dL/dw: positive where a step along -g takes w away from zero.

    Sanh et al. 2020, https://arxiv.org/abs/2005.07683, equation 4: S(T) = -alpha * sum over t < T of g(t) w(t); alpha changes no order and is left
    out. With g as if no weight was masked (the straight-through estimator), so that a pruned weight's score goes on changing.
    """
    return -(values_n.to(torch.float32) * gradient_n.to(torch.float32))


def penalty_gradient(scores_n: Tensor, penalty: float, total: int) -> Tensor:
    """Derivative by the scores of penalty * mean(sigmoid(S)) over `total` scores: penalty / total * sigmoid(S) (1 - sigmoid(S)).

    Sanh et al. 2020, section 4: it makes scores sink below the threshold of soft movement. The mean is of their code, the paper writes a sum.
    """
    kept_n = torch.sigmoid(scores_n.to(torch.float32))
    return penalty / total * kept_n * (1 - kept_n)


class Movement(Score):
    """Movement pruning (`movement`).

    Differs from the paper in: `accumulated` sums what gradients say of weights in every step, without an optimizer of its own for the scores, and for that
    masked weights keep their gradient: they too are trained on, out of the forward's sight, and count in the gradient's norm. With `learned`, as in the
    paper, they rest.

    Args:
        mode: `accumulated`; or `learned`: scores are parameters with the gradient of their masks, which the phase's optimizer trains.
        threshold: `hard`: the schedule says how many weights go; `soft`: those whose sigmoid(score) isn't above `cutoff`, as many as that are; only
            with learned scores, which a penalty drives down.
        lr_scale: learning rate of learned scores, as a multiple of the phase's; in the paper 1e-2 / 3e-5.
        cutoff: soft: threshold for sigmoid(score), in [0, 1); scores begin at 0, so at 0.5 or above nothing stays at first.
        penalty: soft: factor of the mean of sigmoid(score) in the loss.

    Raises:
        Refusal: a soft threshold for scores that aren't learned.
    """

    suits: ClassVar[tuple[str, ...]] = ("weights", "blocks", "neurons", "heads")
    watches: ClassVar[str] = "gradients"  # learned scores too: they are trained, which is no business of a calibration

    def __init__(
        self,
        mode: Literal["accumulated", "learned"] = "accumulated",
        threshold: Literal["hard", "soft"] = "hard",
        lr_scale: Positive = 300.0,
        cutoff: ProperFraction = 0.1,
        penalty: NonNegative = 400.0,
    ) -> None:
        if threshold == "soft" and mode != "learned":
            raise refuse(
                "threshold",
                "is soft, which needs scores that a penalty can drive down: mode=learned, or threshold=hard",
            )
        self.mode, self.threshold, self.lr_scale, self.cutoff, self.penalty = mode, threshold, lr_scale, cutoff, penalty

    @property
    def learned(self) -> bool:
        return self.mode == "learned"

    @property
    def soft(self) -> bool:
        return self.threshold == "soft"

    @property
    def revives(self) -> bool:
        return True

    def of_elements(self, run: Run, seen: Tensor | None) -> Tensor:
        assert seen is not None
        return seen.to(torch.float32)

    def accumulate(self, seen_n: Tensor, values_n: Tensor, gradient_n: Tensor) -> None:
        seen_n += movement(values_n, gradient_n)

    def keep_soft(self, seen_n: Tensor) -> Tensor:
        """Which weights stay under a soft threshold, `[n]` bool."""
        return torch.sigmoid(seen_n.to(torch.float32)) > self.cutoff

    def penalty_gradient(self, seen_n: Tensor, *, share: float = 1.0, total: int | None = None) -> Tensor:
        """What the penalty adds to the scores' gradient (`penalty_gradient`), `[n]` float32.

        Args:
            seen_n: learned scores, all or some of them.
            share: of the penalty that acts by now, which may grow with the schedule.
            total: all scores, over which the mean is taken; None: these are all.
        """
        return penalty_gradient(seen_n, share * self.penalty, total or max(1, seen_n.numel()))
