"""Quality of predictions: of a classifier against labels, of a language model per token and byte, of a student against its teacher.

Shapes: N samples, C classes or words, X any leading dimensions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from distill_system.evaluation.names import METRICS
from distill_system.losses.logits import soft_target
from distill_system.losses.task import hard_label
from distill_system.signals import IGNORE

BINS = 15
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1: torchmetrics puts a confidence of exactly 1 in a bin of its own


def classification_metrics(logits_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Accuracy, macro F1 (classes that occur in labels or predictions), expected calibration error, mean NLL in nats.

    Rows labelled -100 are left out; `samples` says how many were left in. Without any, the other figures are NaN.
    """
    logits_NC, labels_N = _labelled(logits_NC, labels_N)
    samples, classes = logits_NC.shape
    if not samples:
        return dict.fromkeys(METRICS["classification"], math.nan) | {"samples": 0}
    probs_NC = logits_NC.softmax(dim=-1).clamp(max=BELOW_ONE)
    nll, _ = hard_label(logits_NC, labels_N, torch.ones_like(labels_N, dtype=torch.bool))
    return {
        # Counted here: torchmetrics' float32 makes 9 of 10 a little less than 0.9, which a gate at 0.9 would refuse.
        "accuracy": (logits_NC.argmax(dim=-1) == labels_N).sum().item() / samples,
        "macro_f1": multiclass_f1_score(logits_NC, labels_N, classes, average="macro").item(),
        "ece": multiclass_calibration_error(probs_NC, labels_N, classes, n_bins=BINS, norm="l1").item(),
        "nll": nll.item() / samples,
        "samples": samples,
    }


def calibration(logits_NC: Tensor, labels_N: Tensor, bins: int = BINS) -> dict[str, list[dict[str, float]]]:
    """Mean confidence, accuracy and count of each bin of equal width that holds a row; what `ece` is the mean gap of."""
    logits_NC, labels_N = _labelled(logits_NC, labels_N)
    if not len(labels_N):
        return {"bins": []}
    confidence_N, prediction_N = logits_NC.softmax(dim=-1).clamp(max=BELOW_ONE).max(dim=-1)
    bin_N = torch.bucketize(confidence_N.float(), torch.linspace(0, 1, bins + 1), right=True) - 1
    count, confidence, correct = (
        torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_N, values_N.double())
        for values_N in (torch.ones_like(bin_N), confidence_N, prediction_N == labels_N)
    )
    return {
        "bins": [
            {"confidence": total / n, "accuracy": right / n, "count": int(n)}
            for total, right, n in zip(confidence.tolist(), correct.tolist(), count.tolist(), strict=True)
            if n
        ]
    }


def confusion(logits_NC: Tensor, labels_N: Tensor, names: Sequence[str]) -> dict[str, list]:
    """Counts: a row for each true class, a column for each predicted one, both in the order of `names`."""
    logits_NC, labels_N = _labelled(logits_NC, labels_N)
    matrix = multiclass_confusion_matrix(logits_NC.argmax(dim=-1), labels_N, num_classes=len(names))
    return {"labels": list(names), "matrix": matrix.tolist()}


def language_metrics(nll_sum: float, tokens: int, num_bytes: int | None) -> dict[str, float]:
    """Figures per predicted token and per byte of text.

    Args:
        nll_sum: nats over all predicted tokens.
        tokens: predicted tokens (a block's first one isn't).
        num_bytes: UTF-8 bytes of the predicted tokens; None or 0 leaves bits per byte out.
    """
    if not tokens:
        return {"perplexity": math.nan, "nll": math.nan, "tokens": 0}
    nll = nll_sum / tokens
    metrics = {"perplexity": math.exp(nll) if nll < 700 else math.inf, "nll": nll, "tokens": tokens}
    return metrics | ({"bits_per_byte": nll_sum / math.log(2) / num_bytes} if num_bytes else {})


def agreement_sums(student_logits_XC: Tensor, teacher_logits_XC: Tensor, valid_X: Tensor) -> tuple[Tensor, Tensor]:
    """(positions whose likeliest class is the same, sum of KL(teacher || student) in nats at temperature 1) over valid positions."""
    assert student_logits_XC.shape == teacher_logits_XC.shape, (student_logits_XC.shape, teacher_logits_XC.shape)
    same_X = (student_logits_XC.argmax(dim=-1) == teacher_logits_XC.argmax(dim=-1)) & valid_X
    return same_X.sum(), soft_target(student_logits_XC, teacher_logits_XC, valid_X, temperature=1.0)[0]


def agreement(student_logits_NC: Tensor, teacher_logits_NC: Tensor) -> dict[str, float]:
    """Share of rows (labelled or not) on which both choose the same class, and mean KL(teacher || student) in nats."""
    samples = len(student_logits_NC)
    if not samples:
        return {}
    valid_N = torch.ones(samples, dtype=torch.bool, device=student_logits_NC.device)
    same, divergence = agreement_sums(student_logits_NC.double(), teacher_logits_NC.double(), valid_N)
    return {"agreement": same.item() / samples, "kl": divergence.item() / samples}


def chance(labels_N: Tensor) -> float:
    """Accuracy of always answering the commonest class; 0 where no row is labelled."""
    labels_N = labels_N[labels_N != IGNORE]
    return labels_N.bincount().max().item() / len(labels_N) if len(labels_N) else 0.0


def _labelled(logits_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Labelled rows, in float64 on the CPU."""
    labels_N = labels_N.cpu()
    keep_N = labels_N != IGNORE
    return logits_NC.detach().cpu()[keep_N].double(), labels_N[keep_N]
