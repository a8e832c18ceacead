"""Soft targets and logit regression: values worked by hand, a float64 reference written as in the paper, and the T^2 property."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.losses.logits import logit_regression, soft_target

ALL = torch.ones(1, dtype=torch.bool)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def random_logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def softmax(values, temperature):
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def test_soft_target_by_hand():
    # At T = 2, teacher (2 ln 3, 0) has p = (3/4, 1/4), student (0, 0) has q = (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812; times T^2 = 4.
    total, count = soft_target(row(0, 0), row(2 * math.log(3), 0), ALL, temperature=2.0)
    assert total.item() == pytest.approx(0.523248, abs=1e-6)
    assert count.item() == 1


def test_soft_target_is_forward_kl():
    # Swapped, KL(q || p) would be 1/2 ln 2/3 + 1/2 ln 2 = 0.143841.
    total, _ = soft_target(row(math.log(3), 0), row(0, 0), ALL, temperature=1.0)
    assert total.item() == pytest.approx(0.143841, abs=1e-6)


@given(
    leading=st.sampled_from([(1,), (5,), (2, 3)]),
    classes=st.integers(2, 9),
    temperature=st.floats(0.25, 20),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_soft_target_against_plain_sums(leading, classes, temperature, seed):
    student, teacher = random_logits(*leading, classes, seed=seed), random_logits(*leading, classes, seed=seed + 1000)
    valid = torch.rand(*leading, generator=torch.Generator().manual_seed(seed)) < 0.7
    expected = 0.0
    for s, t, keep in zip(
        student.view(-1, classes).tolist(), teacher.view(-1, classes).tolist(), valid.view(-1).tolist(), strict=True
    ):
        if keep:
            p, q = softmax(t, temperature), softmax(s, temperature)
            expected += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    total, count = soft_target(student, teacher, valid, temperature)
    assert total.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert count.item() == valid.sum().item()
    single, _ = soft_target(student.float(), teacher.float(), valid, temperature)
    assert single.item() == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_soft_target_of_an_equal_student_is_zero():
    logits = random_logits(4, 5)
    total, _ = soft_target(logits, logits + 7, torch.ones(4, dtype=torch.bool), 3.0)
    assert total.item() == pytest.approx(0, abs=1e-12)


def test_soft_target_keeps_the_gradient_scale_at_any_temperature():
    # For T far above the logits the gradient tends to (student - teacher) / C (both centred), whatever T is: equation 4 of the paper times T^2.
    student, teacher = random_logits(1, 4, seed=1).requires_grad_(), random_logits(1, 4, seed=2)
    difference = (student - teacher).detach()
    limit = (difference - difference.mean()) / 4
    for temperature in (1e3, 1e4):
        (gradient,) = torch.autograd.grad(soft_target(student, teacher, ALL, temperature)[0], student)
        torch.testing.assert_close(gradient, limit, rtol=2e-2, atol=1e-2)


def test_soft_target_teacher_cut_or_underflowing():
    cut = -float("inf")
    student = row(0, 0, 5).requires_grad_()
    # Only the teacher is cut: the student's mass there costs.
    total, _ = soft_target(student, row(math.log(3), 0, cut), ALL, 1.0)
    expected = 0.75 * math.log(0.75) + 0.25 * math.log(0.25) + math.log(2 + math.exp(5))
    assert total.item() == pytest.approx(expected, rel=1e-9)
    # exp(-1e4) is 0 in float32.
    total, _ = soft_target(row(0, 0, cut).float(), row(math.log(3), 0, -1e4).float(), ALL, 1.0)
    assert total.item() == pytest.approx(0.130812, abs=1e-5)
    # A student that can't say what the teacher says.
    assert soft_target(row(0, cut), row(0, 0), ALL, 1.0)[0].item() == math.inf


def test_soft_target_of_several_labels_by_hand():
    # At T = 2, logits (2 ln 3, 0) are (3/4, 1/2), against (1/2, 1/2): the first class costs what two classes cost above, the second nothing.
    total, count = soft_target(row(0, 0), row(2 * math.log(3), 0), ALL, 2.0, "multi_label")
    assert (total.item(), count.item()) == (pytest.approx(0.523248 / 2, abs=1e-6), 1)
    # A class that the teacher doesn't know is no part of the mean, whatever the student says.
    more, _ = soft_target(row(0, 0, 5), row(2 * math.log(3), 0, -math.inf), ALL, 2.0, "multi_label")
    assert more.item() == pytest.approx(total.item())


def test_weights_of_positions():
    student, teacher, valid = random_logits(3, 4), random_logits(3, 4, seed=1), torch.tensor([True, True, False])
    weight = torch.tensor([0.5, 2.0, 9.0])
    for loss in (soft_target, logit_regression):
        each = [loss(student[i : i + 1], teacher[i : i + 1], ALL)[0] for i in range(2)]
        total, count = loss(student, teacher, valid, weight_X=weight)
        torch.testing.assert_close(total, 0.5 * each[0] + 2 * each[1])
        assert count.item() == 2


def test_logit_regression_by_hand():
    student, teacher = row(1, 2, 3), row(2, 2, 6)
    total, count = logit_regression(student, teacher, ALL)  # (1 + 0 + 9) / 3
    assert (total.item(), count.item()) == (pytest.approx(10 / 3), 1)
    # Centred: (-1, 0, 1) and (-4/3, -4/3, 8/3), differences (1, 4, -5) / 3.
    total, _ = logit_regression(student, teacher, ALL, centred=True)
    assert total.item() == pytest.approx(42 / 27)


def test_logit_regression_leaves_cut_classes_out_of_sum_and_mean():
    cut = -float("inf")
    for student, teacher in [((1, 2, cut), (2, 5, cut)), ((1, 2, 9), (2, 5, cut)), ((1, 2, cut), (2, 5, 9))]:
        total, _ = logit_regression(row(*student), row(*teacher), ALL)
        assert total.item() == pytest.approx(5.0)  # (1 + 9) / 2
        total, _ = logit_regression(row(*student), row(*teacher), ALL, centred=True)
        assert total.item() == pytest.approx(1.0)  # (1/2, -1/2) against (-3/2, 3/2)
    assert logit_regression(row(cut, cut), row(cut, cut), ALL)[0].item() == 0


@given(
    leading=st.sampled_from([(3,), (2, 4)]), classes=st.integers(2, 7), centred=st.booleans(), seed=st.integers(0, 999)
)
@settings(max_examples=25, deadline=None)
def test_logit_regression_against_plain_sums(leading, classes, centred, seed):
    student, teacher = random_logits(*leading, classes, seed=seed), random_logits(*leading, classes, seed=seed + 1000)
    expected = 0.0
    for s, t in zip(student.view(-1, classes).tolist(), teacher.view(-1, classes).tolist(), strict=True):
        if centred:
            s, t = [a - sum(s) / classes for a in s], [b - sum(t) / classes for b in t]
        expected += sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / classes
    total, count = logit_regression(student, teacher, torch.ones(leading, dtype=torch.bool), centred)
    assert total.item() == pytest.approx(expected, rel=1e-9)
    assert count.item() == math.prod(leading)


def test_logit_regression_centred_does_not_see_a_constant():
    student, teacher, valid = random_logits(4, 5), random_logits(4, 5, seed=1), torch.ones(4, dtype=torch.bool)
    shifted = student + random_logits(4, 1, seed=2)
    torch.testing.assert_close(
        logit_regression(shifted, teacher, valid, True), logit_regression(student, teacher, valid, True)
    )
    assert not torch.allclose(
        logit_regression(shifted, teacher, valid)[0], logit_regression(student, teacher, valid)[0]
    )
