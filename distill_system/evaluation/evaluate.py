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
from distill_system.data.pixels import PixelStore
from distill_system.data.tokens import TokenStore, tokenise
from distill_system.errors import Problem, Refusal, refuse
from distill_system.evaluation.describe import answers, figures_of, truths
from distill_system.evaluation.latency import measure
from distill_system.evaluation.load import load_model
from distill_system.evaluation.predict import Predictions, predict
from distill_system.evaluation.readers import reader_for, saved_reader
from distill_system.evaluation.size import size
from distill_system.evaluation.thumbnails import add_pictures
from distill_system.models.alignment import align_labels, check_tokenizers, cut_vocabulary
from distill_system.models.weights import max_positions
from distill_system.training.objective import logits_of

ROWS = 2000  # of predictions.json


def phase_evaluation(
    predictions: Predictions,
    *,
    split: str,
    label_names: Sequence[str] = (),
    num_bytes_N: np.ndarray | None = None,
) -> dict[str, Any]:
    """What predictions say, in the shape of evaluation.json: task, split, metrics, teacher, teachers, and what else a task has (calibration, confusion).

    A figure that isn't finite becomes None, which JSON can hold.

    Args:
        predictions: of one split.
        split: its name.
        label_names: in the order of the classes; none in regression and language modelling.
        num_bytes_N: UTF-8 bytes that each sample's predicted tokens stand for (`TokenStore.num_bytes`); language modelling only.
    """
    figures = figures_of(predictions, label_names, num_bytes_N)
    return finite({"task": predictions.task, "split": split} | figures)


def prediction_rows(
    predictions: Predictions, store: TokenStore, label_names: Sequence[str], limit: int = ROWS
) -> dict[str, Any]:
    """What predictions.json holds: single rows, evenly spread over the split where it has more than `limit`; the first teacher's answers beside."""
    teacher = next(iter(predictions.teacher_logits.values()), None)
    total = len(predictions.index_N)
    chosen = np.unique(np.linspace(0, total - 1, min(limit, total)).round().astype(int)) if total else np.zeros(0, int)
    mine, theirs = (answers(predictions, part, chosen, store, label_names) for part in (predictions.logits_NC, teacher))
    true = truths(predictions, chosen, store, label_names)
    rows = []
    for i, label, (guess, sure), (teacher_guess, teacher_sure) in zip(chosen, true, mine, theirs, strict=True):
        sample = int(predictions.index_N[i])
        row: dict[str, Any] = {"id": store.row(sample)["id"], "text": store.text(sample), "label": label}
        row |= {
            "prediction": guess,
            "confidence": sure,
            "teacher_prediction": teacher_guess,
            "teacher_confidence": teacher_sure,
        }
        rows.append(row)
    add_pictures(rows, [int(predictions.index_N[i]) for i in chosen], store)
    return finite({"task": predictions.task, "labels": list(label_names), "rows": rows})


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
    tokenizer, notes = reader_for(source, saved_reader(path, "path"), model.config, "path")
    student_order, warnings = _label_order(model, source, "path")
    warnings += notes
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
    pad_id = getattr(tokenizer, "pad_token_id", None)
    model.to(device)
    measured = measure(path, source.task, next(_batches(store, indices[:256], 256, pad_id)), device=device)
    teachers = {}
    if guide is not None:
        guide.to(device)
        teachers["teacher"] = lambda batch: align(logits_of(guide, batch, source.task))
    predictions = predict(
        lambda batch: student_order(logits_of(model, batch, source.task)),
        _batches(store, indices, batch_size, pad_id),
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


def _batches(store: TokenStore, indices: np.ndarray, batch_size: int, pad_id: int | None) -> Iterator[Batch]:
    """Rows of like length together, the longest first: little padding, and what doesn't fit in memory fails at once."""
    order = indices[np.argsort(-store.lengths[indices], kind="stable")]
    for start in range(0, len(order), batch_size):
        yield collate(store, order[start : start + batch_size].tolist(), pad_id)


def _label_order(model: nn.Module, source: Source, key: str) -> tuple[Callable[[Tensor], Tensor], list[str]]:
    """What brings the model's classes into the data's order."""
    if source.task == "causal_lm":
        return _identity, []
    if source.task == "regression":
        if len(model.config.id2label) != 1:
            raise refuse(key, f"has {len(model.config.id2label)} outputs, must have 1: the data's labels are numbers")
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
    other = saved_reader(folder, "teacher")
    reader_for(source, other, teacher.config, "teacher")
    if problems := check_tokenizers(other, tokenizer, "teacher"):
        raise Refusal(problems)
    if source.task != "causal_lm":
        return _label_order(teacher, source, "teacher")
    width = student.get_output_embeddings().weight.shape[0]
    shared = min(len(other), len(tokenizer), width)
    return (lambda logits_BTV: cut_vocabulary(logits_BTV, shared, width)), []


def _fits(model: nn.Module, store: TokenStore, key: str) -> list[Problem]:
    """Whether the model has a position for every token of the longest row, and an embedding for every token."""
    if isinstance(store, PixelStore):
        return []  # told by the config already, see `reader_for`
    problems = []
    positions = max_positions(model.config.get_text_config().to_dict())
    longest, largest = int(store.lengths.max()), int(store.tokens.max())
    if positions and longest > positions:
        setting = "data.block_size" if store.task == "causal_lm" else "data.max_length"
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
