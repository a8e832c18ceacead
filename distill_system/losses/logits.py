"""Losses between the logits of a student and a teacher: soft targets and logit regression.

Shapes: C classes or words of the vocabulary, X any leading dimensions (B samples; or B samples, T tokens).
"""

import torch
from torch import Tensor

from distill_system.losses.base import Loss, at_positions
from distill_system.losses.probabilities import CUT, checked_temperature, divergence, kl
from distill_system.schema import NonNegative, Positive
from distill_system.settings import PositiveSchedule, Schedule
from distill_system.signals import Signals, Targets


def soft_target(
    student_logits_XC: Tensor,
    teacher_logits_XC: Tensor,
    valid_X: Tensor,
    temperature: float = 2.0,
    task: str = "classification",
    weight_X: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """T^2 * KL(p || q) with p = softmax(teacher / T), q = softmax(student / T).

    Hinton, Vinyals & Dean 2015, https://arxiv.org/abs/1503.02531, section 2. T^2 keeps the gradient's scale when T changes.
    Differs from the paper in: the teacher's entropy is subtracted (KL instead of cross-entropy), so that a perfect student has a loss of 0; the
    gradient is the same. In multi-label classification it is the mean over classes of the KL between two yes-or-no distributions.

    Args:
        student_logits_XC: any floating type; computed in float32 at least.
        teacher_logits_XC: never receives a gradient; entries of -inf have no probability and add nothing, whatever the student says there.
        valid_X: bool, positions that count; `[B]` in multi-label classification.
        temperature: T > 0.
        task: of the data.
        weight_X: factor of each position, or None.

    Returns:
        Sum over valid positions in nats, and their number.
    """
    divergence_X = divergence(student_logits_XC, teacher_logits_XC, valid_X, temperature, kl, task=task)
    if weight_X is not None:
        divergence_X = divergence_X * weight_X.to(divergence_X.dtype)
    return temperature**2 * divergence_X.sum(), valid_X.sum().to(torch.float32)


def logit_regression(
    student_logits_XC: Tensor,
    teacher_logits_XC: Tensor,
    valid_X: Tensor,
    centred: bool = False,
    weight_X: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean over classes of (student - teacher)^2, the logits as they are or each minus its mean over the classes.

    Ba & Caruana 2014, https://arxiv.org/abs/1312.6184; Kim et al. 2021, https://arxiv.org/abs/2105.08919. Centred, a constant added to all logits
    of a position, which softmax can't see, costs nothing. In regression the logits are the predicted numbers.
    Differs from the papers in: a mean over classes where they have a sum, so that a weight keeps its meaning when the number of classes changes.

    Args:
        student_logits_XC: any floating type; computed in float32 at least.
        teacher_logits_XC: never receives a gradient. Classes that are -inf on either side are left out of sum and mean.
        valid_X: bool, positions that count.
        centred: subtract each position's mean from both sides first.
        weight_X: factor of each position, or None.

    Returns:
        Sum over valid positions, and their number.
    """
    student_XC, teacher_XC = at_positions(student_logits_XC, valid_X), at_positions(teacher_logits_XC.detach(), valid_X)
    cut_XC = (student_XC == CUT) | (teacher_XC == CUT)
    classes_X1 = (~cut_XC).sum(dim=-1, keepdim=True).clamp(min=1)
    difference_XC = student_XC.masked_fill(cut_XC, 0.0) - teacher_XC.masked_fill(cut_XC, 0.0)
    if centred:  # mean(student) - mean(teacher) = mean(difference)
        difference_XC = difference_XC - difference_XC.sum(dim=-1, keepdim=True) / classes_X1
        difference_XC = difference_XC.masked_fill(cut_XC, 0.0)
    error_XC = difference_XC.square() / classes_X1
    if weight_X is not None:
        error_XC = error_XC * weight_X.to(error_XC.dtype).unsqueeze(-1)
    return error_XC.sum(), valid_X.sum().to(torch.float32)


class SoftTarget(Loss):
    """Soft targets with temperature (`soft_target`).

    Args:
        temperature: T > 0, a number or a schedule; above 1 the teacher's small probabilities weigh more.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True
    needs = ("logits",)
    tasks = ("classification", "multi_label", "token_classification", "causal_lm")
    weighs_rows = True

    def __init__(self, temperature: Positive | PositiveSchedule = 2.0, weight: NonNegative | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.temperature = checked_temperature(temperature)

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        temperature = self.current(self.temperature)
        return soft_target(student.logits, teacher.logits, targets.valid, temperature, targets.task, targets.weight)


class LogitRegression(Loss):
    """Mean squared error between logits (`logit_regression`).

    Args:
        centred: compare logits minus their mean over the classes.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True
    needs = ("logits",)
    tasks = ("classification", "multi_label", "regression", "token_classification", "causal_lm")
    weighs_rows = True

    def __init__(self, centred: bool = False, weight: NonNegative | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.centred = centred

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        return logit_regression(student.logits, teacher.logits, targets.valid, self.centred, targets.weight)
