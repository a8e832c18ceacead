"""Labels that may be wrong, with a teacher's doubt: it replaces a label it is sure against, or each label weighs what the teacher believes of it.

Shapes: C classes or words of the vocabulary, X any leading dimensions (B samples; or B samples, T tokens).
"""

from typing import Literal

import torch
from torch import Tensor

from distill_system.losses.base import Loss
from distill_system.losses.probabilities import log_probs
from distill_system.schema import Fraction, NonNegative
from distill_system.settings import Schedule
from distill_system.signals import Signals, Targets

DEFAULT_THRESHOLD = {"correct": 0.9, "weigh": 0.0}


def corrected_label(
    student_logits_XC: Tensor, teacher_logits_XC: Tensor, labels_X: Tensor, labelled_X: Tensor, threshold: float = 0.9
) -> Tensor:
    """-log q[y'], where y' is the teacher's class argmax p if max p >= threshold, else the label.

    After Reed et al. 2015, https://arxiv.org/abs/1412.6596, section 3 (hard bootstrapping).
    Differs from the paper in: another model's prediction instead of the student's own, and a threshold where the paper mixes both with a fixed share.

    Args:
        student_logits_XC: any floating type; computed in float32 at least.
        teacher_logits_XC: never receives a gradient; classes of -inf have no probability.
        labels_X: int64, looked at where labelled.
        labelled_X: bool, positions that count: without a label there is nothing to correct.
        threshold: in [0, 1]; 0 trains on the teacher's classes alone, above 1 - 1e-7 or so on the labels.

    Returns:
        `[X]` in nats, 0 where a position doesn't count.
    """
    confidence_X, guess_X = log_probs(teacher_logits_XC.detach(), labelled_X).exp().max(dim=-1)
    labels_X = torch.where(confidence_X >= threshold, guess_X, torch.where(labelled_X, labels_X, 0))
    return _cross_entropy(student_logits_XC, labels_X, labelled_X)


def weighed_label(
    student_logits_XC: Tensor, teacher_logits_XC: Tensor, labels_X: Tensor, labelled_X: Tensor, threshold: float = 0.0
) -> Tensor:
    """-w log q[y] with w = p[y], the teacher's probability of the label y, or w = 0 where that is below the threshold.

    After Liu & Tao 2016, https://arxiv.org/abs/1411.7718 (importance reweighting).
    Differs from the paper in: the weight is the teacher's P(y | x) itself, where the paper divides it by the noisy one and corrects for known rates
    of noise. The sum isn't divided by the weights' sum: doubted labels make the loss smaller.

    Args:
        student_logits_XC: any floating type; computed in float32 at least.
        teacher_logits_XC: never receives a gradient; classes of -inf have no probability.
        labels_X: int64, looked at where labelled.
        labelled_X: bool, positions that count.
        threshold: in [0, 1]; labels that the teacher finds less likely are dropped.

    Returns:
        `[X]` in nats, 0 where a position doesn't count.
    """
    labels_X = torch.where(labelled_X, labels_X, 0)
    belief_X = log_probs(teacher_logits_XC.detach(), labelled_X).gather(-1, labels_X.unsqueeze(-1)).squeeze(-1).exp()
    trusted_X = labelled_X & (belief_X >= threshold) & (belief_X > 0)
    loss_X = _cross_entropy(student_logits_XC, labels_X, trusted_X)
    return torch.where(trusted_X, belief_X * loss_X, 0.0)


def _cross_entropy(logits_XC: Tensor, labels_X: Tensor, keep_X: Tensor) -> Tensor:
    loss_X = -log_probs(logits_XC, keep_X).gather(-1, labels_X.unsqueeze(-1)).squeeze(-1)
    return torch.where(keep_X, loss_X, 0.0)


class CorrectedLabel(Loss):
    """Cross-entropy with labels that the teacher corrects (`corrected_label`) or weighs (`weighed_label`). Rows without a label don't count.

    Args:
        mode: `correct` or `weigh`.
        threshold: `correct`: from which confidence on the teacher's class replaces the label, null: 0.9; `weigh`: below which probability of the
            label, by the teacher, it is dropped, null: none.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True
    needs_labels = True
    needs = ("logits",)
    tasks = ("classification", "token_classification", "causal_lm")
    weighs_rows = True

    def __init__(
        self,
        mode: Literal["correct", "weigh"] = "correct",
        threshold: Fraction | None = None,
        weight: NonNegative | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        self.mode = mode
        self.threshold = DEFAULT_THRESHOLD[mode] if threshold is None else threshold

    def count(self, targets: Targets) -> Tensor:
        return targets.labelled.sum().to(torch.float32)

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        equation = corrected_label if self.mode == "correct" else weighed_label
        loss_X = equation(student.logits, teacher.logits, targets.labels, targets.labelled, self.threshold)
        return targets.total(loss_X), self.count(targets)
