"""Attention transfer: worked by hand, against plain sums, causal maps, numbers of heads that differ."""

import math

import pytest
import torch

from distill_system.errors import Refusal
from distill_system.losses.attention import AttentionTransfer, attention_transfer
from distill_system.signals import Signals, Targets
from tests.losses.samples import bound, example, make

KEY = "phases.p.losses.attention"


def maps(*heads: list[list[float]]) -> torch.Tensor:
    return torch.tensor([heads], dtype=torch.float64)


STUDENT = maps([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.3, 0.3, 0.4]])
TEACHER = maps([[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
TOKENS = torch.tensor([[True, True, False]])


def test_by_hand():
    # Four pairs of real tokens, two of them 1/4 apart; the third query is padding.
    assert attention_transfer(STUDENT, TEACHER, TOKENS).item() == pytest.approx(2 * 0.0625 / 4)
    divergence = (0.75 * math.log(1.5) + 0.25 * math.log(0.5) + 0) / 2
    assert attention_transfer(STUDENT, TEACHER, TOKENS, "kl").item() == pytest.approx(divergence)


def test_heads_are_averaged_or_compared_one_by_one():
    swapped = [torch.cat(pair, dim=1) for pair in ((STUDENT, TEACHER), (TEACHER, STUDENT))]
    assert attention_transfer(*swapped, TOKENS).item() == 0
    assert attention_transfer(*swapped, TOKENS, heads="each").item() == pytest.approx(2 * 0.0625 / 4)
    # One head may follow several.
    assert attention_transfer(STUDENT, torch.cat((STUDENT, STUDENT), dim=1), TOKENS).item() == 0


def test_keys_in_the_future_are_0_on_both_sides():
    everything = torch.ones(1, 2, dtype=torch.bool)
    student, teacher = maps([[1.0, 0.0], [0.5, 0.5]]), maps([[1.0, 0.0], [0.75, 0.25]])
    student.requires_grad_()
    loss = attention_transfer(student, teacher, everything, "kl")
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.item() == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2)
    assert gradient[0, 0, 0, 1] == 0
    assert torch.isfinite(gradient).all()


def test_a_student_that_looks_away_altogether_pays_a_finite_price():
    student = maps([[1.0, 0.0], [0.0, 1.0]]).requires_grad_()
    loss = attention_transfer(student, maps([[0.0, 1.0], [0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool), "kl")
    assert loss.item() == pytest.approx(-math.log(1e-12) / 2)
    assert torch.isfinite(torch.autograd.grad(loss.sum(), student)[0]).all()


@pytest.mark.parametrize("measure", ["mse", "kl"])
def test_against_plain_sums(measure):
    student, teacher, targets = example("classification")
    loss = bound(make("attention_transfer", measure=measure, layers=[[0, 2], [1, 1]]))
    expected = 0.0
    for b in range(6):
        real = [t for t in range(5) if targets.tokens[b, t]]
        for i, j in ((0, 2), (1, 1)):
            for query in real:
                for at in real:
                    s, t = student.attention[i][b, :, query, at].mean(), teacher.attention[j][b, :, query, at].mean()
                    value = (s - t) ** 2 / len(real) if measure == "mse" else t * torch.log(t / s)
                    expected += value.item() / len(real) / 2
    total, count = loss(student, teacher, targets)
    assert total.item() == pytest.approx(expected, rel=1e-9)
    assert count.item() == 5


@pytest.mark.parametrize(
    ("loss", "teacher", "said"),
    [
        (AttentionTransfer(heads="each"), (2, 4), r"attention.heads: is each, but the student's layer 0 has 2 heads and the teacher's layer 0 4; take heads=mean"),
        (AttentionTransfer([[0, 1]]), (2, 2), r"attention.layers\[0\]: is \[0, 1\], but the teacher has no layer 1, only 0 to 0"),
        (AttentionTransfer(), None, "attention: reads attention maps, and the teacher has none; take a hint instead"),
    ],
)  # fmt: skip
def test_what_does_not_fit(loss, teacher, said):
    def signals(heads):
        attention = None if heads is None else (torch.full((1, heads, 3, 3), 1 / 3),)
        return Signals(torch.zeros(1, 2), attention=attention)

    with pytest.raises(Refusal, match=said):
        loss.bind(signals(2), signals(teacher and teacher[1]), key=KEY, seed=0)


def test_pictures_have_no_padding():
    targets = Targets(torch.zeros(2, dtype=torch.long), torch.tensor([True, False]))
    sides = [Signals(torch.zeros(2, 2), attention=(side.repeat(2, 1, 1, 1),)) for side in (STUDENT, TEACHER)]
    loss = AttentionTransfer()
    loss.bind(*sides, key=KEY, seed=0)
    total, count = loss(*sides, targets)
    assert total.item() == pytest.approx((STUDENT - TEACHER).square().mean().item())
    assert count.item() == 1
