"""Cells of label columns, and the messages about wrong ones."""

import doctest

import pytest

from distill_system.data import cells
from distill_system.errors import Refusal


def test_doctests():
    assert doctest.testmod(cells).failed == 0


def read(cell, task, **options):
    return cells.labels_from([None, cell], task, key="data.label_column", place="x.jsonl", **options)[1]


@pytest.mark.parametrize(
    ("cell", "task", "label"),
    [
        (" yes ", "classification", "yes"),
        (" a ; b;a; ", "multi_label", ["a", "b"]),
        (["7", " x "], "multi_label", ["7", "x"]),
        ("1e-3", "regression", 0.001),
        (["B-x", None, " "], "token_classification", ["B-x", None, None]),
    ],
)
def test_labels(cell, task, label):
    assert read(cell, task, separator=";") == label


@pytest.mark.parametrize(
    ("cell", "task", "words"),
    [
        (["a"], "classification", "need task=multi_label"),
        (["a", None], "multi_label", "empty entry"),
        ("good", "regression", "'good' in row 2 of x.jsonl, which is not a number"),
        ("nan", "regression", "not a finite number"),
        (["1"], "regression", "not a number"),
        ("O O", "token_classification", "needs a list of tags"),
    ],
)
def test_wrong_labels_name_the_row(cell, task, words):
    with pytest.raises(Refusal, match=r"data\.label_column") as refusal:
        read(cell, task)
    assert words in str(refusal.value)


def test_words():
    options = {"key": "data.text_column", "label_key": "data.label_column", "place": "x.jsonl"}
    assert cells.words_from([["a", "b"]], [None], **options) == [["a", "b"]]
    for cell, tags, words in (
        ("a b", None, "needs a list of words"),
        ([" "], None, "no words in row 1"),
        (["a"], ["O", "O"], "2 tags for 1 words"),
    ):
        with pytest.raises(Refusal, match=words):
            cells.words_from([cell], [tags], **options)
