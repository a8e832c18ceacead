"""Rows as the arrays of a token store: tokens with the model's special ones, and the labels of each task.

Shapes: N rows, C labels.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from distill_system.data.base import Rows
from distill_system.errors import refuse

IGNORE = -100  # signals.IGNORE, which would import torch
CHUNK = 1000  # rows that a tokenizer gets at once


def samples(
    rows: Rows, tokenizer: Any, max_length: int, names: list[str], task: str
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]], int]:
    """Each row with the model's special tokens, cut at `max_length`: arrays of a token store, what is kept of each row for reports, and how many were cut."""
    with_types = rows.pairs is not None and "token_type_ids" in tokenizer.model_input_names
    if rows.words is not None and not tokenizer.is_fast:
        raise refuse(
            "data.task",
            f"is {task}, which needs a tokenizer that says which word a token is of; {type(tokenizer).__name__} doesn't",
        )
    tokens, types, shortened = [], [], 0
    tags: list[int] = []
    tagged: list[list[int]] = []  # of each row, the words whose tag is known and that have a token
    spare = next(
        (i for i in (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None), 0
    )
    known = rows.labels or [None] * len(rows)
    options = {
        "truncation": True,
        "max_length": max_length,
        "return_attention_mask": False,
        "return_token_type_ids": with_types,
    }
    number = {name: i for i, name in enumerate(names)}
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        if rows.words is not None:
            encoded = tokenizer(rows.words[part], is_split_into_words=True, **options)
            for at, row_tags in enumerate(known[part]):
                word_ids = encoded.word_ids(at) or [None]
                own = first_pieces(word_ids, row_tags, number)
                tags += own
                tagged.append([int(w) for w, tag in zip(word_ids, own, strict=True) if w is not None and tag != IGNORE])
        else:
            encoded = tokenizer(rows.texts[part], rows.pairs[part] if rows.pairs is not None else None, **options)
        tokens += [ids or [spare] for ids in encoded["input_ids"]]  # a text of nothing but ignored characters
        types += [t or [0] for t in encoded["token_type_ids"]] if with_types else []
        shortened += sum(bool(encoding.overflowing) for encoding in encoded.encodings or [])
    arrays = {
        "tokens": np.fromiter((i for ids in tokens for i in ids), dtype=np.int32),
        "offsets": np.cumsum([0] + [len(ids) for ids in tokens], dtype=np.int64),
        "labels": np.array(tags, dtype=np.int64) if task == "token_classification" else as_array(known, names, task),
        "num_bytes": np.zeros(len(rows), dtype=np.int64),
    }
    if with_types:
        arrays["type_ids"] = np.fromiter((i for ids in types for i in ids), dtype=np.int8)
    return arrays, list(_described(rows, tagged)), shortened


def first_pieces(word_of_token: list[int | None], tags: list[str | None] | None, number: dict[str, int]) -> list[int]:
    """The tag of each word on its first token, -100 on all other tokens, and where the tag is unknown.

    >>> first_pieces([None, 0, 0, 1, None], ["B-x", "O"], {"B-x": 0, "O": 1})
    [-100, 0, -100, 1, -100]
    """
    found = []
    for before, word in zip([None, *word_of_token], word_of_token, strict=False):
        tag = tags[word] if tags is not None and word is not None and word != before else None
        found.append(IGNORE if tag is None else number[tag])
    return found


def as_array(labels: list[Any], names: list[str], task: str) -> np.ndarray:
    """The labels of all rows: classes [N], or numbers [N, C] in multi-label (1 where a label holds) and regression (C = 1).

    >>> as_array([["b"], None], ["a", "b"], "multi_label").tolist(), as_array(["b", None], ["a", "b"], "classification").tolist()
    ([[0.0, 1.0], [nan, nan]], [1, -100])
    """
    number = {name: i for i, name in enumerate(names)}
    if task == "classification":
        return np.array([IGNORE if label is None else number[label] for label in labels], dtype=np.int64)
    array_NC = np.full((len(labels), max(1, len(names)) if task == "multi_label" else 1), np.nan, dtype=np.float32)
    for row, label in enumerate(labels):
        if label is None:
            continue
        if task == "multi_label":
            array_NC[row] = 0
            array_NC[row, [number[name] for name in label]] = 1
        else:
            array_NC[row] = label
    return array_NC


def _described(rows: Rows, tagged: list[list[int]]) -> Iterator[dict[str, Any]]:
    """What rows.jsonl keeps of each row; `tagged` says which words carry a label, in their order, where that isn't all of them."""
    for i, (id_, text) in enumerate(zip(rows.ids, rows.texts, strict=True)):
        more = {"pair": rows.pairs, "true_label": rows.true_labels, "words": rows.words}
        row = {name: column[i] for name, column in more.items() if column is not None and column[i] is not None}
        if rows.words is not None and tagged[i] != list(range(len(rows.words[i]))):
            row["tagged"] = tagged[i]
        yield {"id": id_, "text": text} | row
