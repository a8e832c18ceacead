"""Equal losses of several members at once give what each gives alone."""

import pytest
import torch

from distill_system.losses.logits import LogitRegression, SoftTarget
from distill_system.losses.several import alike, interchangeable, sums_at_once
from distill_system.losses.task import HardLabel
from distill_system.settings import Schedule
from distill_system.signals import Signals, Targets


def logits(count, rows=5, classes=4):
    return list(torch.randn(count, rows, classes, generator=torch.Generator().manual_seed(count)))


TARGETS = Targets(torch.tensor([0, 3, -100, 1, 2]), torch.tensor([True, True, True, True, False]))


@pytest.mark.parametrize("loss", [SoftTarget(2.0), LogitRegression(), HardLabel(0.1)])
def test_sums_and_gradients_are_those_of_each_alone(loss):
    students = [x.requires_grad_() for x in logits(3)]
    teachers = [2 * x for x in logits(4)[:3]] if loss.needs_teacher else None
    together = sums_at_once(loss, students, teachers, TARGETS)
    gradients = torch.autograd.grad(together.sum(), students)
    for i, student in enumerate(students):
        alone, _ = loss(Signals(student), Signals(teachers[i]) if teachers else None, TARGETS)
        torch.testing.assert_close(together[i], alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients[i], torch.autograd.grad(alone, student)[0], rtol=1e-6, atol=1e-9)


def test_weights_may_differ_and_settings_may_not():
    assert interchangeable(SoftTarget(2.0, weight=1.0), SoftTarget(2.0, weight=Schedule(1.0)))
    assert not interchangeable(SoftTarget(2.0), SoftTarget(3.0))
    assert not interchangeable(SoftTarget(2.0), LogitRegression())


def test_what_learns_or_reads_more_than_logits_stays_alone():
    learning = SoftTarget(2.0)
    learning.scale = torch.nn.Parameter(torch.ones(()))
    assert not interchangeable(learning, learning)
    inside = type("Inside", (SoftTarget,), {"needs": ("logits", "hidden")})(2.0)
    assert not interchangeable(inside, inside)


def test_groups_keep_their_order():
    losses = {"a": SoftTarget(2.0), "b": HardLabel(), "c": SoftTarget(2.0), "d": SoftTarget(2.0)}
    assert alike("abcd", lambda name: (losses[name], name == "d")) == [["a", "c"], ["b"], ["d"]]
