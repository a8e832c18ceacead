"""Decoupled knowledge distillation: the teacher's say on the labelled class and its say on all the others, each with a weight of its own.

Shapes: C classes or words of the vocabulary, X any leading dimensions (B samples; or B samples, T tokens), 2 target class and all others.
"""

import torch
from torch import Tensor

from distill_system.losses.base import Loss
from distill_system.losses.probabilities import CUT, checked_temperature, kl, log_probs
from distill_system.schema import NonNegative, Positive
from distill_system.settings import PositiveSchedule, Schedule
from distill_system.signals import Signals, Targets


def decoupled(
    student_logits_XC: Tensor,
    teacher_logits_XC: Tensor,
    labels_X: Tensor,
    labelled_X: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """T^2 * (alpha * TCKD + beta * NCKD) of each position, with probabilities p, q of teacher and student at temperature T and label y.

    TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y)); NCKD = KL(p' || q'), where p' and q' are the probabilities of the classes other than y, divided by
    their sum. Soft targets are TCKD + (1 - p_y) * NCKD: the surer the teacher, the less its other classes tell; here they tell as much as beta says.

    Zhao et al. 2022, https://arxiv.org/abs/2203.08526, equation 7.
    Differs from the paper in: log-probabilities throughout, where the authors subtract 1000 from the target's logit and add 1e-8. The authors let
    the weight rise over the first 20 epochs: `weight={start:0,end:1,until:0.1}`.

    Args:
        student_logits_XC: any floating type; computed in float32 at least.
        teacher_logits_XC: never receives a gradient; classes of -inf have no probability.
        labels_X: int64, looked at where labelled.
        labelled_X: bool, positions that count.
        temperature: T > 0.
        alpha: weight of the target class.
        beta: weight of the other classes. Where there is only one (C = 2, or all others are cut) NCKD is 0.

    Returns:
        `[X]`, 0 where a position doesn't count.
    """
    labels_X1 = torch.where(labelled_X, labels_X, 0).unsqueeze(-1)
    target_q_X2, others_q_XC = _split(log_probs(student_logits_XC, labelled_X, temperature), labels_X1)
    target_p_X2, others_p_XC = _split(log_probs(teacher_logits_XC.detach(), labelled_X, temperature), labels_X1)
    loss_X = alpha * kl(target_p_X2, target_q_X2)
    if beta > 0:
        loss_X = loss_X + beta * kl(others_p_XC, others_q_XC)
    return torch.where(labelled_X, temperature**2 * loss_X, 0.0)


def _split(log_probs_XC: Tensor, labels_X1: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[X, 2]` of (target, others), and `[X, C]` among the others, where the target is -inf."""
    others_XC = log_probs_XC.scatter(-1, labels_X1, CUT)
    # Without any other class a sum over -inf has no gradient: the target takes their place, and KL sees equal sides.
    alone_X1 = (others_XC == CUT).all(dim=-1, keepdim=True)
    rest_X1 = torch.where(alone_X1, 0.0, others_XC).logsumexp(dim=-1, keepdim=True)
    target_X2 = torch.cat((log_probs_XC.gather(-1, labels_X1), rest_X1.masked_fill(alone_X1, CUT)), dim=-1)
    return target_X2, others_XC - rest_X1.masked_fill(alone_X1, 0.0)


class Decoupled(Loss):
    """Decoupled knowledge distillation (`decoupled`). Positions without a label don't count.

    Args:
        alpha: weight of the teacher's say on the labelled class.
        beta: weight of its say on the other classes.
        temperature: T > 0, a number or a schedule.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True
    needs_labels = True
    needs = ("logits",)
    tasks = ("classification", "token_classification", "causal_lm")
    weighs_rows = True

    def __init__(
        self,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 8.0,
        temperature: Positive | PositiveSchedule = 4.0,
        weight: NonNegative | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        self.alpha = alpha
        self.beta = beta
        self.temperature = checked_temperature(temperature)

    def count(self, targets: Targets) -> Tensor:
        return targets.labelled.sum().to(torch.float32)

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        temperature = self.current(self.temperature)
        loss_X = decoupled(
            student.logits, teacher.logits, targets.labels, targets.labelled, temperature, self.alpha, self.beta
        )
        return targets.total(loss_X), self.count(targets)
