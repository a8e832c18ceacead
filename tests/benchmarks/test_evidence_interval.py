"""The statistics of evidence tables: quantiles against printed tables, intervals worked by hand, the rule of the verdict, the bias correction."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.evidence.correction import corrected_metrics, frequency_bias
from benchmarks.evidence.interval import (
    BEATS,
    INCONCLUSIVE,
    NOT,
    UNFINISHED,
    Paired,
    detectable_effect,
    incomplete_beta,
    paired,
    t_distribution,
    t_quantile,
    verdict,
)


@pytest.mark.parametrize(
    ("probability", "freedom", "printed"),
    [
        (0.975, 1, 12.7062047),
        (0.975, 2, 4.3026527),
        (0.975, 4, 2.7764451),
        (0.975, 9, 2.2621572),
        (0.975, 30, 2.0422725),
        (0.975, 1000, 1.9623391),
        (0.8, 4, 0.9409646),
        (0.995, 4, 4.6040949),
        (0.75, 1, 1.0),  # of the Cauchy distribution
    ],
)
def test_quantiles_are_those_of_printed_tables(probability, freedom, printed):
    assert t_quantile(probability, freedom) == pytest.approx(printed, abs=2e-7)
    assert t_quantile(1 - probability, freedom) == pytest.approx(-printed, abs=2e-7)


@given(t=st.floats(-50, 50))
def test_distribution_of_two_degrees_has_a_closed_form(t):
    assert t_distribution(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-8)


@given(x=st.floats(0, 1), b=st.floats(0.1, 20))
def test_incomplete_beta_with_one_is_a_power(x, b):
    assert incomplete_beta(x, 1.0, b) == pytest.approx(1 - (1 - x) ** b, abs=1e-9)


@given(probability=st.floats(0.001, 0.999), freedom=st.integers(1, 60))
def test_quantile_and_distribution_undo_each_other(probability, freedom):
    assert t_distribution(t_quantile(probability, freedom), freedom) == pytest.approx(probability, abs=1e-9)


def test_paired_interval_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, half of the interval 4.3026527 / sqrt(3) = 2.484138."""
    found = paired([10.0, 20.0, 30.0], [11.0, 22.0, 33.0])
    assert (found.baseline, found.method, found.difference, found.deviation) == (20.0, 22.0, 2.0, 1.0)
    assert found.low == pytest.approx(2 - 2.4841377, abs=1e-6)
    assert found.high == pytest.approx(2 + 2.4841377, abs=1e-6)
    assert (found.wins, found.count) == (3, 3)


def test_pairs_matter_not_the_spread_of_the_arms():
    found = paired([0.1, 0.5, 0.9], [0.12, 0.52, 0.92])
    assert found.low == pytest.approx(0.02)
    assert found.high == pytest.approx(0.02)


def test_where_low_is_good_the_difference_turns():
    found = paired([2.0, 2.0], [1.0, 1.5], higher_is_better=False)
    assert (found.difference, found.wins) == (0.75, 2)
    assert (found.baseline, found.method) == (2.0, 1.25)


def test_one_seed_bounds_nothing():
    found = paired([1.0], [2.0])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert verdict(found, minimal_effect=0.1, planned=1) == INCONCLUSIVE


def interval(low: float, high: float, count: int = 5) -> Paired:
    return Paired(0.0, 0.0, (low + high) / 2, low, high, 1.0, 0, count)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 2.0, BEATS),
        (0.5, 1.0, BEATS),
        (0.0, 2.0, INCONCLUSIVE),
        (-1.0, 1.0, INCONCLUSIVE),
        (-1.0, 0.9, NOT),
        (-3.0, -1.0, NOT),
        (0.1, 0.9, NOT),
    ],
    ids=["above", "to the least", "touches zero", "wide", "below the least", "harmful", "above zero but too small"],
)
def test_verdict(low, high, expected):
    assert verdict(interval(low, high), minimal_effect=1.0, planned=5) == expected
    assert verdict(interval(low, high, 4), minimal_effect=1.0, planned=5) == UNFINISHED


def test_detectable_effect_by_hand():
    """(2.7764451 + 0.9409646) * 0.02 / sqrt(5); the exact figure from the noncentral distribution is 0.0336."""
    assert detectable_effect(0.02, 5) == pytest.approx(0.0332495, abs=1e-6)
    assert detectable_effect(0.02, 5) == pytest.approx(0.0336, rel=0.02)
    assert detectable_effect(0.02, 1) == math.inf


def test_correction_makes_a_class_as_frequent_as_it_is():
    logits_NC = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    logits_NC[:, 2] -= 5  # never seen, never said
    assert (logits_NC.argmax(dim=-1) == 2).sum() == 0
    for frequency in (0.0, 0.1, 0.25, 1.0):
        raised_NC = logits_NC.clone()
        raised_NC[:, 2] += frequency_bias(logits_NC, 2, frequency)
        assert (raised_NC.argmax(dim=-1) == 2).sum() == round(200 * frequency)


def test_corrected_metrics_by_hand():
    """Two of four validation rows are class 1, whose margins are 1, 2, 3 and 4: the bias is 2.5, and turns the two test rows with margins below it."""
    validation_NC = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    test_NC = torch.tensor([[2.0, 0.0], [2.4, 0.0], [2.6, 0.0]])
    found = corrected_metrics(validation_NC, torch.tensor([1, 1, 0, 0]), test_NC, torch.tensor([1, 0, 1]), 1)
    assert found == pytest.approx(
        {"bias": 2.5, "accuracy": 1 / 3, "accuracy_before": 1 / 3, "recall": 0.5, "recall_before": 0.0}
    )
