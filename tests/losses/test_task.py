"""The task's own loss: values worked by hand, torch's own as the reference, label smoothing with words that don't exist, labels that are numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from distill_system.losses.task import HardLabel, hard_label, multi_label, squared_error
from distill_system.signals import IGNORE, Signals, Targets


def test_by_hand():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]], dtype=torch.float64)  # q = (3/4, 1/4) and (1/2, 1/2)
    total, count = hard_label(logits, torch.tensor([0, 1]), torch.tensor([True, True]))
    assert total.item() == pytest.approx(math.log(4 / 3) + math.log(2))
    assert count.item() == 2


def test_smoothing_by_hand():
    # q = (3/4, 1/4), label 0, s = 0.2: 0.8 ln 4/3 + 0.2 (ln 4/3 + ln 4) / 2
    total, _ = hard_label(
        torch.tensor([[math.log(3), 0.0]]), torch.tensor([0]), torch.tensor([True]), label_smoothing=0.2
    )
    assert total.item() == pytest.approx(0.8 * math.log(4 / 3) + 0.1 * (math.log(4 / 3) + math.log(4)))


def test_unlabelled_and_invalid_positions_do_not_count():
    logits = torch.zeros(4, 2)
    total, count = hard_label(logits, torch.tensor([0, IGNORE, 1, IGNORE]), torch.tensor([True, True, False, False]))
    assert (total.item(), count.item()) == (pytest.approx(math.log(2)), 1)


@given(
    leading=st.sampled_from([(1,), (6,), (3, 4)]),
    classes=st.integers(2, 9),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_against_torch(leading, classes, smoothing, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*leading, classes, generator=generator, dtype=torch.float64) * 4
    labels = torch.randint(classes, leading, generator=generator)
    valid = torch.rand(leading, generator=generator) < 0.7
    masked = labels.masked_fill(~valid, IGNORE).view(-1)
    expected = F.cross_entropy(
        logits.view(-1, classes), masked, ignore_index=IGNORE, label_smoothing=smoothing, reduction="sum"
    )
    for given_labels, given_valid in [(labels, valid), (masked.view(leading), torch.ones_like(valid))]:
        total, count = hard_label(logits, given_labels, given_valid, smoothing)
        torch.testing.assert_close(total, expected)
        assert count.item() == valid.sum().item()


def test_smoothing_leaves_out_words_that_do_not_exist():
    logits = torch.tensor([[1.0, -2.0, -float("inf")]])
    labels, valid = torch.tensor([1]), torch.tensor([True])
    torch.testing.assert_close(hard_label(logits, labels, valid, 0.3), hard_label(logits[:, :2], labels, valid, 0.3))


NAN = float("nan")
# Three of four classes of the first row are known; the second is unknown, the third isn't real.
PARTLY = torch.tensor([[1.0, 0.0, NAN, 1.0], [NAN] * 4, [1.0] * 4])
REAL = torch.tensor([True, True, False])


def test_multi_label_by_hand():
    logits = torch.zeros(3, 4, dtype=torch.float64)
    logits[0] = torch.tensor([math.log(3), 0.0, 9.0, math.log(3)])  # 3/4, 1/2, unknown, 3/4
    logits.requires_grad_()
    total, count = multi_label(logits, PARTLY, REAL)
    assert total.item() == pytest.approx((2 * math.log(4 / 3) + math.log(2)) / 3)
    assert count.item() == 1
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient[0].tolist() == pytest.approx([-0.25 / 3, 0.5 / 3, 0, -0.25 / 3])
    assert torch.count_nonzero(gradient[1:]) == 0
    smooth, _ = multi_label(logits, PARTLY, REAL, label_smoothing=0.2)  # 0.9 and 0.1
    two = 2 * (0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    assert smooth.item() == pytest.approx((two + math.log(2)) / 3)


def test_multi_label_against_torch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64) * 3
    labels = torch.rand(6, 3, generator=generator).round()
    total, count = multi_label(logits, labels, torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(total / count, F.binary_cross_entropy_with_logits(logits, labels.double()))


def test_classes_that_do_not_exist_are_left_out_of_the_mean():
    logits = torch.tensor([[0.3, -1.0, -math.inf]], requires_grad=True)
    labels, valid = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([True])
    total, _ = multi_label(logits, labels, valid)
    torch.testing.assert_close(total, multi_label(logits[:, :2], labels[:, :2], valid)[0])
    assert torch.isfinite(torch.autograd.grad(total, logits)[0]).all()


def test_squared_error_by_hand():
    predictions = torch.full((3, 4), 3.0, requires_grad=True)
    total, count = squared_error(predictions, PARTLY, REAL)
    assert (total.item(), count.item()) == (pytest.approx((4 + 9 + 4) / 3), 1)
    (gradient,) = torch.autograd.grad(total, predictions)
    assert gradient[0].tolist() == pytest.approx([4 / 3, 2, 0, 4 / 3])
    assert torch.count_nonzero(gradient[1:]) == 0


def test_the_loss_follows_the_task():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    student = Signals(logits)
    loss = HardLabel(label_smoothing=0.1)
    for task, expected in (
        ("regression", squared_error(logits, PARTLY, REAL)),  # which has no classes to smooth
        ("multi_label", multi_label(logits, PARTLY, REAL, 0.1)),
    ):
        targets = Targets(PARTLY, REAL, task=task)
        assert loss(student, None, targets) == expected
        assert loss.count(targets) == expected[1]
    labels = torch.tensor([0, IGNORE, 2])
    for task in ("classification", "token_classification", "causal_lm"):
        assert loss(student, None, Targets(labels, REAL, task=task)) == hard_label(logits, labels, REAL, 0.1)
