"""Problems in words, and the nearest right name."""

import pytest

from distill_system.errors import Problem, Refusal, nearest, refuse


def test_a_problem_is_its_key_and_a_sentence():
    assert str(Problem("a.b", "is 3, must be > 4")) == "a.b: is 3, must be > 4"
    assert str(Problem("", "everything is wrong")) == "everything is wrong"


def test_a_refusal_carries_every_problem():
    refusal = Refusal(iter([Problem("a", "x"), Problem("b", "y")]))
    assert str(refusal) == "  a: x\n  b: y"
    assert [problem.key for problem in refusal.problems] == ["a", "b"]
    assert isinstance(refusal, ValueError)
    assert refuse("a", "x").problems == [Problem("a", "x")]


@pytest.mark.parametrize(
    ("word", "choices", "said"),
    [
        ("temprature", ["weight", "temperature"], " (did you mean 'temperature'?)"),
        ("x", ["b", "a"], " (known: a, b)"),
        ("x", [], ""),
        ("1", iter([1, 22]), " (did you mean '1'?)"),
    ],
)
def test_nearest(word, choices, said):
    assert nearest(word, choices) == said
