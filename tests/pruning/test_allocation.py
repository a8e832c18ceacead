"""The suggested share of each group: against every division on a grid, and by hand."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_system.pruning.allocation import allocate, rise_at


def test_straight_lines_between_what_was_measured():
    assert rise_at(0.25, [0.5, 1.0], [1.0, 5.0]) == 0.5
    assert rise_at(0.75, [0.5, 1.0], [1.0, 5.0]) == 3.0
    assert rise_at(0.75, [0.5, 1.0], [1.0, 0.5]) == 1.0  # noise: more pruned is never better


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 3), st.integers(1, 50)), min_size=2, max_size=3),
    st.floats(0.05, 0.85),
)
def test_no_other_division_is_cheaper(groups, target):
    """Where rises are convex. Compared with all divisions into tenths of the highest level that take as much."""
    levels = [0.45, 0.9]
    rises = {str(i): [first, 2 * first + more] for i, (first, more, _) in enumerate(groups)}
    sizes = {str(i): size for i, (_, _, size) in enumerate(groups)}
    shares = allocate(levels, rises, sizes, target)

    def cost(given: dict[str, float]) -> float:
        return sum(rise_at(given[name], levels, rises[name]) for name in rises)

    taken = sum(shares[name] * sizes[name] for name in sizes)
    assert taken == pytest.approx(target * sum(sizes.values()), abs=1e-4 * sum(sizes.values()))
    assert all(0 <= share <= 0.9 + 1e-9 for share in shares.values())
    for division in itertools.product([0.09 * i for i in range(11)], repeat=len(sizes)):
        other = dict(zip(sizes, division, strict=True))
        if sum(other[name] * sizes[name] for name in sizes) >= taken:
            slack = 0.01 * max(rises[name][1] for name in rises) * len(rises)  # a grain's worth
            assert cost(shares) <= cost(other) + slack + 1e-9


def test_larger_groups_pay_more():
    assert allocate([0.5, 1.0], {"a": [1.0, 2.0], "b": [1.0, 2.0]}, {"a": 30, "b": 10}, 0.5) == {
        "a": pytest.approx(2 / 3),
        "b": 0.0,
    }
