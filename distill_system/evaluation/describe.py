"""What predictions of each task say, as plain values: figures for evaluation.json, answers in words for predictions.json.

Shapes: N samples of the split, C classes, P labelled words, K rows that are shown.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_system.data.tokens import TokenStore
from distill_system.evaluation import multi_label, regression, tags
from distill_system.evaluation.metrics import (
    agreement,
    calibration,
    chance,
    classification_metrics,
    confusion,
    language_metrics,
)
from distill_system.evaluation.predict import Predictions

LARGEST_CONFUSION = 60  # classes; a larger matrix is neither read nor worth its bytes

Answer = tuple[Any, float | None]  # what is said of a row, and how sure


def figures_of(predictions: Predictions, label_names: Sequence[str], num_bytes_N: np.ndarray | None) -> dict[str, Any]:
    """metrics, teacher and teachers, and what else a task has: calibration, confusion, what F1 is of."""
    if predictions.task == "causal_lm":
        return language(predictions, num_bytes_N)
    logits, labels = predictions.logits_NC, predictions.labels_N
    assert logits is not None
    assert labels is not None
    assert predictions.task == "regression" or len(label_names) == predictions.classes, (label_names, logits.shape)
    teachers = {
        name: quality(predictions, teacher, label_names) for name, teacher in predictions.teacher_logits.items()
    }
    found: dict[str, Any] = {
        "metrics": quality(predictions, logits, label_names),
        "teacher": {
            n: likeness(predictions.task, logits, teacher) for n, teacher in predictions.teacher_logits.items()
        },
        "teachers": {name: own | {"chance": chance_of(predictions)} for name, own in teachers.items()},
    }
    if predictions.task in ("classification", "token_classification"):
        found["calibration"] = calibration(logits, labels)
        if len(label_names) <= LARGEST_CONFUSION:
            found["confusion"] = confusion(logits, labels, label_names)
    if predictions.task == "multi_label":
        found["calibration"] = calibration(*multi_label.decisions(logits, labels))
    if predictions.task == "token_classification":
        found["f1_of"] = "spans" if tags.is_bio(label_names) else "tags"
    return found


def quality(predictions: Predictions, logits: Tensor, label_names: Sequence[str]) -> dict[str, float]:
    """The metrics of the task, of the model or of a teacher."""
    labels = predictions.labels_N
    assert labels is not None
    if predictions.task == "token_classification":
        assert predictions.samples_P is not None
        return tags.tag_metrics(logits, labels, predictions.samples_P, label_names)
    measures = {
        "classification": classification_metrics,
        "multi_label": multi_label.multi_label_metrics,
        "regression": regression.regression_metrics,
    }
    return measures[predictions.task](logits, labels)


def likeness(task: str, student: Tensor, teacher: Tensor) -> dict[str, float]:
    """How near a student is to its teacher, on rows with and without labels (of token classification, on labelled words)."""
    measures = {
        "multi_label": multi_label.multi_label_agreement,
        "regression": regression.regression_agreement,
    }
    return measures.get(task, agreement)(student, teacher)


def chance_of(predictions: Predictions) -> float:
    """`names.CHANCE_METRIC` of the best answer that doesn't look at the input: the commonest class or set, the mean, any word."""
    labels = predictions.labels_N
    if labels is None:
        return float(predictions.classes)
    if predictions.task == "multi_label":
        return multi_label.commonest_set(labels)
    return regression.error_of_mean(labels) if predictions.task == "regression" else chance(labels)


def language(predictions: Predictions, num_bytes_N: np.ndarray | None) -> dict[str, Any]:
    tokens = int(predictions.sums["tokens"])
    num_bytes = None if num_bytes_N is None else int(num_bytes_N[predictions.index_N.numpy()].sum())
    metrics = language_metrics(predictions.sums["nll"], tokens, num_bytes)
    figures: dict[str, Any] = {"metrics": metrics, "teacher": {}, "teachers": {}}
    for name, sums in predictions.teacher_sums.items():
        figures["teacher"][name] = {key: sums[key] / tokens for key in ("agreement", "kl")} if tokens else {}
        # Chance is the perplexity of a guess that holds all words for equally likely.
        own = language_metrics(sums["nll"], tokens, num_bytes)
        figures["teachers"][name] = own | {"chance": chance_of(predictions)}
    return figures


def answers(
    predictions: Predictions, logits: Tensor | None, chosen_K: np.ndarray, store: TokenStore, label_names: Sequence[str]
) -> list[Answer]:
    """What a model says of the samples at the places `chosen_K` of `index_N`; (None, None) each without logits.

    How sure it is: the probability of its answer; of several labels or tags, of the one it is least sure of; a number carries none.
    """
    if logits is None:
        return [(None, None)] * len(chosen_K)
    if predictions.task == "token_classification":
        return [_sentence(predictions, logits, int(predictions.index_N[k]), store, label_names) for k in chosen_K]
    logits = logits[chosen_K].double()
    if predictions.task == "regression":
        return [(row[0] if len(row) == 1 else row, None) for row in logits.tolist()]
    if predictions.task == "multi_label":
        sure_K = torch.maximum(logits.sigmoid(), 1 - logits.sigmoid()).min(dim=1).values
        return [(_set(row > 0, label_names), sure) for row, sure in zip(logits, sure_K.tolist(), strict=True)]
    sure_K, best_K = logits.softmax(dim=-1).max(dim=-1)
    return [(label_names[k], sure) for k, sure in zip(best_K.tolist(), sure_K.tolist(), strict=True)]


def truths(predictions: Predictions, chosen_K: np.ndarray, store: TokenStore, label_names: Sequence[str]) -> list[Any]:
    """The labels of the same samples in the same words; None where unknown."""
    labels = predictions.labels_N
    assert labels is not None
    if predictions.task == "token_classification":
        exact = torch.nn.functional.one_hot(labels, predictions.classes).float()
        found = answers(predictions, exact, chosen_K, store, label_names)
        return [answer if sure is not None else None for answer, sure in found]
    chosen = labels[chosen_K]
    if predictions.task == "classification":
        return [label_names[k] if k >= 0 else None for k in chosen.tolist()]
    if predictions.task == "regression":
        rows = [[None if value != value else value for value in row] for row in chosen.tolist()]
        return [row[0] if len(row) == 1 else row for row in rows]
    return [None if row.isnan().any() else _set(row > 0.5, label_names) for row in chosen]


def _set(holds_C: Tensor, label_names: Sequence[str]) -> str:
    return ", ".join(name for name, holds in zip(label_names, holds_C.tolist(), strict=True) if holds) or "(no label)"


def _sentence(
    predictions: Predictions, logits: Tensor, sample: int, store: TokenStore, label_names: Sequence[str]
) -> Answer:
    assert predictions.samples_P is not None
    at = torch.searchsorted(predictions.samples_P, torch.tensor([sample, sample + 1])).tolist()
    if at[0] == at[1]:  # no word of it has a label
        return None, None
    sure, best = logits[at[0] : at[1]].double().softmax(dim=-1).max(dim=-1)
    row = store.row(sample)
    words = row["words"] if "tagged" not in row else [row["words"][i] for i in row["tagged"]]
    return tags.spans_in_words(words, [label_names[k] for k in best.tolist()]), float(sure.min())
