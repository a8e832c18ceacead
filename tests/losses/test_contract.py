"""Every loss of distill_system.losses, also one added tomorrow, keeps the contract: sum and count, masks, no NaN, no gradient for the teacher."""

import importlib
import inspect
import pkgutil
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import distill_system.losses
from distill_system.losses.base import Loss
from distill_system.signals import IGNORE, Signals, Targets


def discover(package) -> list[type[Loss]]:
    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    ]
    classes = [
        cls
        for module in modules
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__
    ]
    return sorted(
        (cls for cls in classes if issubclass(cls, Loss) and cls is not Loss), key=lambda cls: cls.__qualname__
    )


LOSSES = discover(distill_system.losses)
every_loss = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
every_shape = pytest.mark.parametrize("shape", [(6, 3), (4, 5, 7)], ids=["classification", "causal_lm"])


def example(shape, seed=0, dtype=torch.float64):
    """Random signals and targets in which some positions are invalid and some others have no label."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(*shape, generator=generator, dtype=dtype).mul(2).requires_grad_() for _ in range(2))
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    flat_labels, valid = labels.view(-1), torch.ones(shape[:-1], dtype=torch.bool)
    valid.view(-1)[::3] = False
    flat_labels[1] = IGNORE
    return Signals(student), Signals(teacher), Targets(labels, valid)


def test_discovers_the_known_losses():
    assert {"SoftTarget", "HardLabel", "LogitRegression"} <= {cls.__name__ for cls in LOSSES}


@every_loss
def test_weight_is_kept_and_not_applied(cls):
    student, teacher, targets = example((6, 3))
    assert cls().weight == 1.0
    assert cls(weight=3.0).weight == 3.0
    torch.testing.assert_close(
        cls(weight=3.0)(student, teacher, targets), cls()(student, teacher, targets), rtol=0, atol=0
    )


@every_loss
def test_says_itself_whether_it_needs_a_teacher(cls):
    assert isinstance(cls.__dict__.get("needs_teacher"), bool)
    student, teacher, targets = example((6, 3))
    if not cls.needs_teacher:
        torch.testing.assert_close(cls()(student, None, targets), cls()(student, teacher, targets))


@every_loss
@every_shape
def test_count_is_known_before_the_forward(cls, shape):
    student, teacher, targets = example(shape)
    total, count = cls()(student, teacher, targets)
    assert total.shape == count.shape == ()
    assert count.dtype == torch.float32
    assert torch.equal(count, cls().count(targets))
    assert 0 < count <= targets.valid.sum()


@every_loss
@every_shape
@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf"), -float("inf")])
def test_all_masked_is_zero_with_zero_gradient(cls, shape, poison):
    student, teacher, targets = example(shape)
    with torch.no_grad():
        student.logits.fill_(poison)
        teacher.logits.fill_(poison)
    total, count = cls()(student, teacher, Targets(targets.labels, torch.zeros_like(targets.valid)))
    total.backward()
    assert total.item() == 0
    assert count.item() == 0
    assert torch.count_nonzero(student.logits.grad) == 0


@every_loss
@every_shape
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_masked_positions_do_not_poison(cls, shape, poison):
    student, teacher, targets = example(shape)
    total, count = cls()(student, teacher, targets)
    (gradient,) = torch.autograd.grad(total, student.logits)
    bad = [
        Signals(s.logits.detach().masked_fill(~targets.valid[..., None], poison).requires_grad_())
        for s in (student, teacher)
    ]
    # A label there is never looked at either.
    wild = Targets(targets.labels.masked_fill(~targets.valid, 10**6), targets.valid)
    bad_total, bad_count = cls()(bad[0], bad[1], wild)
    (bad_gradient,) = torch.autograd.grad(bad_total, bad[0].logits)
    assert torch.equal(bad_total, total)
    assert torch.equal(bad_count, count)
    assert torch.equal(bad_gradient, gradient)
    assert torch.count_nonzero(gradient[~targets.valid]) == 0


@every_loss
@every_shape
def test_the_teacher_gets_no_gradient(cls, shape):
    student, teacher, targets = example(shape)
    cls()(student, teacher, targets)[0].backward()
    assert torch.count_nonzero(student.logits.grad) > 0
    assert teacher.logits.grad is None or torch.count_nonzero(teacher.logits.grad) == 0


@every_loss
@every_shape
def test_classes_cut_on_both_sides_leave_no_nan(cls, shape):
    student, teacher, targets = example(shape)
    # No label is a word that doesn't exist.
    targets.labels = targets.labels.masked_fill(targets.labels == shape[-1] - 1, 0)
    with torch.no_grad():
        student.logits[..., -1] = teacher.logits[..., -1] = -float("inf")
    total, count = cls()(student, teacher, targets)
    (gradient,) = torch.autograd.grad(total, student.logits)
    without = [Signals(s.logits[..., :-1]) for s in (student, teacher)]
    torch.testing.assert_close((total, count), cls()(*without, targets))
    assert torch.isfinite(gradient).all()
    assert torch.count_nonzero(gradient[..., -1]) == 0


@every_loss
@every_shape
def test_the_gradient_is_the_derivative(cls, shape):
    student, teacher, targets = example(shape)
    assert torch.autograd.gradcheck(lambda logits: cls()(Signals(logits), teacher, targets)[0], student.logits)


@every_loss
@every_shape
def test_half_precision_is_computed_wider(cls, shape):
    student, teacher, targets = example(shape, dtype=torch.bfloat16)
    total, _ = cls()(student, teacher, targets)
    exact, _ = cls()(Signals(student.logits.double()), Signals(teacher.logits.double()), targets)
    assert total.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(total.double(), exact, rtol=1e-5, atol=1e-6)


@every_loss
@given(rows=st.integers(2, 9), cut=st.integers(1, 8), classes=st.integers(2, 6), seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_micro_batches_add_up_to_the_batch(cls, rows, cut, classes, seed):
    cut = min(cut, rows - 1)
    student, teacher, targets = example((rows, classes), seed)
    whole = cls()(student, teacher, targets)
    parts = [
        cls()(
            *(Signals(s.logits[part]) for s in (student, teacher)), Targets(targets.labels[part], targets.valid[part])
        )
        for part in (slice(None, cut), slice(cut, None))
    ]
    # A new field of Targets has to be split here too.
    assert [field.name for field in fields(Targets)] == ["labels", "valid"]
    torch.testing.assert_close(tuple(a + b for a, b in zip(*parts, strict=True)), whole, rtol=1e-12, atol=1e-12)
