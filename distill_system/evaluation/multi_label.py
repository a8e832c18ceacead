"""Quality where any number of labels may hold for a row: each label is a yes or no of its own, at probability 1/2.

Shapes: N samples, C labels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_average_precision

from distill_system.evaluation.names import METRICS


def known_rows(logits_NC: Tensor, labels_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose labels are all known, in float64 on the CPU."""
    labels_NC = labels_NC.detach().cpu().double()
    keep_N = ~labels_NC.isnan().any(dim=1)
    return logits_NC.detach().cpu().double()[keep_N], labels_NC[keep_N]


def f1(hits: Tensor, false_alarms: Tensor, misses: Tensor) -> Tensor:
    """2 hits / (2 hits + false alarms + misses), NaN where a label neither occurs nor is said."""
    return 2 * hits / (2 * hits + false_alarms + misses)


def multi_label_metrics(logits_NC: Tensor, labels_NC: Tensor) -> dict[str, float]:
    """Macro F1 (labels that occur or are said), micro F1, share of rows with all labels right, mean average precision (labels that occur), NLL a label.

    Rows that hold a NaN are left out; `samples` says how many were left in. Without any, the other figures are NaN.
    """
    logits_NC, labels_NC = known_rows(logits_NC, labels_NC)
    samples, labels = logits_NC.shape
    if not samples:
        return dict.fromkeys(METRICS["multi_label"], math.nan) | {"samples": 0}
    said_NC, true_NC = logits_NC > 0, labels_NC > 0.5
    hits_C, alarms_C, misses_C = (
        part_NC.sum(dim=0).double() for part_NC in (said_NC & true_NC, said_NC & ~true_NC, ~said_NC & true_NC)
    )
    precisions = [
        binary_average_precision(logits_NC[:, label].sigmoid(), true_NC[:, label].long()).item()
        for label in range(labels)
        if true_NC[:, label].any()
    ]
    return {
        "macro_f1": f1(hits_C, alarms_C, misses_C).nanmean().item(),
        "micro_f1": f1(hits_C.sum(), alarms_C.sum(), misses_C.sum()).item(),
        "exact_match": (said_NC == true_NC).all(dim=1).double().mean().item(),
        "mean_average_precision": sum(precisions) / len(precisions) if precisions else math.nan,
        "nll": F.binary_cross_entropy_with_logits(logits_NC, labels_NC).item(),
        "samples": samples,
    }


def multi_label_agreement(student_NC: Tensor, teacher_NC: Tensor) -> dict[str, float]:
    """Share of all yes-or-no decisions that are the same, and mean KL(teacher || student) of a decision in nats."""
    student_NC, teacher_NC = student_NC.double(), teacher_NC.double()
    if not student_NC.numel():
        return {}
    same = ((student_NC > 0) == (teacher_NC > 0)).double().mean().item()
    yes_NC = teacher_NC.sigmoid()
    kl_NC = yes_NC * (F.logsigmoid(teacher_NC) - F.logsigmoid(student_NC))
    kl_NC += (1 - yes_NC) * (F.logsigmoid(-teacher_NC) - F.logsigmoid(-student_NC))
    return {"agreement": same, "kl": kl_NC.mean().item()}


def commonest_set(labels_NC: Tensor) -> float:
    """Share of rows that the commonest set of labels fits exactly; 0 where no row is known."""
    _, labels_NC = known_rows(labels_NC, labels_NC)
    if not len(labels_NC):
        return 0.0
    _, counts = torch.unique(labels_NC, dim=0, return_counts=True)
    return counts.max().item() / len(labels_NC)


def decisions(logits_NC: Tensor, labels_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Each yes-or-no decision as a row of its own with the classes no and yes, for a calibration: logits `[N*C, 2]`, labels `[N*C]`."""
    logits_NC, labels_NC = known_rows(logits_NC, labels_NC)
    flat = logits_NC.flatten()
    return torch.stack([torch.zeros_like(flat), flat], dim=1), labels_NC.flatten().long()
