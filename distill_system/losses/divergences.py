"""Divergences between the teacher's and the student's probabilities, besides the forward KL of `soft_target`: reverse, symmetric, Jensen-Shannon, skew.

Each takes log-probabilities of teacher (p) and student (q) and gives the divergence of each position in nats. The losses around them soften both sides
with a temperature T and multiply with T^2, as soft targets do.

Shapes: C classes or words of the vocabulary, X any leading dimensions (B samples; or B samples, T tokens).
"""

from typing import Literal

import torch
from torch import Tensor

from distill_system.losses.base import Loss
from distill_system.losses.probabilities import checked_temperature, divergence, kl, log_mixture
from distill_system.schema import Fraction, NonNegative, Positive, ProperFraction
from distill_system.settings import PositiveSchedule, Schedule
from distill_system.signals import Signals, Targets


def reverse_kl(log_p_XC: Tensor, log_q_XC: Tensor) -> Tensor:
    """KL(q || p): the student may leave out what the teacher says, but pays for what the teacher wouldn't say (mode seeking).

    Gu et al. 2024 (MiniLLM), https://arxiv.org/abs/2306.08543, equation 1.
    Differs from the paper in: exact, position by position on given texts, where the paper samples whole texts from the student.
    """
    return kl(log_q_XC, log_p_XC)


def symmetric_kl(log_p_XC: Tensor, log_q_XC: Tensor) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2, half of Jeffreys' divergence.

    Jeffreys 1946, https://doi.org/10.1098/rspa.1946.0056.
    Differs from the paper in: the mean of both instead of their sum, so that its size is that of a KL.
    """
    return 0.5 * (kl(log_p_XC, log_q_XC) + kl(log_q_XC, log_p_XC))


def jensen_shannon(log_p_XC: Tensor, log_q_XC: Tensor, beta: float = 0.5) -> Tensor:
    """beta * KL(p || m) + (1 - beta) * KL(q || m) with m = beta * p + (1 - beta) * q; never above ln 2, also where one side has no probability.

    Agarwal et al. 2024 (GKD), https://arxiv.org/abs/2306.13649, section 2. It goes to 0 at both ends, where its *shape* becomes that of a KL:
    divided by beta it tends to KL(p || q) for beta -> 0, and divided by 1 - beta to KL(q || p) for beta -> 1. As in TRL's GKDTrainer, beta = 0 therefore stands
    for the forward KL itself and beta = 1 for the reverse one: the value jumps there, by the factor that is divided away.
    Differs from the paper in: a temperature (of the losses below), and texts of the data instead of the student's own.
    """
    if beta == 0:
        return kl(log_p_XC, log_q_XC)
    if beta == 1:
        return kl(log_q_XC, log_p_XC)
    log_m_XC = log_mixture(log_p_XC, log_q_XC, beta)
    return beta * kl(log_p_XC, log_m_XC) + (1 - beta) * kl(log_q_XC, log_m_XC)


def skew_kl(log_p_XC: Tensor, log_q_XC: Tensor, alpha: float = 0.1, reverse: bool = False) -> Tensor:
    """KL(p || alpha * p + (1 - alpha) * q), or reversed KL(q || (1 - alpha) * p + alpha * q): never above -ln(alpha).

    Ko et al. 2024 (DistiLLM), https://arxiv.org/abs/2402.03898, section 3.1. At alpha = 0 they are the forward and the reverse KL.
    Differs from the paper in: a temperature (of the losses below), and texts of the data instead of its adaptive mix with the student's own.
    """
    own, other = (log_q_XC, log_p_XC) if reverse else (log_p_XC, log_q_XC)
    return kl(own, log_mixture(own, other, alpha) if alpha > 0 else other)


class _Divergence(Loss):
    """What the four share: temperature, T^2, weights of rows."""

    needs_teacher = True
    needs = ("logits",)
    tasks = ("classification", "multi_label", "token_classification", "causal_lm")
    weighs_rows = True

    def __init__(self, temperature: float | Schedule, weight: float | Schedule) -> None:
        super().__init__(weight)
        self.temperature = checked_temperature(temperature)

    def measure(self, log_p_XC: Tensor, log_q_XC: Tensor) -> Tensor:
        raise NotImplementedError

    def teachers_classes(self) -> bool:
        """Whether a class that only the teacher cuts would make it infinite, and is therefore taken from the student too."""
        return False

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        temperature = self.current(self.temperature)
        loss_X = divergence(
            student.logits,
            teacher.logits,
            targets.valid,
            temperature,
            self.measure,
            task=targets.task,
            teachers_classes=self.teachers_classes(),
        )
        loss_X = torch.where(targets.valid, loss_X, 0.0)  # two equal sides and their mixture differ in the last digit
        return temperature**2 * targets.total(loss_X), self.count(targets)


class ReverseKL(_Divergence):
    """KL from student to teacher (`reverse_kl`) of softened probabilities.

    Args:
        temperature: T > 0, a number or a schedule.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True

    def __init__(self, temperature: Positive | PositiveSchedule = 2.0, weight: NonNegative | Schedule = 1.0) -> None:
        super().__init__(temperature, weight)

    def measure(self, log_p_XC: Tensor, log_q_XC: Tensor) -> Tensor:
        return reverse_kl(log_p_XC, log_q_XC)

    def teachers_classes(self) -> bool:
        return True


class SymmetricKL(_Divergence):
    """Mean of forward and reverse KL (`symmetric_kl`) of softened probabilities.

    Args:
        temperature: T > 0, a number or a schedule.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True

    def __init__(self, temperature: Positive | PositiveSchedule = 2.0, weight: NonNegative | Schedule = 1.0) -> None:
        super().__init__(temperature, weight)

    def measure(self, log_p_XC: Tensor, log_q_XC: Tensor) -> Tensor:
        return symmetric_kl(log_p_XC, log_q_XC)

    def teachers_classes(self) -> bool:
        return True


class JensenShannon(_Divergence):
    """Generalised Jensen-Shannon divergence (`jensen_shannon`) of softened probabilities.

    Args:
        beta: share of the teacher in the mixture, in [0, 1]; 0 stands for the forward KL, 1 for the reverse one.
        temperature: T > 0, a number or a schedule.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True

    def __init__(
        self,
        beta: Fraction = 0.5,
        temperature: Positive | PositiveSchedule = 2.0,
        weight: NonNegative | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, weight)
        self.beta = beta

    def measure(self, log_p_XC: Tensor, log_q_XC: Tensor) -> Tensor:
        return jensen_shannon(log_p_XC, log_q_XC, self.beta)

    def teachers_classes(self) -> bool:
        return self.beta == 1


class SkewKL(_Divergence):
    """KL to a mixture with a little of one's own probabilities (`skew_kl`), softened.

    Args:
        direction: `forward` from the teacher, `reverse` from the student.
        alpha: share of one's own in the mixture, in [0, 1); 0: the plain KL.
        temperature: T > 0, a number or a schedule.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True

    def __init__(
        self,
        direction: Literal["forward", "reverse"] = "forward",
        alpha: ProperFraction = 0.1,
        temperature: Positive | PositiveSchedule = 2.0,
        weight: NonNegative | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, weight)
        self.direction = direction
        self.alpha = alpha

    def measure(self, log_p_XC: Tensor, log_q_XC: Tensor) -> Tensor:
        return skew_kl(log_p_XC, log_q_XC, self.alpha, self.direction == "reverse")

    def teachers_classes(self) -> bool:
        return self.alpha == 0 and self.direction == "reverse"
