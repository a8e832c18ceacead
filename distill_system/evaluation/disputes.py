"""Training labels that a teacher disputes: rows to which it gives another label, the surest first, for a person to look at.

The margin is the teacher's probability of its own choice less that of the given label: p_max - p_label (Northcutt et al. 2021, confident learning,
https://arxiv.org/abs/1911.00068, ranks by the like of it). Differs from the paper in: no out-of-sample predictions by cross-validation, no thresholds for
each class. A teacher that was trained on the very rows has seen the labels it is asked about, so it disputes too few of them: few epochs, or a teacher
from elsewhere, show more.

Shapes: N labelled rows, C classes.
"""

import collections
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from distill_system.evaluation.predict import Predictions
from distill_system.files import write_atomic, write_json
from distill_system.signals import IGNORE

SHOWN = 200  # rows of disputes.json
PAIRS = 30  # of (label, what the teacher says) that are counted one by one
CSV_COLUMNS = ("id", "label", "teacher_label", "margin", "label_probability", "teacher_probability", "text")
FORMULA = ("=", "+", "-", "@")


class Store(Protocol):
    """What is needed of the rows: texts or pictures."""

    def row(self, i: int) -> dict[str, Any]: ...

    def text(self, i: int) -> str: ...


def disputes(predictions: Predictions, store: Store, label_names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a split whose label isn't the teacher's choice, the largest margin first (ties by id).

    Each has the columns of `CSV_COLUMNS`, `true_label` where noise has changed the label on purpose, and `index`, its number in the store.

    Args:
        predictions: of the teacher, over the split; classification only.
        store: of the same split.
        label_names: in the order of the classes.
    """
    assert predictions.task == "classification", predictions.task
    logits_NC, labels_N = predictions.logits_NC, predictions.labels_N
    assert logits_NC is not None
    assert labels_N is not None
    keep_N = labels_N != IGNORE
    probs_NC, labels_N, index_N = (
        logits_NC[keep_N].double().softmax(dim=-1),
        labels_N[keep_N],
        predictions.index_N[keep_N],
    )
    best_N, said_N = probs_NC.max(dim=-1)
    own_N = probs_NC.gather(-1, labels_N[:, None]).squeeze(-1)
    found = []
    for i in (said_N != labels_N).nonzero().flatten().tolist():
        index = int(index_N[i])
        row = store.row(index)
        found.append(
            {
                "id": str(row["id"]),
                "label": label_names[int(labels_N[i])],
                "teacher_label": label_names[int(said_N[i])],
                "margin": float(best_N[i] - own_N[i]),
                "label_probability": float(own_N[i]),
                "teacher_probability": float(best_N[i]),
                "text": store.text(index),
                "index": index,
            }
            | ({"true_label": row["true_label"]} if "true_label" in row else {})
        )
    return sorted(found, key=lambda row: (-row["margin"], row["id"]))


def summary(
    found: Sequence[Mapping[str, Any]], *, rows: int, noisy: int = 0, teacher: str = "teacher", split: str = "train"
) -> dict[str, Any]:
    """Counts, and the first `SHOWN` rows, for disputes.json.

    Args:
        found: from `disputes`.
        rows: labelled rows of the split.
        noisy: how many of them have a wrong label on purpose (`Stores.summary["noisy"]`).
        teacher: its name.
        split: the split's name.
    """
    pairs = collections.Counter((row["label"], row["teacher_label"]) for row in found)
    commonest = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:PAIRS]
    first = found[:SHOWN]
    result: dict[str, Any] = {
        "teacher": teacher,
        "split": split,
        "rows": rows,
        "disputed": len(found),
        "pairs": [{"label": a, "teacher_label": b, "count": count} for (a, b), count in commonest],
        "noise": None,
        "shown": [{key: value for key, value in row.items() if key != "index"} for row in first],
    }
    if noisy:
        wrong = [row for row in found if "true_label" in row]
        result["noise"] = {
            "rows": noisy,
            "disputed": len(wrong),
            "repaired": sum(
                row["teacher_label"] == row["true_label"] for row in wrong
            ),  # the teacher names the true label
            "first": len(first),
            "first_disputed": sum("true_label" in row for row in first),
        }
    return result


def write_disputes(
    folder: Path,
    predictions: Predictions,
    store: Store,
    label_names: Sequence[str],
    *,
    noisy: int = 0,
    teacher: str = "teacher",
    split: str = "train",
) -> dict[str, Any]:
    """Writes `disputes.json` and `disputes.csv` (every disputed row) into a phase's folder and returns what the former holds."""
    found = disputes(predictions, store, label_names)
    assert predictions.labels_N is not None
    rows = int((predictions.labels_N != IGNORE).sum())
    content = summary(found, rows=rows, noisy=noisy, teacher=teacher, split=split)
    picture = getattr(store, "picture", None)
    if picture is not None:
        for shown, row in zip(content["shown"], found, strict=False):
            shown["picture"] = picture(row["index"])
    write_atomic(folder / "disputes.csv", as_csv(found))
    write_json(folder / "disputes.json", content)
    return content


def as_csv(found: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as a table that spreadsheets open: UTF-8 with a mark that says so, quotes where they are needed, no cell that is a formula."""
    columns = [*CSV_COLUMNS, *(["true_label"] if any("true_label" in row for row in found) else [])]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(columns)
    for row in found:
        cells = [row.get(name, "") for name in columns]
        writer.writerow([safe_cell(cell) if isinstance(cell, str) else f"{cell:.6f}" for cell in cells])
    return buffer.getvalue().encode("utf-8-sig", "replace")


def safe_cell(text: str) -> str:
    """A text that a spreadsheet would take for a formula gets a quote before it, which it then shows or hides; it is no part of the text.

    >>> safe_cell("=HYPERLINK(1)"), safe_cell("- a dash"), safe_cell("a = b")
    ("'=HYPERLINK(1)", "'- a dash", 'a = b')
    """
    return f"'{text}" if text.lstrip().startswith(FORMULA) or text[:1] in ("\t", "\r", "\n") else text
