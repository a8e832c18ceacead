"""The task's own loss: cross-entropy with the labels, of one class or of each of several; squared error where labels are numbers.

Shapes: C classes, words of the vocabulary or numbers, X any leading dimensions (B samples; or B samples, T tokens).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_system.losses.base import Loss, at_positions
from distill_system.schema import NonNegative, ProperFraction
from distill_system.settings import Schedule
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


def multi_label(
    logits_BC: Tensor, labels_BC: Tensor, valid_B: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean over a row's known classes of -y log q - (1 - y) log(1 - q), with q = sigmoid(logit) and y = (1 - s) label + s / 2.

    Differs from torch's sum over everything in: a mean over classes, so that a weight keeps its meaning when the number of classes changes.

    Args:
        logits_BC: any floating type; computed in float32 at least. Classes of -inf don't exist: the mean leaves them out.
        labels_BC: 0 or 1, NaN where unknown.
        valid_B: bool, rows that count if anything of them is known.
        label_smoothing: s in [0, 1).

    Returns:
        Sum over valid rows with a known class in nats, and their number.
    """
    logits_BC, labels_BC, known_BC = _known(logits_BC, labels_BC, valid_B)
    there_BC = known_BC & (logits_BC != -torch.inf)
    smooth_BC = (1 - label_smoothing) * labels_BC + label_smoothing / 2
    loss_BC = F.binary_cross_entropy_with_logits(torch.where(there_BC, logits_BC, 0.0), smooth_BC, reduction="none")
    return _sum_of_means(loss_BC, there_BC), known_BC.any(dim=-1).sum().to(torch.float32)


def squared_error(logits_BC: Tensor, labels_BC: Tensor, valid_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over a row's known numbers of (prediction - label)^2.

    Args:
        logits_BC: predictions, any floating type; computed in float32 at least.
        labels_BC: numbers, NaN where unknown.
        valid_B: bool, rows that count if anything of them is known.

    Returns:
        Sum over valid rows with a known number, and their number.
    """
    logits_BC, labels_BC, known_BC = _known(logits_BC, labels_BC, valid_B)
    return _sum_of_means((logits_BC - labels_BC).square(), known_BC), known_BC.any(dim=-1).sum().to(torch.float32)


def _known(logits_BC: Tensor, labels_BC: Tensor, valid_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and labels, both 0 where the row isn't valid or the label is unknown, and where they are known."""
    known_BC = valid_B.unsqueeze(-1) & ~labels_BC.isnan()
    logits_BC = torch.where(known_BC, at_positions(logits_BC, valid_B), 0.0)
    return logits_BC, torch.where(known_BC, labels_BC, 0.0).to(logits_BC.dtype), known_BC


def _sum_of_means(loss_BC: Tensor, known_BC: Tensor) -> Tensor:
    return (torch.where(known_BC, loss_BC, 0.0).sum(dim=-1) / known_BC.sum(dim=-1).clamp(min=1)).sum()


class HardLabel(Loss):
    """The task's own loss: `hard_label`, in multi-label classification `multi_label`, in regression `squared_error`.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1). Numbers (regression) have no classes: not used there.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = False
    needs_labels = True
    needs = ("logits",)
    tasks = ("classification", "multi_label", "regression", "token_classification", "causal_lm")

    def __init__(self, label_smoothing: ProperFraction = 0.0, weight: NonNegative | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.label_smoothing = label_smoothing

    def count(self, targets: Targets) -> Tensor:
        return targets.labelled.sum().to(torch.float32)

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        if targets.task == "regression":
            return squared_error(student.logits, targets.labels, targets.valid)
        if targets.task == "multi_label":
            return multi_label(student.logits, targets.labels, targets.valid, self.label_smoothing)
        return hard_label(student.logits, targets.labels, targets.valid, self.label_smoothing)
