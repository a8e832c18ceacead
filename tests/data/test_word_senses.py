"""Definitions of nouns: parsing by hand, and the real package (fetched once into the user's cache)."""

import doctest

import pytest

from distill_system.data import word_senses
from distill_system.data.word_senses import WordSenses
from distill_system.errors import Refusal


def test_doctests():
    assert doctest.testmod(word_senses).failed == 0


def test_parsing():
    lines = [
        "  1 licence",
        "00000001 03 n 01 entity 0 000 | what is perceived",
        '00000002 04 n 01 hop 0 000 | a light jump; "a hop"; "two; hops"',
        "00000003 28 n 01 day 0 000 | 24 hours  ",
        "00000004 05 n 01 pup 0 000 | A light  jump",
        '00000005 05 n 01 pup 0 000 | "only an example"',
    ]
    rows = word_senses.parse("\n".join(lines))
    assert rows.ids == ["00000002", "00000003", "00000005"]  # no top concept, no second row of a text
    assert rows.texts == ["a light jump", "24 hours", '"only an example"']
    assert rows.labels == ["act", "time", "animal"]


def test_the_real_ones():
    try:
        splits = WordSenses(limit=2000, label_noise=0.2).read()
        whole = WordSenses().read()
    except Refusal as refusal:
        pytest.skip(str(refusal))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2000, "validation": 2000, "test": 2000}
    assert sum(true is not None for true in splits["train"].true_labels) == 400
    assert sum(map(len, whole.values())) == 81_433
    assert set(whole["train"].labels) == set(WordSenses().label_names())
    keys = [set(rows.text_keys()) for rows in whole.values()]
    assert sum(map(len, keys)) == len(keys[0] | keys[1] | keys[2])
    assert len(WordSenses().label_names()) == 25


def test_a_class_that_isn_t_there():
    (problem,) = WordSenses(without_classes=["animals"]).problems()
    assert "did you mean 'animal'" in problem.message
