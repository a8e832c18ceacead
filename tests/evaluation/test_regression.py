"""Figures of predicted numbers, worked by hand."""

import doctest
import math

import pytest
import torch

from distill_system.evaluation import regression


def test_doctests():
    assert doctest.testmod(regression).failed == 0


def column(*values):
    return torch.tensor(values)[:, None]


def test_by_hand():
    found = regression.regression_metrics(column(1.0, 2.0, 4.0, 9.0), column(1.0, 3.0, 5.0, math.nan))
    assert found["mse"] == pytest.approx(2 / 3)
    assert found["mae"] == pytest.approx(2 / 3)
    assert found["r2"] == pytest.approx(1 - 2 / 8)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(6 / math.sqrt(8 * 14 / 3))
    assert found["samples"] == 3


def test_what_can_t_be_said_is_nan():
    found = regression.regression_metrics(column(1.0, 1.0), column(2.0, 3.0))
    assert math.isnan(found["pearson"])
    assert math.isnan(found["spearman"])
    assert found["r2"] == pytest.approx(1 - 5 / 0.5)
    alone = regression.regression_metrics(column(1.0), column(2.0))
    assert (alone["mse"], math.isnan(alone["r2"]), alone["samples"]) == (1.0, True, 1)
    none = regression.regression_metrics(column(1.0), column(math.nan))
    assert (math.isnan(none["mse"]), none["samples"]) == (True, 0)


def test_agreement_and_the_mean():
    assert regression.regression_agreement(column(1.0, 2.0), column(3.0, 6.0)) == {
        "mse": 10.0,
        "pearson": pytest.approx(1.0),
    }
    assert regression.regression_agreement(torch.zeros(0, 1), torch.zeros(0, 1)) == {}
    assert regression.error_of_mean(column(1.0, 3.0, math.nan)) == 1.0
    assert regression.error_of_mean(column(math.nan)) == 0.0
