"""The signature is the schema: what is read from a class's source, and how each value is judged by it."""

import math
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_system.schema import (
    Count,
    Finite,
    Fraction,
    Index,
    NonNegative,
    Parameter,
    Positive,
    ProperFraction,
    Range,
    Signature,
    check,
    check_parameters,
    in_words,
    signature_of_dataclass,
    signature_of_target,
)
from distill_system.settings import PositiveSchedule, Schedule

GROUP = "a group of settings (start, end, shape, begin, until)"


@dataclass
class Part:
    size: Count
    name: str = "x"
    tags: list[str] = field(default_factory=list)


@pytest.mark.parametrize(
    ("value", "annotation", "said"),
    [
        (1, int, None),
        (True, int, "is true, must be a whole number"),
        (1.0, int, "is 1.0, must be a whole number"),
        (1, float, None),
        (True, float, "is true, must be a number"),
        ("1", float, "is '1', must be a number"),
        (1, bool, "is 1, must be true or false"),
        (None, str, "is null, must be a text"),
        (0, Positive, "is 0, must be > 0"),
        (0, NonNegative, None),
        (1, Fraction, None),
        (1, ProperFraction, "is 1, must be >= 0 and < 1"),
        (math.nan, Finite, "is nan, must be finite"),
        (math.inf, Positive, "is inf, must be > 0"),
        (0, Count, "is 0, must be >= 1"),
        (-1, Index, "is -1, must be >= 0"),
        (1.5, Count, "is 1.5, must be a whole number"),
        (None, Count | None, None),
        (0, Count | None, "is 0, must be >= 1"),
        ("x", Count | None, "is 'x', must be a whole number"),
        ("ddp", Literal["ddp", "zero1"], None),
        ("dpd", Literal["ddp", "zero1"], "is 'dpd' (did you mean 'ddp'?), must be one of ddp, zero1"),
        ("qqq", Literal["ddp", "zero1"], "is 'qqq', must be one of ddp, zero1"),
        (True, Literal[1, 2], "is true, must be one of 1, 2"),
        ([1, 2], list[int], None),
        ("ab", list[str], "is 'ab', must be a list such as [a,b]"),
        ({"a": 1}, dict[str, int], None),
        (3, dict[str, int], "is 3, must be a group of named settings"),
        (3, Part, "is 3, must be a group of settings (size, name, tags)"),
        (object(), Any, None),
        ("even", Literal["even"] | list[int], None),
        ([1], Literal["even"] | list[int], None),
        ("evne", Literal["even", "odd"] | list[int], "is 'evne' (did you mean 'even'?), must be one of even, odd"),
        (0, NonNegative | Schedule, None),
        (-1, NonNegative | Schedule, "is -1, must be >= 0"),
        ("x", Positive | Schedule, f"is 'x', must be a number, or {GROUP}"),
        ({"start": 1.0, "end": 0.0, "shape": "linear"}, NonNegative | Schedule, None),
        ({"start": 4.0}, Positive | PositiveSchedule, None),
    ],
)
def test_each_kind_of_value(value, annotation, said):
    assert [problem.message for problem in check(value, annotation, "k")] == ([said] if said else [])


def test_keys_of_what_lies_inside():
    assert [p.key for p in check([1, "x"], list[int], "k")] == ["k[1]"]
    assert [p.key for p in check({"a": 1, "b": "x"}, dict[str, int], "k")] == ["k.b"]
    assert [p.key for p in check({"size": 0, "nmae": "y"}, Part, "k")] == ["k.size", "k.nmae"]
    assert [p.key for p in check({"one": {"size": 0}}, dict[str, Part], "k")] == ["k.one.size"]


@pytest.mark.parametrize(
    ("value", "annotation", "said"),
    [
        ({"start": -1}, NonNegative | Schedule, ["k.start: is -1, must be >= 0"]),
        ({"start": 1, "shpae": "linear"}, NonNegative | Schedule, ["k.shpae: is not a setting here (did you mean 'shape'?)"]),
        ({"start": 1, "shape": "liner"}, NonNegative | Schedule, ["k.shape: is 'liner' (did you mean 'linear'?), must be one of constant, linear, cosine"]),
        ({"end": 1}, NonNegative | Schedule, ["k.start: is missing and has no default"]),
        ({"start": "x", "end": -1}, NonNegative | Schedule, ["k.start: is 'x', must be a number", "k.end: is -1, must be >= 0"]),
        ({"start": 4, "end": 0}, Positive | PositiveSchedule, ["k.end: is 0, must be > 0"]),
        ([[0, "x"]], Literal["auto", "last"] | list[list[Index]], ["k[0][1]: is 'x', must be a whole number"]),
        ([[0, -1]], Literal["auto", "last"] | list[list[Index]], ["k[0][1]: is -1, must be >= 0"]),
    ],
)  # fmt: skip
def test_of_several_kinds_the_one_that_the_value_comes_closest_to_speaks(value, annotation, said):
    assert [str(problem) for problem in check(value, annotation, "k")] == said


def test_parameters_unknown_missing_and_open():
    signature = signature_of_dataclass(Part)
    problems = check_parameters({"_target_": "x", "nam": "y"}, signature, "data")
    assert [str(problem) for problem in problems] == [
        "data.nam: is not a setting here (did you mean 'name'?)",
        "data.size: is missing and has no default",
    ]
    takes_all = Signature({"a": Parameter(int)}, {}, open=True)
    assert check_parameters({"a": 1, "b": 2}, takes_all, "") == []
    assert [p.key for p in check_parameters({"a": "x"}, takes_all, "")] == ["a"]


@given(st.floats() | st.integers(), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_range_is_what_it_says(value, low, high):
    finite = math.isfinite(value)
    assert (value in Range(above=low, at_most=high)) == (finite and low < value <= high)
    assert (value in Range(at_least=low, below=high)) == (finite and low <= value < high)


SOURCE = """
from dataclasses import dataclass, field
from typing import ClassVar, Literal
import not_there_at_all

class Base:
    needs_teacher = False
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    def __init__(self, weight: NonNegative = 1.0) -> None: ...

class Soft(Base):
    needs_teacher = True
    needs = ("hidden", "logits")
    made = object()
    def __init__(self, temperature: Positive, weight: "NonNegative" = 1.0, *, mode: Literal["a", "b"], deep: Unheard = 3) -> None: ...

class Plain(Base): ...

@dataclass(frozen=True)
class Table:
    task = "classification"
    path: str | None
    limit: Count | None = None
    names: list[str] = field(default_factory=list)

@dataclass
class More(Table):
    extra: int = 3

class Open:
    def __init__(self, name: str = "x", **values: int) -> None: ...

def make(size: Count, /, factor: float = 1.0): ...
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    name = f"schema_sample_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    assert name not in sys.modules  # read, never imported


def test_signatures_are_read_without_an_import(module):
    soft = signature_of_target(f"{module}.Soft")
    assert soft.attributes["needs_teacher"] is True
    assert soft.attributes["tasks"] == ("classification",)
    assert soft.attributes["needs"] == ("hidden", "logits")
    assert "made" not in soft.attributes
    assert {name: parameter.required for name, parameter in soft.parameters.items()} == {
        "temperature": True,
        "weight": False,
        "mode": True,
        "deep": False,
    }
    assert check(0, soft.parameters["temperature"].annotation, "k")
    assert check(-1, soft.parameters["weight"].annotation, "k")  # an annotation in quotes
    assert check("c", soft.parameters["mode"].annotation, "k")
    assert check("anything", soft.parameters["deep"].annotation, "k") == []  # one that only its module knows
    assert list(signature_of_target(f"{module}.Plain").parameters) == ["weight"]


def test_dataclasses_functions_and_open_ones(module):
    table = signature_of_target(f"{module}.More")
    assert {name: p.required for name, p in table.parameters.items()} == {
        "path": True,
        "limit": False,
        "names": False,
        "extra": False,
    }
    assert table.attributes["task"] == "classification"
    assert signature_of_target(f"{module}.Open").open
    made = signature_of_target(f"{module}.make")
    assert {name: p.required for name, p in made.parameters.items()} == {"size": True, "factor": False}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_package.Thing", "there is no module 'no_such_package'"),
        ("Thing", "there is no module 'Thing'"),
        ("math.sin", "there is no module 'math'"),  # not written in Python
        ("distill_system.losses.logits.SoftTarge", r"has no 'SoftTarge' \(did you mean 'SoftTarget'\?\)"),
    ],
)
def test_targets_that_are_not_there(target, said):
    with pytest.raises(LookupError, match=said):
        signature_of_target(target)


def test_in_words():
    assert [in_words(value) for value in (None, True, False, 0, 1, "a")] == ["null", "true", "false", "0", "1", "'a'"]
