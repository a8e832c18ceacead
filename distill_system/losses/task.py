"""The task's own loss: cross-entropy with the labels.

Shapes: C classes or words of the vocabulary, X any leading dimensions (B samples; or B samples, T tokens).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_system.losses.base import Loss, at_positions
from distill_system.schema import NonNegative, ProperFraction
from distill_system.signals import IGNORE, Signals, Targets


def hard_label(
    logits_XC: Tensor, labels_X: Tensor, valid_X: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """-(1 - s) log q[label] - s mean over classes of log q, with q = softmax(logits) and s the label smoothing.

    Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7 (a uniform prior over the classes).

    Args:
        logits_XC: any floating type; computed in float32 at least. Classes of -inf don't exist: the mean leaves them out.
        labels_X: int64; a position labelled -100 doesn't count.
        valid_X: bool, positions that count if they are labelled.
        label_smoothing: s in [0, 1).

    Returns:
        Sum over labelled valid positions in nats, and their number.
    """
    labelled_X = valid_X & (labels_X != IGNORE)
    log_probs_XC = F.log_softmax(at_positions(logits_XC, labelled_X), dim=-1)
    labels_X1 = torch.where(labelled_X, labels_X, 0).unsqueeze(-1)
    loss_X = -log_probs_XC.gather(-1, labels_X1).squeeze(-1)
    if label_smoothing > 0:
        cut_XC = log_probs_XC == -torch.inf
        mean_X = log_probs_XC.masked_fill(cut_XC, 0.0).sum(dim=-1) / (~cut_XC).sum(dim=-1)
        loss_X = (1 - label_smoothing) * loss_X - label_smoothing * mean_X
    return torch.where(labelled_X, loss_X, 0.0).sum(), labelled_X.sum().to(torch.float32)


class HardLabel(Loss):
    """Cross-entropy with the labels (`hard_label`).

    Args:
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
        weight: factor of this loss in the total.
    """

    needs_teacher = False

    def __init__(self, label_smoothing: ProperFraction = 0.0, weight: NonNegative = 1.0) -> None:
        super().__init__(weight)
        self.label_smoothing = label_smoothing

    def count(self, targets: Targets) -> Tensor:
        return targets.labelled.sum().to(torch.float32)

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        return hard_label(student.logits, targets.labels, targets.valid, self.label_smoothing)
