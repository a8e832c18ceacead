"""Log-probabilities and divergences without NaN, mixtures at their edges, temperatures that stay above 0."""

import math

import pytest
import torch

from distill_system.errors import Refusal
from distill_system.losses.divergences import ReverseKL
from distill_system.losses.logits import SoftTarget
from distill_system.losses.probabilities import CUT, checked_temperature, divergence, kl, log_mixture, log_probs
from distill_system.signals import Signals, Targets


def log(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64).log()


def test_kl_by_hand():
    assert kl(log(0.75, 0.25), log(0.5, 0.5)).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kl(log(1.0, 0.0), log(0.5, 0.5)).item() == pytest.approx(math.log(2))
    assert kl(log(1.0, 0.0), log(1.0, 0.0)).item() == 0
    assert kl(log(0.5, 0.5), log(1.0, 0.0)).item() == math.inf


def test_mixture_by_hand():
    mixed = log_mixture(log(0.5, 0.5, 0.0), log(1.0, 0.0, 0.0), 0.2).exp()
    torch.testing.assert_close(mixed, torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.float64))


def test_mixture_has_a_gradient_where_one_side_or_both_are_cut():
    logits = torch.tensor([[0.0, CUT, CUT, 1.0]], dtype=torch.float64, requires_grad=True)
    own = log_probs(logits, torch.tensor([True]))
    other = torch.tensor([[CUT, CUT, 0.0, 0.0]], dtype=torch.float64).log_softmax(-1)
    (gradient,) = torch.autograd.grad(kl(own, log_mixture(other, own, 0.3)).sum(), logits)
    assert torch.isfinite(gradient).all()
    assert gradient[0, [1, 2]].tolist() == [0, 0]


def test_a_class_of_its_own_is_a_softmax_of_two():
    """Multi-label: the mean over classes of the KL of two Bernoullis, without classes that the teacher cuts."""
    student, teacher = (
        torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64),
        torch.tensor([[1.5, 0.5, CUT]], dtype=torch.float64),
    )
    expected = 0.0
    for s, t in ((0.3, 1.5), (-1.0, 0.5)):
        q, p = 1 / (1 + math.exp(-s / 2)), 1 / (1 + math.exp(-t / 2))
        expected += (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / 2
    found = divergence(student, teacher, torch.tensor([True]), 2.0, kl, task="multi_label")
    assert found.shape == (1,)
    assert found.item() == pytest.approx(expected)


def test_the_teachers_classes_renormalise_the_student():
    student, teacher = log(0.2, 0.2, 0.6), log(0.5, 0.5, 0.0)
    valid = torch.tensor([True])
    assert divergence(student, teacher, valid, 1.0, kl).item() == pytest.approx(math.log(0.5 / 0.2))
    assert divergence(student, teacher, valid, 1.0, kl, teachers_classes=True).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("bad", [0, -1.0, {"start": 4.0, "end": 0.0}, {"start": 0.0}, {"start": 2, "end": -1}])
@pytest.mark.parametrize("cls", [SoftTarget, ReverseKL])
def test_a_temperature_stays_above_0(bad, cls):
    with pytest.raises(Refusal, match="must stay > 0"):
        cls(temperature=bad)


def test_a_temperature_follows_its_schedule():
    assert checked_temperature(3) == 3
    assert checked_temperature({"start": 2.0, "shape": "constant"}).start == 2.0
    student, teacher = Signals(torch.tensor([[1.0, 0.0]])), Signals(torch.tensor([[0.0, 3.0]]))
    targets = Targets(torch.tensor([0]), torch.tensor([True]))
    changing, fixed = SoftTarget({"start": 4.0, "end": 2.0}), SoftTarget(3.0)
    assert changing(student, teacher, targets) == SoftTarget(4.0)(student, teacher, targets)
    changing.progress = 0.5
    assert changing(student, teacher, targets) == fixed(student, teacher, targets)
