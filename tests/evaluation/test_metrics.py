"""Metrics worked by hand on a few rows, and the calibration bins against the error that torchmetrics computes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.evaluation import metrics
from distill_system.evaluation.names import METRICS
from distill_system.signals import IGNORE


def logits_of(*probs):
    return torch.tensor(probs, dtype=torch.float64).log()


# Predictions 0 0 1 1 against labels 0 1 1 1; the last row has no label.
LOGITS = logits_of([0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.25, 0.75], [0.5, 0.5])
LABELS = torch.tensor([0, 1, 1, 1, IGNORE])


def test_classification_by_hand():
    figures = metrics.classification_metrics(LOGITS, LABELS)
    assert figures["samples"] == 4
    assert figures["accuracy"] == pytest.approx(3 / 4)
    # Class 0: one hit, one false alarm, F1 = 2/3; class 1: two hits, one miss, F1 = 4/5.
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert figures["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.3) + math.log(0.8) + math.log(0.75)) / 4)
    # 0.7 and wrong; 0.75 and 0.8 and 0.9 and right. Bins of 1/15: 0.7 is in [10/15, 11/15), 0.75 in [11/15, 12/15), the others alone too.
    assert figures["ece"] == pytest.approx((0.7 + 0.25 + 0.2 + 0.1) / 4, abs=1e-6)


@given(right=st.integers(0, 60), wrong=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_accuracy_is_exact_to_the_last_bit(right, wrong):
    labels = torch.tensor([0] * right + [1] * wrong)
    accuracy = metrics.classification_metrics(torch.tensor([[1.0, 0.0]]).expand(len(labels), 2), labels)["accuracy"]
    assert accuracy == right / (right + wrong)  # a gate at 0.9 lets 9 of 10 pass
    assert max(right, wrong) / len(labels) == metrics.chance(labels)


def test_no_labelled_row():
    figures = metrics.classification_metrics(LOGITS[-1:], LABELS[-1:])
    assert figures.pop("samples") == 0
    assert set(figures) == set(METRICS["classification"])
    assert all(map(math.isnan, figures.values()))
    assert metrics.calibration(LOGITS[-1:], LABELS[-1:]) == {"bins": []}
    assert metrics.chance(LABELS[-1:]) == 0


def test_calibration_by_hand():
    logits = logits_of([0.9, 0.1], [0.92, 0.08], [0.6, 0.4])  # 0.9 and 0.92 share the bin [13/15, 14/15)
    bins = metrics.calibration(logits, torch.tensor([0, 1, 0]))["bins"]
    assert [entry["count"] for entry in bins] == [1, 2]
    assert [entry["confidence"] for entry in bins] == pytest.approx([0.6, 0.91])
    assert [entry["accuracy"] for entry in bins] == pytest.approx([1.0, 0.5])


@given(
    rows=st.integers(1, 60),
    classes=st.integers(2, 5),
    scale=st.sampled_from([0.0, 1.0, 1000.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=30, deadline=None)
def test_bins_add_up_to_the_calibration_error(rows, classes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator) * scale
    labels = torch.randint(classes, (rows,), generator=generator)
    bins = metrics.calibration(logits, labels)["bins"]
    assert sum(entry["count"] for entry in bins) == rows
    assert len(bins) <= metrics.BINS  # a confidence of exactly 1 has no bin of its own
    expected = sum(entry["count"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins) / rows
    assert metrics.classification_metrics(logits, labels)["ece"] == pytest.approx(expected, abs=1e-5)


def test_confusion_has_a_row_for_each_true_class():
    assert metrics.confusion(LOGITS, LABELS, ["no", "yes"]) == {"labels": ["no", "yes"], "matrix": [[1, 0], [1, 2]]}


def test_language_by_hand():
    # Four tokens of probability 1/8 each, 6 bytes of text: 3 bits a token, 2 bits a byte.
    figures = metrics.language_metrics(4 * math.log(8), tokens=4, num_bytes=6)
    assert figures == pytest.approx({"perplexity": 8, "bits_per_byte": 2, "nll": math.log(8), "tokens": 4})
    assert "bits_per_byte" not in metrics.language_metrics(1.0, 4, None)
    assert metrics.language_metrics(0.0, 0, 0) == pytest.approx(
        {"perplexity": math.nan, "nll": math.nan, "tokens": 0}, nan_ok=True
    )
    assert metrics.language_metrics(1e6, 1, None)["perplexity"] == math.inf


def test_agreement_by_hand():
    student, teacher = logits_of([0.5, 0.5], [0.9, 0.1]), logits_of([0.75, 0.25], [0.1, 0.9])
    figures = metrics.agreement(student, teacher)
    assert figures["agreement"] == 0.5
    kl = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) + (0.1 * math.log(1 / 9) + 0.9 * math.log(9))
    assert figures["kl"] == pytest.approx(kl / 2)
    assert metrics.agreement(teacher, teacher + 3) == pytest.approx({"agreement": 1.0, "kl": 0.0})


def test_chance_is_the_majority():
    assert metrics.chance(LABELS) == 0.75
