"""Cells of a label column as the labels of a task, with the row that is wrong named."""

import math
from collections.abc import Sequence
from typing import Any

from distill_system.errors import refuse


def labels_from(cells: Sequence[Any], task: str, *, separator: str = "|", key: str, place: str) -> list[Any]:
    """The labels of all rows; an empty cell is an unknown label.

    Args:
        cells: texts, lists of texts, or None where a cell is empty.
        task: classification, multi_label, regression or token_classification.
        separator: between the names in a text of multi-label; a cell of nothing but separators says that no label holds.
        key: config key of the column.
        place: the file or split, for messages.

    Raises:
        Refusal: a cell can't be a label of the task.

    >>> labels_from(["a|b", ["c"], [], "|", None], "multi_label", key="data.label_column", place="x.jsonl")
    [['a', 'b'], ['c'], [], [], None]
    >>> labels_from(["1.5", "-2", None], "regression", key="data.label_column", place="x.csv")
    [1.5, -2.0, None]
    """
    read = {
        "classification": _name,
        "multi_label": lambda cell: _names(cell, separator),
        "regression": _number,
        "token_classification": _tags,
    }[task]
    found = []
    for row, cell in enumerate(cells, start=1):
        try:
            found.append(None if cell is None else read(cell))
        except ValueError as error:
            raise refuse(key, f"holds {str(cell)[:60]!r} in row {row} of {place}, {error}") from error
    return found


def _name(cell: Any) -> str:
    if isinstance(cell, list):
        raise ValueError("a list; one label a row is a classification, several need task=multi_label")
    return str(cell).strip()


def _names(cell: Any, separator: str) -> list[str]:
    parts = cell if isinstance(cell, list) else str(cell).split(separator)
    if any(part is None for part in parts):
        raise ValueError("a list with an empty entry; leave it out")
    return list(dict.fromkeys(name for name in (str(part).strip() for part in parts) if name))


def _number(cell: Any) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise ValueError("which is not a number; regression needs numbers such as 3.5") from None
    if not math.isfinite(value):
        raise ValueError("which is not a finite number; leave the cell empty where the value is unknown")
    return value


def _tags(cell: Any) -> list[str | None]:
    if not isinstance(cell, list):
        raise ValueError(
            "not a list; token_classification needs a list of tags, one for each word (jsonl, parquet or .conll)"
        )
    return [None if tag is None or not str(tag).strip() else str(tag).strip() for tag in cell]


def words_from(cells: Sequence[Any], labels: Sequence[Any], *, key: str, label_key: str, place: str) -> list[list[str]]:
    """The words of all rows; each row has as many tags as words.

    Raises:
        Refusal: a cell isn't a list of words, or the number of tags is another.
    """
    found = []
    for row, (cell, tags) in enumerate(zip(cells, labels, strict=True), start=1):
        if not isinstance(cell, list):
            text = f"holds {str(cell)[:60]!r} in row {row} of {place}, not a list; token_classification needs a list of words"
            raise refuse(key, f"{text} (jsonl, parquet or .conll)")
        words = ["" if word is None else str(word) for word in cell]
        if not any(word.strip() for word in words):
            raise refuse(key, f"has no words in row {row} of {place}; leave such rows out")
        if tags is not None and len(tags) != len(words):
            raise refuse(
                label_key, f"has {len(tags)} tags for {len(words)} words in row {row} of {place}; must be as many"
            )
        found.append(words)
    return found
