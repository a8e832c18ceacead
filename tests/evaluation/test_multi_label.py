"""Several labels a row, against figures worked by hand and plain loops."""

import math

import pytest
import torch

from distill_system.evaluation import multi_label

NAN = math.nan
LABELS = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [NAN, NAN, NAN]])
LOGITS = torch.tensor([[2.0, -1.0, -3.0], [1.0, -2.0, -3.0], [-1.0, 3.0, -3.0], [9.0, 9.0, 9.0]])


def test_by_hand():
    found = multi_label.multi_label_metrics(LOGITS, LABELS)
    # Label 0: two hits. Label 1: a miss and a false alarm. Label 2 neither occurs nor is said.
    assert found["macro_f1"] == pytest.approx((1 + 0) / 2)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["exact_match"] == pytest.approx(1 / 3)
    # Label 0 is ranked first; of label 1 the only true row comes last of three.
    assert found["mean_average_precision"] == pytest.approx((1 + 1 / 3) / 2)
    nll = sum(math.log1p(math.exp(-z if y else z)) for zs, ys in zip(LOGITS[:3].tolist(), LABELS[:3].tolist(), strict=True) for z, y in zip(zs, ys, strict=True))  # fmt: skip
    assert found["nll"] == pytest.approx(nll / 9, rel=1e-6)
    assert found["samples"] == 3


def test_nothing_known_and_one_label():
    found = multi_label.multi_label_metrics(LOGITS[3:], LABELS[3:])
    assert found.pop("samples") == 0
    assert all(math.isnan(value) for value in found.values())
    one = multi_label.multi_label_metrics(LOGITS[:3, :1], LABELS[:3, :1])
    assert one["macro_f1"] == one["exact_match"] == one["mean_average_precision"] == 1


def test_agreement():
    same = multi_label.multi_label_agreement(LOGITS, LOGITS)
    assert same == {"agreement": 1.0, "kl": 0.0}
    student, teacher = torch.tensor([[0.0, 1.0]]), torch.tensor([[math.log(3), -1.0]])
    found = multi_label.multi_label_agreement(student, teacher)
    assert found["agreement"] == 0.0  # 0 is no yes
    p, q, r = 0.75, 1 / (1 + math.e), 1 / (1 + math.exp(-1))
    expected = (
        p * math.log(p / 0.5)
        + (1 - p) * math.log((1 - p) / 0.5)
        + q * math.log(q / r)
        + (1 - q) * math.log((1 - q) / (1 - r))
    )
    assert found["kl"] == pytest.approx(expected / 2)
    assert multi_label.multi_label_agreement(LOGITS[:0], LOGITS[:0]) == {}
    assert math.isfinite(multi_label.multi_label_agreement(LOGITS * 500, -LOGITS * 500)["kl"])


def test_commonest_set_and_decisions():
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [NAN, NAN]])
    assert multi_label.commonest_set(labels) == pytest.approx(2 / 3)
    assert multi_label.commonest_set(labels[3:]) == 0.0
    logits, said = multi_label.decisions(
        torch.tensor([[2.0, -1.0], [5.0, 5.0]]), torch.tensor([[1.0, 0.0], [NAN, NAN]])
    )
    assert logits.tolist() == [[0, 2], [0, -1]]
    assert said.tolist() == [1, 0]
