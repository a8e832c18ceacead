"""Rounds: how many, when, how much; worked values for each shape, and what is refused."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_system.pruning.schedules import problems_of, resolved, rounds_of, sparsity_at
from distill_system.settings import Pruning


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("linear", [0.2, 0.4, 0.6, 0.8]),
        ("cubic", [0.8 - 0.8 * 0.75**3, 0.8 - 0.8 * 0.5**3, 0.8 - 0.8 * 0.25**3, 0.8]),
        ("exponential", [1 - 0.2**0.25, 1 - 0.2**0.5, 1 - 0.2**0.75, 0.8]),
    ],
)
def test_shapes(shape, values):
    settings = Pruning(shape=shape, final_sparsity=0.8)
    assert [sparsity_at(share, settings) for share in (0.25, 0.5, 0.75, 1.0)] == pytest.approx(values)


def test_exponential_takes_the_same_share_of_the_rest_each_time():
    settings = Pruning(shape="exponential", initial_sparsity=0.1, final_sparsity=0.9)
    left = [1 - sparsity_at(share, settings) for share in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert [b / a for a, b in itertools.pairwise(left)] == pytest.approx([(0.1 / 0.9) ** 0.2] * 4)


def test_one_shot_is_one_round_at_the_beginning():
    (only,) = rounds_of(Pruning(shape="one_shot", final_sparsity=0.7, begin=0.25, rounds=5), 100)
    assert (only.step, only.sparsity) == (25, 0.7)


def test_every_n_steps():
    found = rounds_of(Pruning(shape="linear", final_sparsity=0.5, begin=0.1, end=0.5, every=20), 100)
    assert [one.step for one in found] == [10, 30, 50]
    assert found[-1].sparsity == 0.5


@given(
    steps=st.integers(1, 500),
    begin=st.floats(0, 1),
    end=st.floats(0, 1),
    rounds=st.integers(1, 40),
    final=st.floats(0.01, 0.99),
    shape=st.sampled_from(["one_shot", "linear", "cubic", "exponential"]),
)
def test_rounds_are_in_order_and_inside(steps, begin, end, rounds, final, shape):
    settings = Pruning(shape=shape, begin=begin, end=max(begin, end), rounds=rounds, final_sparsity=final)
    if problems_of(settings, steps):
        return
    found = rounds_of(settings, steps)
    at = [one.step for one in found]
    assert at == sorted(at)
    assert at[0] >= 0
    assert at[-1] <= steps
    assert len(set(at)) == len(at)  # never two in one step
    amounts = [one.sparsity for one in found]
    assert amounts == sorted(amounts)
    assert amounts[-1] == pytest.approx(final)


@pytest.mark.parametrize(
    ("settings", "steps", "setting", "words"),
    [
        ({"final_sparsity": 0.2, "initial_sparsity": 0.4}, None, "final_sparsity", "below initial_sparsity 0.4"),
        ({"final_sparsity": 0.0}, None, "final_sparsity", "nothing would be pruned"),
        ({"begin": 0.8, "end": 0.5}, None, "end", "before begin 0.8; nearest: end=0.8"),
        ({"rounds": 30}, 20, "rounds", "only 13 of the phase's 20 steps; nearest: rounds=13"),
    ],
)
def test_what_can_t_be(settings, steps, setting, words):
    found = problems_of(Pruning(**settings), steps)
    assert any(key == setting and words in message for key, message in found), found


def test_layers_go_one_after_another_by_default():
    assert resolved(Pruning(), "layers").shape == "linear"
    assert resolved(Pruning(), "weights").shape == "cubic"
    assert resolved(Pruning(shape="exponential"), "layers").shape == "exponential"
