"""Decoupled distillation: worked by hand, against plain sums, and the paper's own identity with soft targets."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.losses.decoupled import Decoupled, decoupled
from distill_system.losses.logits import soft_target
from distill_system.signals import IGNORE, Signals, Targets

CUT = -math.inf
ONE = torch.tensor([True])


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_by_hand():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2), label 0: TCKD = 1/2 ln 2 + 1/2 ln 2/3; among the others p' = (1/2, 1/2), q' = (1/3, 2/3).
    student, teacher = row(0, 0, math.log(2)), row(math.log(2), 0, 0)
    target = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    others = 0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4)
    loss = decoupled(student, teacher, torch.tensor([0]), ONE, 1.0, alpha=2.0, beta=3.0)
    assert loss.item() == pytest.approx(2 * target + 3 * others)
    assert decoupled(student, teacher, torch.tensor([0]), ONE, 1.0, 2.0, 0.0).item() == pytest.approx(2 * target)


def plain(student, teacher, label, temperature, alpha, beta):
    p, q = ([math.exp(x / temperature) for x in side] for side in (teacher, student))
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    total = alpha * (
        p[label] * math.log(p[label] / q[label]) + (1 - p[label]) * math.log((1 - p[label]) / (1 - q[label]))
    )
    for i in range(len(p)):
        if i != label:
            a, b = p[i] / (1 - p[label]), q[i] / (1 - q[label])
            total += beta * a * math.log(a / b)
    return temperature**2 * total


@given(classes=st.integers(2, 7), temperature=st.floats(0.5, 10), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_against_plain_sums(classes, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(5, classes, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    labels = torch.randint(classes, (5,), generator=generator)
    labels[0] = IGNORE
    valid = torch.tensor([True, True, True, False, True])
    expected = sum(
        plain(student[i].tolist(), teacher[i].tolist(), int(labels[i]), temperature, 1.5, 4.0) for i in (1, 2, 4)
    )
    loss = Decoupled(1.5, 4.0, temperature)
    total, count = loss(Signals(student), Signals(teacher), Targets(labels, valid))
    assert total.item() == pytest.approx(expected, rel=1e-8)
    assert count.item() == 3


def test_with_the_teachers_own_weight_it_is_soft_targets():
    """Equation 5 of the paper: KL = TCKD + (1 - p_y) NCKD."""
    generator = torch.Generator().manual_seed(4)
    student, teacher = (torch.randn(1, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    other = 1 - teacher.div(3.0).softmax(-1)[0, 2].item()
    found = decoupled(student, teacher, torch.tensor([2]), ONE, 3.0, alpha=1.0, beta=other)
    torch.testing.assert_close(found.sum(), soft_target(student, teacher, ONE, 3.0)[0])


def test_two_classes_have_no_others():
    student = row(0.3, -0.2).requires_grad_()
    teacher = row(1.0, 0.0)
    loss = decoupled(student, teacher, torch.tensor([1]), ONE, 2.0, alpha=1.0, beta=100.0)
    torch.testing.assert_close(loss.sum(), soft_target(student, teacher, ONE, 2.0)[0])
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("student", [row(0.3, -0.2, CUT), row(0.3, CUT, CUT)])
def test_cut_classes(student):
    """Among them the case in which nothing is left beside the label."""
    student.requires_grad_()
    teacher = torch.where(student.detach() == CUT, CUT, row(1.0, 0.5, 0.0))
    loss = decoupled(student, teacher, torch.tensor([0]), ONE, 2.0)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(gradient).all()
    there = student.detach()[0] != CUT
    if there.sum() > 1:
        torch.testing.assert_close(loss, decoupled(student[:, there], teacher[:, there], torch.tensor([0]), ONE, 2.0))
    else:
        assert loss.item() == 0


def test_a_teacher_that_does_not_know_the_label_says_that_it_is_something_else():
    student = row(0.0, 0.0, 0.0).requires_grad_()
    loss = decoupled(student, row(CUT, 0.0, 0.0), torch.tensor([0]), ONE, 1.0, alpha=1.0, beta=1.0)
    assert loss.item() == pytest.approx(-math.log(2 / 3))
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(gradient).all()
