"""Cross-entropy: values worked by hand, torch's own as the reference, label smoothing with words that don't exist."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from distill_system.losses.task import hard_label
from distill_system.signals import IGNORE


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
