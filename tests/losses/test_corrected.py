"""Corrected and weighed labels: worked by hand, against plain sums, and what a teacher that doesn't know the label does."""

import math

import pytest
import torch

from distill_system.losses.corrected import CorrectedLabel, corrected_label, weighed_label
from distill_system.losses.task import hard_label
from distill_system.signals import IGNORE, Signals, Targets

CUT = -math.inf
LN3 = math.log(3)  # of two classes (3/4, 1/4)
STUDENT = torch.tensor([[0.0, LN3], [0.0, LN3], [0.0, 0.0]], dtype=torch.float64)  # q = (1/4, 3/4) twice, (1/2, 1/2)
TEACHER = torch.tensor([[LN3, 0.0], [math.log(9), 0.0], [0.0, 5.0]], dtype=torch.float64)  # p = (3/4, ..), (9/10, ..)
LABELS = torch.tensor([1, 1, IGNORE])
LABELLED = torch.tensor([True, True, False])


def test_corrected_by_hand():
    # The first label stands, for the teacher is 0.75 sure; the second is replaced.
    found = corrected_label(STUDENT, TEACHER, LABELS, LABELLED, threshold=0.8)
    assert found.tolist() == pytest.approx([math.log(4 / 3), math.log(4), 0])
    found = corrected_label(STUDENT, TEACHER, LABELS, LABELLED, threshold=0.5)
    assert found.tolist() == pytest.approx([math.log(4), math.log(4), 0])


def test_weighed_by_hand():
    found = weighed_label(STUDENT, TEACHER, LABELS, LABELLED)
    assert found.tolist() == pytest.approx([0.25 * math.log(4 / 3), 0.1 * math.log(4 / 3), 0])
    found = weighed_label(STUDENT, TEACHER, LABELS, LABELLED, threshold=0.2)
    assert found.tolist() == pytest.approx([0.25 * math.log(4 / 3), 0, 0])


def test_thresholds_have_a_default_for_each_mode():
    assert CorrectedLabel().threshold == 0.9
    assert CorrectedLabel("weigh").threshold == 0
    assert CorrectedLabel("weigh", 0.0).threshold == CorrectedLabel("correct", 0.0).threshold == 0
    targets = Targets(LABELS, torch.ones(3, dtype=torch.bool))
    total, count = CorrectedLabel("correct", 0.8)(Signals(STUDENT), Signals(TEACHER), targets)
    assert (total.item(), count.item()) == (pytest.approx(math.log(4 / 3) + math.log(4)), 2)


def test_a_teacher_that_is_never_sure_leaves_the_labels():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    labels, valid = torch.randint(7, (4, 5), generator=generator), torch.rand(4, 5, generator=generator) < 0.6
    found = corrected_label(student, teacher, labels, valid, threshold=1.0)
    torch.testing.assert_close(found.sum(), hard_label(student, labels, valid)[0])
    sure = corrected_label(student, teacher, labels, valid, threshold=0.0)
    torch.testing.assert_close(sure.sum(), hard_label(student, teacher.argmax(-1), valid)[0])
    weights = teacher.softmax(-1).gather(-1, labels[..., None])[..., 0]
    expected = (weights * -student.log_softmax(-1).gather(-1, labels[..., None])[..., 0])[valid].sum()
    torch.testing.assert_close(weighed_label(student, teacher, labels, valid).sum(), expected)


def test_a_label_that_the_teacher_does_not_know():
    student = torch.tensor([[0.0, 1.0, CUT]], dtype=torch.float64, requires_grad=True)
    teacher, label, labelled = torch.tensor([[1.0, 0.0, CUT]]), torch.tensor([2]), torch.tensor([True])
    for found in (
        weighed_label(student, teacher, label, labelled),
        corrected_label(student, teacher, label, labelled, 0.6),
    ):
        (gradient,) = torch.autograd.grad(found.sum(), student)
        assert torch.isfinite(found).all()
        assert torch.isfinite(gradient).all()
