"""Which layer hears which: relative depth worked by hand, and pairs that don't exist."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_system.errors import Refusal
from distill_system.losses.layers import choose_pairs, relative_depth


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (2, 6, [(0, 2), (1, 5)]),
        (4, 12, [(0, 2), (1, 5), (2, 8), (3, 11)]),
        (4, 6, [(0, 1), (1, 2), (2, 4), (3, 5)]),  # 1.5, 3, 4.5, 6: half goes up
        (3, 4, [(0, 0), (1, 2), (2, 3)]),  # 1.33, 2.67, 4
        (3, 3, [(0, 0), (1, 1), (2, 2)]),
        (1, 12, [(0, 11)]),
        (4, 2, [(0, 0), (1, 0), (2, 1), (3, 1)]),  # 0.5, 1, 1.5, 2
        (6, 2, [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]),  # 0.33 is before the first: it hears that one
    ],
)
def test_relative_depth(student, teacher, expected):
    assert relative_depth(student, teacher) == expected


@given(student=st.integers(1, 40), teacher=st.integers(1, 40))
def test_every_layer_hears_one_in_order_and_the_last_the_last(student, teacher):
    pairs = relative_depth(student, teacher)
    heard = [layer for _, layer in pairs]
    assert [layer for layer, _ in pairs] == list(range(student))
    assert heard == sorted(heard)
    assert min(heard) >= 0
    assert heard[-1] == teacher - 1
    if student <= teacher:
        assert len(set(heard)) == student


def test_settings():
    assert choose_pairs("auto", 2, 6, "k") == [(0, 2), (1, 5)]
    assert choose_pairs("last", 2, 6, "k") == [(1, 5)]
    assert choose_pairs([[1, 0], [0, 0]], 2, 6, "k") == [(1, 0), (0, 0)]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (
            [[0, 2], [1, 6]],
            r"k\[1\]: is \[1, 6\], but the teacher has no layer 6, only 0 to 5; the nearest pair is \[1, 5\]",
        ),
        ([[4, 9]], r"k\[0\]: is \[4, 9\], but the student has no layer 4, only 0 to 1; the nearest pair is \[1, 5\]"),
        ([[-1, 2]], r"the student has no layer -1, only 0 to 1; the nearest pair is \[0, 2\]"),
        ([[0]], r"k\[0\]: is \[0\], must be a pair"),
        ([], "k: is an empty list"),
        ([[0, 1], [0, 1]], r"k: holds the pair \[0, 1\] twice"),
    ],
)
def test_pairs_that_cannot_be(layers, said):
    with pytest.raises(Refusal, match=said):
        choose_pairs(layers, 2, 6, "k")
