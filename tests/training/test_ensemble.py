"""Several teachers as one: means of probabilities and logits, and the trust each has at each position, against float64 arithmetic by hand."""

import math

import pytest
import torch

from distill_system.settings import Ensemble
from distill_system.signals import Signals
from distill_system.training.ensemble import TOGETHER, Faculty, energies, log_probs, quality_weights, together
from distill_system.training.teachers import Teacher

LOGITS = {
    "a": torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]]),
    "b": torch.tensor([[0.0, 1.0, 0.0], [5.0, 0.0, 0.0]]),
}


class Says(Teacher):
    """A teacher that says the same of every batch, and counts how often it is asked."""

    def __init__(self, logits, known=None):
        super().__init__(torch.nn.Identity(), task="classification", known=known)
        self.logits, self.asked = logits, 0

    def signals(self, batch, needs=frozenset({"logits"})):
        self.asked += 1
        return Signals(self.logits)


def faculty(settings=None, needs=None, weights=None, known=None):
    teachers = {name: Says(logits, (known or {}).get(name)) for name, logits in LOGITS.items()}
    needs = needs or {TOGETHER: frozenset({"logits"})}
    return Faculty(teachers, Ensemble(**(settings or {})), weights or {"a": 1.0, "b": 3.0}, needs, "classification")


BATCH = {"labels": torch.tensor([0, 2])}


def probs(name):
    return LOGITS[name].double().softmax(-1)


def test_the_mean_of_probabilities():
    said = faculty()(BATCH)[TOGETHER].logits
    torch.testing.assert_close(said.double().softmax(-1), 0.25 * probs("a") + 0.75 * probs("b"), rtol=1e-6, atol=1e-7)
    assert said.dtype == torch.float32


def test_a_value_by_hand():
    """Two sure teachers that contradict each other, weights 1 and 3: probabilities 1/4 and 3/4, hence a logit difference of log 3."""
    said = {"a": Signals(torch.tensor([[50.0, 0.0]])), "b": Signals(torch.tensor([[0.0, 50.0]]))}
    share = {"a": torch.tensor([0.25]), "b": torch.tensor([0.75])}
    mixed = together(said, share, "probabilities", "classification")
    assert float(mixed[0, 1] - mixed[0, 0]) == pytest.approx(math.log(3), rel=1e-6)


def test_the_mean_of_logits_does_not_hear_a_constant():
    plain = faculty({"combine": "logits"})(BATCH)[TOGETHER].logits
    moved = faculty({"combine": "logits"})
    moved.teachers["b"].logits = LOGITS["b"] + 100
    torch.testing.assert_close(moved(BATCH)[TOGETHER].logits, plain, rtol=1e-4, atol=1e-5)
    expected = sum(w * (z - z.mean(-1, keepdim=True)) for w, z in ((0.25, LOGITS["a"]), (0.75, LOGITS["b"])))
    torch.testing.assert_close(plain, expected)


def test_cut_words_stay_cut():
    said = {name: Signals(torch.cat([z, torch.full((2, 1), -math.inf)], -1)) for name, z in LOGITS.items()}
    share = dict.fromkeys(LOGITS, torch.tensor([0.5, 0.5]))
    for combine in ("probabilities", "logits"):
        mixed = together(said, share, combine, "classification")
        assert (mixed[:, 3] == -math.inf).all()
        assert mixed[:, :3].isfinite().all()


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_a_teacher_without_a_share_cuts_nothing(combine):
    """Its words of -inf, times a share of 0, are nothing, and no NaN."""
    said = {
        "a": Signals(LOGITS["a"]),
        "b": Signals(LOGITS["b"].masked_fill(torch.tensor([False, False, True]), -math.inf)),
    }
    share = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([0.0, 0.0])}
    mixed = together(said, share, combine, "classification")
    torch.testing.assert_close(mixed.double().softmax(-1), probs("a"), rtol=1e-6, atol=1e-7)


def test_multi_label_averages_each_label():
    share = dict.fromkeys(LOGITS, torch.tensor([0.5, 0.5]))
    mixed = together({n: Signals(z) for n, z in LOGITS.items()}, share, "probabilities", "multi_label")
    expected = (LOGITS["a"].double().sigmoid() + LOGITS["b"].double().sigmoid()) / 2
    torch.testing.assert_close(mixed.double().sigmoid(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weighting", ["confidence", "agreement"])
def test_trust_follows_the_energy(weighting):
    made = faculty(
        {"weighting": weighting, "sharpness": 2.0, "combine": "losses"},
        needs=dict.fromkeys(LOGITS, frozenset({"logits"})),
    )
    said = made(BATCH)
    mean = 0.25 * probs("a") + 0.75 * probs("b")
    energy = {
        name: -(probs(name) * probs(name).log()).sum(-1)
        if weighting == "confidence"
        else (mean * (mean.log() - probs(name).log())).sum(-1)
        for name in LOGITS
    }
    raw = {name: made.weights[name] * torch.exp(-2.0 * energy[name]) for name in LOGITS}
    for name in LOGITS:
        torch.testing.assert_close(said[name].trust, raw[name] / (raw["a"] + raw["b"]), rtol=1e-6, atol=1e-9)


def test_the_surer_teacher_is_trusted_more():
    trust = faculty(
        {"weighting": "confidence", "combine": "losses"}, dict.fromkeys(LOGITS, frozenset({"logits"})), {"a": 1, "b": 1}
    )(BATCH)
    assert trust["a"].trust[0] > 0.5 > trust["a"].trust[1]  # b is surer of the second row


def test_a_teacher_says_nothing_of_rows_of_classes_that_it_does_not_know():
    known = {"a": torch.tensor([True, True, False])}
    said = faculty(
        {"weighting": "confidence", "combine": "losses"}, dict.fromkeys(LOGITS, frozenset({"logits"})), known=known
    )(BATCH)
    assert said["a"].trust[1] == 0  # labelled with class 2
    assert said["b"].trust[1] == 1


def test_each_teacher_is_asked_once_whatever_the_number_of_losses():
    made = faculty(
        {"weighting": "agreement"},
        {TOGETHER: frozenset({"logits"}), "a": frozenset({"logits"}), "b": frozenset({"logits"})},
    )
    made(BATCH)
    assert [teacher.asked for teacher in made.teachers.values()] == [1, 1]


def test_a_teacher_nobody_reads_is_not_asked():
    made = faculty({"combine": "losses"}, {"a": frozenset({"logits"})})
    made(BATCH)
    assert [teacher.asked for teacher in made.teachers.values()] == [1, 0]


def test_a_single_teacher_says_what_it_says():
    one = Faculty(
        {"main": Says(LOGITS["a"])},
        Ensemble(weighting="confidence"),
        {"main": 2.0},
        {"main": frozenset({"logits"})},
        "classification",
    )
    said = one(BATCH)
    assert list(said) == ["main"]
    assert said["main"].trust is None
    assert torch.equal(said["main"].logits, LOGITS["a"])


def test_quality_is_the_mean_probability_of_the_right_answer():
    found = quality_weights({"a": {"nll": math.log(2)}, "b": {"nll": math.log(4)}}, {"a": 1.0, "b": 1.0}, 1.0)
    assert found["a"] == pytest.approx(0.5)
    assert found["b"] == pytest.approx(0.25)
    assert quality_weights({"a": {"nll": math.log(2)}}, {"a": 3.0}, 2.0)["a"] == pytest.approx(0.75)
    assert quality_weights({"a": {"mse": 0.5}, "b": {"mse": None}}, {"a": 1.0, "b": 1.0}, 1.0) == {"a": 2.0, "b": 0.0}


def test_energies_of_a_fixed_weighting_are_nought():
    assert all((e == 0).all() for e in energies(LOGITS, "fixed", {"a": 0.5, "b": 0.5}, "classification").values())
    assert log_probs(LOGITS["a"], "multi_label").shape == (2, 3, 2)
