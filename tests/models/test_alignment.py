"""Labels by name, tokenizers on their shared range, vocabularies cut with -inf: each by a case worked by hand."""

import math

import pytest
import torch

from distill_system.models.alignment import align_labels, check_tokenizers, cut_vocabulary
from distill_system.models.tokenizers import byte_tokenizer


@pytest.mark.parametrize(
    ("teacher", "student", "order"),
    [
        ({0: "a", 1: "b"}, ["a", "b"], [0, 1]),
        ({0: "a", 1: "b"}, ["b", "a"], [1, 0]),
        ({"0": "NEGATIVE", "1": "Neutral", "2": "positive"}, ["positive", "negative", "neutral"], [2, 0, 1]),
        ({"10": "k", "2": "c"}, ["k", "c"], [1, 0]),
        ({i: str(i) for i in range(12)}, [str(i) for i in reversed(range(12))], list(reversed(range(12)))),
    ],
)
def test_labels_are_aligned_by_name(teacher, student, order):
    found = align_labels(teacher, student)
    assert (found.order, found.problems, found.warnings) == (order, [], [])
    assert found.is_identity == (order == sorted(order))
    names = [name for _, name in sorted((int(i), name) for i, name in teacher.items())]
    logits = torch.arange(float(len(names)))
    for value, label in zip(logits[found.order], student, strict=True):
        assert names[int(value)].lower() == label.lower()


def test_labels_without_names_are_taken_by_position_and_it_is_said():
    found = align_labels({0: "LABEL_0", 1: "LABEL_1"}, ["negative", "positive"])
    assert found.order == [0, 1]
    assert "no names (LABEL_0, LABEL_1)" in found.warnings[0]
    assert align_labels({0: "LABEL_1", 1: "LABEL_0"}, ["LABEL_0", "LABEL_1"]).order == [1, 0]


@pytest.mark.parametrize(
    ("teacher", "student", "text"),
    [
        ({0: "a", 1: "b", 2: "c"}, ["a", "b"], "has 3 labels (a, b, c), the data has 2"),
        ({0: "positive", 1: "negative"}, ["positve", "negative"], "has no label 'positve' (did you mean 'positive'?)"),
        ({0: "a", 1: "A"}, ["a", "b"], "the teacher has two labels of the same name"),
        ({0: "a", 1: "b"}, ["x", "X"], "the data has two labels of the same name"),
        ({0: "LABEL_0", 1: "spam"}, ["ham", "spam"], "has no label 'ham'"),
    ],
)
def test_labels_that_cant_be_aligned(teacher, student, text):
    found = align_labels(teacher, student, "phases.student.teachers.main")
    assert found.order == []
    assert text in str(found.problems[0])
    assert found.problems[0].key == "phases.student.teachers.main"


class Words:
    """A tokenizer of whole words."""

    def __init__(self, *words: str, lower: bool = False) -> None:
        self.words, self.lower = list(words), lower

    def __len__(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def __call__(self, text: str) -> dict[str, list[int]]:
        text = text.lower() if self.lower else text
        return {"input_ids": [self.words.index(word) for word in text.split() if word in self.words]}


def test_equal_tokenizers_pass_also_when_one_has_rows_more():
    assert check_tokenizers(byte_tokenizer(), byte_tokenizer()) == []
    assert check_tokenizers(Words("a", "b"), Words("a", "b", "<extra>")) == []


def test_the_first_difference_is_named():
    [problem] = check_tokenizers(Words("a", "b", "c"), Words("a", "c", "b"), "teachers.main")
    assert "token 1 is 'b' there and 'c' here" in str(problem)
    [problem] = check_tokenizers(Words("a", "the"), Words("a", "the", lower=True), texts=["a The a"])
    assert "splits 'a The a' in another way" in str(problem)
    assert "from token 1 on [0] there and [1, 0] here" in str(problem)


def test_padded_rows_are_cut():
    logits_BTV = torch.tensor([[[1.0, 2.0, 50.0]]])
    assert torch.equal(cut_vocabulary(logits_BTV, 2), torch.tensor([[[1.0, 2.0]]]))
    kept = cut_vocabulary(logits_BTV, 2, width=4)
    assert kept.tolist() == [[[1.0, 2.0, -math.inf, -math.inf]]]
    by_hand = torch.tensor([1 / (1 + math.e), math.e / (1 + math.e), 0.0, 0.0])  # softmax of 1, 2
    torch.testing.assert_close(kept.softmax(-1)[0, 0], by_hand)


def test_a_narrower_output_is_padded_without_mass_and_with_a_gradient():
    logits = torch.zeros(2, 3, requires_grad=True)
    wide = cut_vocabulary(logits, 5)
    assert wide.shape == (2, 5)
    assert wide.softmax(-1)[:, 3:].abs().max() == 0
    wide.log_softmax(-1)[:, 0].sum().backward()
    assert logits.grad.isfinite().all()
    same = cut_vocabulary(logits, 3)
    assert same.data_ptr() == logits.data_ptr()
