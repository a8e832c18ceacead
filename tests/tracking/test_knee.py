"""Where a curve of size and quality bends."""

import pytest

from distill_system.tracking.knee import knee, knee_words


def test_the_point_furthest_above_the_chord():
    assert knee([(1, 0.5), (2, 0.8), (4, 0.82)]) == 1
    assert knee([(4, 0.82), (1, 0.5), (2, 0.8)]) == 2  # the number in the list as given


def test_by_hand_on_four_sizes():
    """Sizes 1, 2, 4, 8 lie at 0, 1/3, 2/3, 1; qualities 0, 0.6, 0.9, 1 lie 0.267 and 0.233 above the chord."""
    assert knee([(1, 0.0), (2, 0.6), (4, 0.9), (8, 1.0)]) == 1


@pytest.mark.parametrize(
    "points",
    [
        [(1, 0.5), (2, 0.6)],
        [(1, 0.5), (2, 0.6), (4, 0.7)],
        [(1, 0.5), (2, 0.52), (4, 0.8)],
        [(1, 0.5), (2, 0.5), (4, 0.5)],
        [(2, 0.5), (2, 0.6), (2, 0.7)],
    ],
)
def test_no_bend_no_knee(points):
    assert knee(points) is None


def test_a_small_value_may_be_the_good_one():
    assert knee([(1, 9.0), (2, 5.0), (4, 4.8)], higher_is_better=False) == 1
    assert knee([(1, 9.0), (2, 5.0), (4, 4.8)]) is None


def test_words_name_the_knee_and_what_a_doubling_gains():
    words = knee_words(["s", "m", "l"], [(1, 0.5), (2, 0.8), (4, 0.82)], "accuracy")
    assert words.startswith("The knee is m")
    assert "30.0 points" in words
    assert "2.0 points" in words
