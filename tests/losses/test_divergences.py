"""Reverse, symmetric, Jensen-Shannon and skew divergences: worked by hand, against plain sums in float64, and their limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.losses.divergences import (
    JensenShannon,
    ReverseKL,
    SkewKL,
    SymmetricKL,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    symmetric_kl,
)
from distill_system.losses.logits import SoftTarget
from distill_system.signals import Signals, Targets

CUT = -math.inf
P, Q = [0.75, 0.25], [0.5, 0.5]
FORWARD = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # 0.130812
REVERSE = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # 0.143841


def log(values) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64).log()


def plain_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mix(p, q, share):
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def test_by_hand():
    assert reverse_kl(log(P), log(Q)).item() == pytest.approx(REVERSE)
    assert symmetric_kl(log(P), log(Q)).item() == pytest.approx((FORWARD + REVERSE) / 2)
    # m = (5/8, 3/8): half of 3/4 ln 6/5 + 1/4 ln 2/3, and of 1/2 ln 4/5 + 1/2 ln 4/3
    by_hand = (0.75 * math.log(1.2) + 0.25 * math.log(2 / 3) + 0.5 * math.log(0.8) + 0.5 * math.log(4 / 3)) / 2
    assert jensen_shannon(log(P), log(Q), 0.5).item() == pytest.approx(by_hand)
    # Half skewed, both go to m.
    assert skew_kl(log(P), log(Q), 0.5).item() == pytest.approx(0.75 * math.log(1.2) + 0.25 * math.log(2 / 3))
    assert skew_kl(log(P), log(Q), 0.5, reverse=True).item() == pytest.approx(
        0.5 * math.log(0.8) + 0.5 * math.log(4 / 3)
    )


def test_what_only_one_side_says():
    """Bounded where a mixture is in it: ln 2 and -ln alpha, also for disjoint distributions."""
    p, q = log([1.0, 0.0]), log([0.0, 1.0])
    assert jensen_shannon(p, q).item() == pytest.approx(math.log(2))
    assert skew_kl(p, q, 0.1).item() == pytest.approx(-math.log(0.1))
    assert skew_kl(p, q, 0.1, reverse=True).item() == pytest.approx(-math.log(0.1))
    assert reverse_kl(p, q).item() == math.inf


def test_limits():
    p, q = log([0.6, 0.3, 0.1]), log([0.2, 0.2, 0.6])
    values = p.exp()[0].tolist(), q.exp()[0].tolist()
    forward, reverse = plain_kl(*values), plain_kl(*values[::-1])
    assert jensen_shannon(p, q, 0.0).item() == pytest.approx(forward)
    assert jensen_shannon(p, q, 1.0).item() == pytest.approx(reverse)
    assert jensen_shannon(p, q, 1e-6).item() / 1e-6 == pytest.approx(forward, rel=1e-4)
    assert jensen_shannon(p, q, 1 - 1e-6).item() / 1e-6 == pytest.approx(reverse, rel=1e-4)
    assert skew_kl(p, q, 0.0).item() == pytest.approx(forward)
    assert skew_kl(p, q, 0.0, reverse=True).item() == pytest.approx(reverse)


@given(
    leading=st.sampled_from([(1,), (5,), (2, 3)]),
    classes=st.integers(2, 9),
    temperature=st.floats(0.25, 20),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_against_plain_sums(leading, classes, temperature, share, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(*leading, classes, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    valid = torch.rand(leading, generator=generator) < 0.7
    targets = Targets(valid.long(), valid)
    expected = [0.0] * 5
    for s, t, keep in zip(student.view(-1, classes), teacher.view(-1, classes), valid.view(-1).tolist(), strict=True):
        if keep:
            p, q = (x.div(temperature).softmax(-1).tolist() for x in (t, s))
            m = mix(p, q, share)
            values = [
                plain_kl(q, p),
                (plain_kl(p, q) + plain_kl(q, p)) / 2,
                share * plain_kl(p, m) + (1 - share) * plain_kl(q, m),
                plain_kl(p, m),
                plain_kl(q, mix(q, p, share)),
            ]
            expected = [total + temperature**2 * value for total, value in zip(expected, values, strict=True)]
    losses = [
        ReverseKL(temperature),
        SymmetricKL(temperature),
        JensenShannon(share, temperature),
        SkewKL("forward", share, temperature),
        SkewKL("reverse", share, temperature),
    ]
    for loss, value in zip(losses, expected, strict=True):
        total, count = loss(Signals(student), Signals(teacher), targets)
        assert total.item() == pytest.approx(value, rel=1e-8, abs=1e-8)
        assert count.item() == valid.sum().item()


def test_the_forward_ends_are_soft_targets():
    generator = torch.Generator().manual_seed(1)
    student, teacher = (Signals(torch.randn(4, 3, generator=generator)) for _ in range(2))
    targets = Targets(torch.zeros(4, dtype=torch.long), torch.tensor([True, True, False, True]))
    for loss in (JensenShannon(beta=0.0), SkewKL(alpha=0.0)):
        torch.testing.assert_close(loss(student, teacher, targets), SoftTarget()(student, teacher, targets))


@pytest.mark.parametrize("loss", [ReverseKL(), SymmetricKL(), JensenShannon(beta=1.0), SkewKL("reverse", 0.0)])
def test_a_class_that_the_teacher_does_not_know_is_taken_from_the_student(loss):
    targets = Targets(torch.tensor([0]), torch.tensor([True]))
    student = torch.tensor([[0.5, -0.2, 3.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, CUT]])
    total, _ = loss(Signals(student), Signals(teacher), targets)
    (gradient,) = torch.autograd.grad(total, student)
    expected, _ = loss(Signals(student[:, :2]), Signals(teacher[:, :2]), targets)
    torch.testing.assert_close(total, expected)
    assert gradient[0, 2] == 0


@pytest.mark.parametrize(
    "loss", [ReverseKL(1.0), SymmetricKL(1.0), JensenShannon(0.5, 1.0), SkewKL("reverse", 0.1, 1.0)]
)
def test_probabilities_that_underflow_are_finite_in_value_and_gradient(loss):
    targets = Targets(torch.tensor([0]), torch.tensor([True]))
    student = torch.tensor([[0.0, -2e4, 5.0]], requires_grad=True)
    teacher = torch.tensor([[-3e4, 0.0, 1.0]])
    total, _ = loss(Signals(student), Signals(teacher), targets)
    (gradient,) = torch.autograd.grad(total, student)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()
