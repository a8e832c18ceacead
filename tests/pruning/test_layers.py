"""Which layer goes next, by rule and by effect."""

import pytest

from distill_system.pruning.layers import by_effect, by_rule, count_removed


def order(rule: str, layers: int, every: int = 2) -> list[int]:
    remaining = list(range(layers))
    gone = []
    while len(remaining) > 1:
        gone.append(by_rule(rule, remaining, layers, every))
        remaining.remove(gone[-1])
    return gone


@pytest.mark.parametrize(
    ("rule", "every", "gone"),
    [
        ("first", 2, [0, 1, 2, 3, 4]),
        ("last", 2, [5, 4, 3, 2, 1]),
        ("middle", 2, [3, 2, 4, 1, 5]),
        ("every", 2, [1, 3, 5, 2, 4]),
        ("every", 3, [2, 5, 3, 4, 1]),
    ],
)
def test_rules(rule, every, gone):
    assert order(rule, 6, every) == gone


def test_the_least_effect_goes_first_and_of_equals_the_last():
    assert by_effect([0, 1, 2, 3], {0: 2.0, 1: 0.5, 2: 0.5, 3: 1.0}.__getitem__) == (
        2,
        {0: 2.0, 1: 0.5, 2: 0.5, 3: 1.0},
    )


@pytest.mark.parametrize(
    ("sparsity", "layers", "gone"), [(0.5, 6, 3), (0.25, 6, 1), (0.99, 6, 5), (0.01, 6, 0), (1 / 3, 12, 4), (0.5, 1, 0)]
)
def test_how_many(sparsity, layers, gone):
    assert count_removed(sparsity, layers) == gone
