"""Spans and their F1 against examples worked by hand and properties."""

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill_system.evaluation import tags

TAGS = st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"]), max_size=12)


def test_doctests():
    assert doctest.testmod(tags).failed == 0


@given(TAGS)
def test_spans_cover_exactly_the_words_with_a_tag(sentence):
    found = tags.spans(sentence)
    covered = [at for _, start, end in found for at in range(start, end)]
    assert covered == [at for at, tag in enumerate(sentence) if tag != "O"]
    assert all(sentence[at][2:] == kind for kind, start, end in found for at in range(start, end))
    assert all(sentence[at][0] == "I" for _, start, end in found for at in range(start + 1, end))


@given(TAGS, TAGS)
def test_f1_is_the_same_both_ways_and_one_for_itself(a, b):
    size = min(len(a), len(b))
    one, other = tags.span_f1([a[:size]], [b[:size]]), tags.span_f1([b[:size]], [a[:size]])
    assert one == other or (math.isnan(one) and math.isnan(other))
    itself = tags.span_f1([a], [a])
    assert itself == 1 if any(tag != "O" for tag in a) else math.isnan(itself)


@pytest.mark.parametrize(
    ("names", "bio"),
    [(["O", "B-x", "I-x"], True), (["B-x"], True), (["O"], False), (["NN", "VB"], False), (["O", "B-"], False)],
)
def test_is_bio(names, bio):
    assert tags.is_bio(names) is bio


def exact(*numbers, classes):
    return torch.nn.functional.one_hot(torch.tensor(numbers), classes).double() * 9


def test_spans_don_t_go_on_into_the_next_sentence():
    names = ["O", "B-a", "I-a"]
    labels, samples = torch.tensor([1, 2, 2, 0]), torch.tensor([0, 0, 1, 1])
    # As one sentence there'd be one span of three words; the second sentence's I- begins its own.
    found = tags.tag_metrics(exact(1, 2, 0, 0, classes=3), labels, samples, names)
    assert found["f1"] == pytest.approx(2 * 1 / (2 + 1))
    assert found["accuracy"] == 0.75
    assert found["tokens"] == 4


def test_tags_that_are_not_bio_count_one_by_one():
    labels = torch.tensor([0, 1, 1])
    found = tags.tag_metrics(exact(0, 1, 0, classes=2), labels, torch.tensor([0, 0, 0]), ["noun", "verb"])
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert set(found) == {"f1", "accuracy", "ece", "nll", "tokens"}


def test_no_word_with_a_tag():
    found = tags.tag_metrics(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.zeros(0), ["O", "B-a"])
    assert found.pop("tokens") == 0
    assert all(math.isnan(value) for value in found.values())
