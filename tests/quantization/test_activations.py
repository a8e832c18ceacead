"""Rounded inputs: by hand, LSQ's gradients against finite differences, ranges that run."""

import pytest
import torch
from torch import nn

from distill_system.models.input_steps import limits
from distill_system.quantization.activations import Activations, InputRounding
from distill_system.quantization.base import Moment
from distill_system.quantization.swap import Site, swap
from tests.quantization.toys import Halves


def test_by_hand():
    x = torch.tensor([0.26, -3.0, 1.0], requires_grad=True)
    step = torch.tensor([0.5], requires_grad=True)
    y = InputRounding.apply(x, step, 2)  # codes -2 ... 1
    assert y.tolist() == [0.5, -1.0, 0.5]
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0]
    # inside: round(0.52) - 0.52; clipped: the lowest and the highest code.
    assert step.grad.item() == pytest.approx((1 - 0.52) - 2 + 1)


def test_the_step_s_gradient_where_it_is_a_derivative():
    """Of what is clipped the output is step * code: its derivative by the step is the code."""
    x = torch.tensor([9.0, -9.0, 20.0], dtype=torch.float64)
    step = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    (InputRounding.apply(x, step, 3) * weights).sum().backward()
    low, high = limits(3)
    assert step.grad.item() == pytest.approx(high + 2 * low - 0.5 * high)


def test_a_negative_step_acts_as_its_size():
    x = torch.randn(50)
    for sign in (1.0, -1.0):
        step = torch.tensor([0.2 * sign], requires_grad=True)
        y = InputRounding.apply(x, step, 4)
        (y * x).sum().backward()
        if sign > 0:
            first, gradient = y, step.grad.clone()
    assert torch.equal(first, y)
    assert step.grad == -gradient


def test_first_and_next_steps():
    learned, running = Activations(4, learned=True), Activations(4, learned=False)
    assert learned.first_step(70.0, 0.7) == pytest.approx(2 * 0.7 / 7**0.5)
    assert running.first_step(70.0, 0.7) == pytest.approx(10.0)
    assert running.next_step(10.0, 7.0) == pytest.approx(0.9 * 10 + 0.1)
    assert running.first_step(0.0, 0.0) > 0


@pytest.mark.parametrize("learned", [True, False])
def test_what_is_kept_beside_the_weight(learned):
    module, activations = nn.Linear(4, 2), Activations(8, learned=learned, scale_lr=3.0)
    swap(module, Site(Halves(), Moment(), 0, activations=activations))
    activations.prepare(module)
    assert ("input_step" in dict(module.named_parameters())) is learned
    assert ("input_step" in dict(module.named_buffers())) is not learned
    if learned:
        assert (module.input_step.lr_scale, module.input_step.decays) == (3.0, False)


def test_only_running_ranges_look_while_training():
    x = torch.tensor([[1.0, -5.0, 2.0, 0.0]])
    for learned, looks in ((True, False), (False, True)):
        module, activations = nn.Linear(4, 2), Activations(8, learned=learned)
        swap(module, Site(Halves(), Moment(), 0, activations=activations))
        activations.prepare(module)
        module.train()(x)
        assert (module.seen is not None) is looks
        if looks:
            module(2 * x)
            assert module.seen.tolist() == [10.0, 24.0, 8.0]
        module.seen = None
        module.eval()(x)
        assert module.seen is None
