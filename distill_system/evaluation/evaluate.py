"""From predictions to what evaluation.json and predictions.json hold, and the whole evaluation of a saved model on a data source.

Shapes: B samples of a batch, N samples of the split, C classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill_system.data.base import Source
from distill_system.data.collate import Batch, collate
from distill_system.data.tokens import TokenStore, tokenise
from distill_system.errors import Problem, Refusal, refuse
from distill_system.evaluation.latency import measure
from distill_system.evaluation.load import load_model
from distill_system.evaluation.metrics import (
    agreement,
    calibration,
    chance,
    classification_metrics,
    confusion,
    language_metrics,
)
from distill_system.evaluation.predict import Predictions, predict
from distill_system.evaluation.size import size
from distill_system.models.alignment import align_labels, check_tokenizers, cut_vocabulary
from distill_system.models.tokenizers import load_tokenizer
from distill_system.models.weights import max_positions
from distill_system.training.objective import logits_of

ROWS = 2000  # of predictions.json
LARGEST_CONFUSION = 60  # classes; a larger matrix is neither read nor worth its bytes


def phase_evaluation(
    predictions: Predictions,
    *,
    split: str,
    label_names: Sequence[str] = (),
    num_bytes_N: np.ndarray | None = None,
) -> dict[str, Any]:
    """What predictions say, in the shape of evaluation.json: task, split, metrics, teacher, teachers, and calibration and confusion of a classifier.

    A figure that isn't finite becomes None, which JSON can hold.

    Args:
        predictions: of one split.
        split: its name.
        label_names: in the order of the classes; classification only.
        num_bytes_N: UTF-8 bytes that each sample's predicted tokens stand for (`TokenStore.num_bytes`); language modelling only.
    """
    describe = _describe_classes if predictions.task == "classification" else _describe_language
    figures = describe(predictions, label_names, num_bytes_N)
    return finite({"task": predictions.task, "split": split} | figures)


def _describe_classes(predictions: Predictions, label_names: Sequence[str], _: Any) -> dict[str, Any]:
    logits_NC, labels_N = predictions.logits_NC, predictions.labels_N
    assert logits_NC is not None
    assert labels_N is not None
    assert len(label_names) == predictions.classes, (label_names, predictions.classes)
    majority = chance(labels_N)
    figures: dict[str, Any] = {"metrics": classification_metrics(logits_NC, labels_N), "teacher": {}, "teachers": {}}
    for name, teacher_NC in predictions.teacher_logits.items():
        figures["teacher"][name] = agreement(logits_NC, teacher_NC)
        figures["teachers"][name] = classification_metrics(teacher_NC, labels_N) | {"chance": majority}
    figures["calibration"] = calibration(logits_NC, labels_N)
    if len(label_names) <= LARGEST_CONFUSION:
        figures["confusion"] = confusion(logits_NC, labels_N, label_names)
    return figures


def _describe_language(predictions: Predictions, _: Any, num_bytes_N: np.ndarray | None) -> dict[str, Any]:
    tokens = int(predictions.sums["tokens"])
    num_bytes = None if num_bytes_N is None else int(num_bytes_N[predictions.index_N.numpy()].sum())
    metrics = language_metrics(predictions.sums["nll"], tokens, num_bytes)
    figures: dict[str, Any] = {"metrics": metrics, "teacher": {}, "teachers": {}}
    for name, sums in predictions.teacher_sums.items():
        figures["teacher"][name] = {key: sums[key] / tokens for key in ("agreement", "kl")} if tokens else {}
        # Chance is the perplexity of a guess that holds all words for equally likely.
        own = language_metrics(sums["nll"], tokens, num_bytes)
        figures["teachers"][name] = own | {"chance": float(predictions.classes)}
    return figures


def prediction_rows(
    predictions: Predictions, store: TokenStore, label_names: Sequence[str], limit: int = ROWS
) -> dict[str, Any]:
    """What predictions.json holds: single rows of a classifier, evenly spread over the split where it has more than `limit`; the first teacher's beside."""
    assert predictions.logits_NC is not None
    assert predictions.labels_N is not None
    teacher_NC = next(iter(predictions.teacher_logits.values()), None)
    total = len(predictions.index_N)
    chosen = np.unique(np.linspace(0, total - 1, min(limit, total)).round().astype(int)) if total else []

    def answers(logits_NC: Tensor | None) -> list[tuple[str | None, float | None]]:
        if logits_NC is None:
            return [(None, None)] * len(chosen)
        confidence, best = logits_NC[chosen].double().softmax(dim=-1).max(dim=-1)
        return [(label_names[k], c) for k, c in zip(best.tolist(), confidence.tolist(), strict=True)]

    rows = []
    for i, (guess, sure), (teacher_guess, teacher_sure) in zip(
        chosen, answers(predictions.logits_NC), answers(teacher_NC), strict=True
    ):
        sample, label = int(predictions.index_N[i]), int(predictions.labels_N[i])
        row: dict[str, Any] = {
            "id": store.row(sample)["id"],
            "text": store.text(sample),
            "label": label_names[label] if label >= 0 else None,
        }
        row |= {
            "prediction": guess,
            "confidence": sure,
            "teacher_prediction": teacher_guess,
            "teacher_confidence": teacher_sure,
        }
        rows.append(row)
    return finite({"labels": list(label_names), "rows": rows})


def finite(value: Any) -> Any:
    """`value` with None for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate_folder(
    path: Path | str,
    source: Source,
    *,
    split: str = "test",
    teacher: Path | str | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    limit: int | None = None,
) -> dict[str, Any]:
    """Quality, speed and size of the model in a folder, in the shape of evaluation.json, with `warnings` beside.

    Args:
        path: a folder that plain `from_pretrained` loads, such as `runs/<name>/<phase>/model`.
        source: data of the model's task; its labels are matched with the model's by name.
        split: "train", "validation" or "test".
        teacher: another such folder, to report agreement and KL with.
        batch_size: samples in a forward.
        device: where both models run.
        limit: rows at most, evenly spread over the split.

    Raises:
        Refusal: something doesn't fit: the folder, the split, labels, tokenizers, the length of rows.
    """
    if problems := source.problems():
        raise Refusal(problems)
    model = load_model(path, source.task, "path")
    tokenizer = load_tokenizer(path, "path", local_only=True)
    student_order, warnings = _label_order(model, source, "path")
    align: Callable[[Tensor], Tensor] = _identity
    guide: nn.Module | None = None
    if teacher is not None:
        guide = load_model(teacher, source.task, "teacher")
        align, more = _teacher_alignment(guide, teacher, model, tokenizer, source)
        warnings += more
    stores = tokenise(source, tokenizer)
    if split not in stores:
        raise refuse("split", f"is '{split}', which this data has no rows for; it has {', '.join(stores)}")
    store = stores[split]
    roles = {"path": model} | ({"teacher": guide} if guide is not None else {})
    if problems := [problem for key, role in roles.items() for problem in _fits(role, store, key)]:
        raise Refusal(problems)
    indices = (
        np.arange(len(store))
        if limit is None
        else np.unique(np.linspace(0, len(store) - 1, min(limit, len(store))).astype(int))
    )
    model.to(device)
    measured = measure(
        path, source.task, next(_batches(store, indices[:256], 256, tokenizer.pad_token_id)), device=device
    )
    teachers = {}
    if guide is not None:
        guide.to(device)
        teachers["teacher"] = lambda batch: align(logits_of(guide, batch, source.task))
    predictions = predict(
        lambda batch: student_order(logits_of(model, batch, source.task)),
        _batches(store, indices, batch_size, tokenizer.pad_token_id),
        source.task,
        device,
        teachers,
        modules=list(roles.values()),
        samples=len(indices),
    )
    figures = phase_evaluation(predictions, split=split, label_names=stores.label_names, num_bytes_N=store.num_bytes)
    return figures | measured | {"size": size(path), "warnings": warnings + list(stores.summary["warnings"])}


def _identity(logits: Tensor) -> Tensor:
    return logits


def _batches(store: TokenStore, indices: np.ndarray, batch_size: int, pad_id: int) -> Iterator[Batch]:
    """Rows of like length together, the longest first: little padding, and what doesn't fit in memory fails at once."""
    order = indices[np.argsort(-store.lengths[indices], kind="stable")]
    for start in range(0, len(order), batch_size):
        yield collate(store, order[start : start + batch_size].tolist(), pad_id)


def _label_order(model: nn.Module, source: Source, key: str) -> tuple[Callable[[Tensor], Tensor], list[str]]:
    """What brings the model's classes into the data's order."""
    if source.task != "classification":
        return _identity, []
    alignment = align_labels(model.config.id2label, source.label_names(), key)
    if alignment.problems:
        raise Refusal(alignment.problems)
    order = torch.tensor(alignment.order)
    return (lambda logits_BC: logits_BC[..., order.to(logits_BC.device)]), list(alignment.warnings)


def _teacher_alignment(
    teacher: nn.Module, folder: Path | str, student: nn.Module, tokenizer: Any, source: Source
) -> tuple[Callable[[Tensor], Tensor], list[str]]:
    """The teacher reads the student's tokens: their tokenizers must be equal on the range both know."""
    other = load_tokenizer(folder, "teacher", local_only=True)
    if problems := check_tokenizers(other, tokenizer, "teacher"):
        raise Refusal(problems)
    if source.task == "classification":
        return _label_order(teacher, source, "teacher")
    width = student.get_output_embeddings().weight.shape[0]
    shared = min(len(other), len(tokenizer), width)
    return (lambda logits_BTV: cut_vocabulary(logits_BTV, shared, width)), []


def _fits(model: nn.Module, store: TokenStore, key: str) -> list[Problem]:
    """Whether the model has a position for every token of the longest row, and an embedding for every token."""
    problems = []
    positions = max_positions(model.config.get_text_config().to_dict())
    longest, largest = int(store.lengths.max()), int(store.tokens.max())
    if positions and longest > positions:
        setting = "data.max_length" if store.task == "classification" else "data.block_size"
        text = f"has room for {positions} tokens, the longest row has {longest}; set {setting}={positions}"
        problems.append(Problem(key, text))
    words = model.get_input_embeddings().weight.shape[0]
    if largest >= words:
        problems.append(
            Problem(
                key,
                f"has embeddings for {words} tokens, its tokenizer gives token {largest}; they don't belong together",
            )
        )
    return problems
