"""Parts of the figures that can be wrong without looking wrong."""

import math

import pytest

from distill_system.tracking import pictures, plots
from distill_system.tracking.figures import duration, megabytes, metric_names, quality, quantity, short_number
from distill_system.tracking.plots import Curve


def test_thinning_keeps_spikes_ends_and_order():
    values = [1.0] * 5000
    values[1234], values[4000] = 99.0, -99.0
    thin = plots.thin(Curve("loss", list(range(5000)), values))
    assert len(thin.values) <= plots.POINTS
    assert (max(thin.values), min(thin.values)) == (99.0, -99.0)
    assert list(thin.steps) == sorted(thin.steps)


def test_thinning_leaves_short_curves_and_drops_nan():
    assert plots.thin(Curve("x", [1, 2, 3], [1.0, math.nan, 3.0])).values == [1.0, 3.0]


def test_running_mean_by_hand():
    values = [0.0, 3.0, 6.0, 9.0]
    assert plots.smooth(Curve("x", [0, 1, 2, 3], values)).values == [1.5, 3.0, 6.0, 7.5]


def test_labels_are_spread_as_little_as_can_be():
    assert plots.spread([0.1, 0.9], 0.1) == pytest.approx([0.1, 0.9])
    assert plots.spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert plots.spread([0.9, 0.5, 0.52], 0.1) == pytest.approx([0.9, 0.46, 0.56])


def test_short_names_stay_different():
    assert plots.shorten_all(["noun of acts", "noun of events"], 8) == ["…of acts", "… events"]
    assert plots.shorten_all(["negative", "positively so"], 10) == ["negative", "positivel…"]


def test_many_labels_show_the_most_mistaken():
    size = 50
    matrix = [[100 if i == j else 0 for j in range(size)] for i in range(size)]
    matrix[40][41] = 7
    chosen = plots.confused([str(i) for i in range(size)], matrix)
    assert len(chosen) == plots.MOST_LABELS
    assert {40, 41} <= set(chosen)


@pytest.mark.parametrize(
    "curves",
    [
        [Curve("one", [1], [0.5])],
        [Curve("flat", [1, 2], [0.0, 0.0]), Curve("same", [1, 2], [0.0, 0.0])],
        [Curve("wide", list(range(100)), [10.0**-i for i in range(100)])],
        [Curve("nan", [1, 2, 3], [math.nan] * 3), Curve("$a_b^", [1, 2], [1e9, -1e9])],
        [],
    ],
)
def test_odd_curves_are_drawn(curves):
    with pictures.style():
        figure = plots.curves(curves, plots.Marks([(0, "a"), (1, "b")], [1], [2]))
        assert pictures.svg(figure, "f", "a <title> & more").startswith("<svg viewBox=")
        assert pictures.png(figure)[:4] == b"\x89PNG"


def test_words_of_figures():
    assert [short_number(v) for v in (0.01234, 4.567, 1234.5, 0, 1e-5, math.nan, None, 0.8)] == [
        "0.0123", "4.57", "1234", "0", "1.00e-5", "nan", "-", "0.800",
    ]  # fmt: skip
    assert [duration(v) for v in (0.4, 3, 42.2, 185, 7800, None)] == [
        "0.4 s",
        "3 s",
        "42 s",
        "3 min 05 s",
        "2 h 10 min",
        "-",
    ]
    assert [quantity(v) for v in (22_713_986, 105_000, 999, 1.2e9)] == ["22.7M", "105k", "999", "1.20B"]
    assert megabytes(90_900_000) == "90.9 MB"


def test_quality_prefers_accuracy_then_perplexity():
    assert quality({"nll": 1.0, "accuracy": 0.5, "samples": 10}).name == "accuracy"
    assert quality({"nll": 1.0, "perplexity": 2.7, "tokens": 10}).higher_is_better is False
    assert quality({"samples": 3}) is None
    assert metric_names({"zeta": 1.0, "nll": 1.0, "accuracy": math.nan}) == ["nll", "zeta"]
