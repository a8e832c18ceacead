"""Quality of predicted numbers.

Shapes: N samples, C numbers a sample (usually 1).
"""

import math

import torch
from torch import Tensor
from torchmetrics.functional.regression import r2_score

from distill_system.evaluation.names import METRICS


def known_pairs(predictions_NC: Tensor, labels_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted and true numbers, wherever the truth is known, one after another in float64 on the CPU."""
    predictions, labels = predictions_NC.detach().cpu().double().flatten(), labels_NC.detach().cpu().double().flatten()
    keep = ~labels.isnan()
    return predictions[keep], labels[keep]


def correlation(a_N: Tensor, b_N: Tensor) -> float:
    """Pearson's r; NaN where one side doesn't vary, where torchmetrics gives a number and a warning."""
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    scale = (a_N.norm() * b_N.norm()).item()
    return (a_N @ b_N).item() / scale if scale > 0 else math.nan


def ranks(values_N: Tensor) -> Tensor:
    """1 ... N in rising order; equal values share the mean of their ranks.

    >>> ranks(torch.tensor([5.0, 3.0, 5.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, which_N, counts = torch.unique(values_N, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[which_N]


def regression_metrics(predictions_NC: Tensor, labels_NC: Tensor) -> dict[str, float]:
    """Mean squared and absolute error in the labels' units, Pearson's r, Spearman's rho, and R^2: what the mean leaves of the variance is explained.

    Unknown (NaN) labels are left out; `samples` says how many were left in. Without any, the other figures are NaN; correlations and R^2 need two.
    """
    said_N, true_N = known_pairs(predictions_NC, labels_NC)
    samples = len(true_N)
    if not samples:
        return dict.fromkeys(METRICS["regression"], math.nan) | {"samples": 0}
    varies = samples > 1 and true_N.min() < true_N.max()
    ranked = varies and said_N.min() < said_N.max()
    return {
        "mse": (said_N - true_N).square().mean().item(),
        "mae": (said_N - true_N).abs().mean().item(),
        "pearson": correlation(said_N, true_N) if ranked else math.nan,
        "spearman": correlation(ranks(said_N), ranks(true_N)) if ranked else math.nan,
        "r2": r2_score(said_N, true_N).item() if varies else math.nan,
        "samples": samples,
    }


def regression_agreement(student_NC: Tensor, teacher_NC: Tensor) -> dict[str, float]:
    """Mean squared difference of the two, and their correlation."""
    student_N, teacher_N = student_NC.double().flatten(), teacher_NC.double().flatten()
    if not len(student_N):
        return {}
    return {
        "mse": (student_N - teacher_N).square().mean().item(),
        "pearson": correlation(student_N, teacher_N),
    }


def error_of_mean(labels_NC: Tensor) -> float:
    """Mean squared error of always saying the mean; 0 where nothing is known."""
    _, true_N = known_pairs(labels_NC, labels_NC)
    return torch.var(true_N, correction=0).item() if len(true_N) else 0.0
