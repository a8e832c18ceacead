"""Splits by hash, label order, limits, duplicates; and the yaml of every source says what its class says."""

import doctest
import importlib
from pathlib import Path

import pytest
import yaml

from distill_system.data import base
from distill_system.data.base import Rows
from distill_system.schema import check_parameters, signature_of_target

CONF = Path(__file__).parents[2] / "conf" / "data"


def rows(*texts, labels=None, pairs=None):
    return Rows([f"r{i}" for i in range(len(texts))], list(texts), pairs, labels)


def test_hash_split_is_frozen():
    # The test rows of a finished run may not become training rows of the next: these literals may not change.
    assert [round(base.hash_unit(str(i)), 6) for i in range(3)] == [0.856265, 0.133147, 0.978056]


def test_hash_split_shares():
    names = [f"row {i}" for i in range(10_000)]
    splits = base.split_rows(names, {"test": 0.14, "validation": 0.05}, "salt")
    assert splits.count("test") == pytest.approx(1400, abs=110)  # three standard errors
    assert splits.count("validation") == pytest.approx(500, abs=66)
    without_some = base.split_rows(names[::3], {"test": 0.14, "validation": 0.05}, "salt")
    assert without_some == splits[::3]
    other_validation = base.split_rows(names, {"test": 0.14, "validation": 0.3}, "salt")
    assert [s == "test" for s in other_validation] == [s == "test" for s in splits]
    assert base.split_rows(names, {"test": 0.14}, "pepper") != base.split_rows(names, {"test": 0.14}, "salt")


def test_tiny_sets_get_every_split():
    for n in range(3, 12):
        assert set(base.split_rows([f"{i}" for i in range(n)], {"test": 0.1, "validation": 0.1})) == set(base.SPLITS)
    assert base.split_rows(["a"], {"test": 0.1}) == ["train"]
    assert sorted(base.split_rows(["a", "b"], {"test": 0.9})) == ["test", "train"]
    assert set(base.split_rows(["a", "b", "c", "d"], {"test": 0.0, "validation": 0.3})) == {"train", "validation"}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "10", None], ["9", "10"]),
        (["-1", "1", "0"], ["-1", "0", "1"]),
        (["b", "a", "10"], ["10", "a", "b"]),
        ([None], []),
    ],
)
def test_label_order(labels, expected):
    assert base.label_order(labels) == expected


def test_limit_keeps_the_same_rows_in_order():
    data = rows(*map(str, range(100)))
    few, more = base.limit_rows(data, 10), base.limit_rows(data, 20)
    assert len(few) == 10
    assert few.texts == sorted(few.texts, key=int)
    assert set(few.ids) < set(more.ids)
    assert base.limit_rows(data, None) is data
    assert base.limit_rows(data, 100) is data


def test_duplicates():
    train = rows("A film.", "another  one")
    assert base.count_duplicates(train, rows("a film.", "another one", "a third", "a film.")) == 3
    assert base.count_duplicates(rows("a", pairs=["b"]), rows("a", "a", pairs=["c", "b"])) == 1


def test_rare_labels_go_to_train():
    assert base.keep_labels_in_train(["train", "test", "test", "test"], ["x", "x", "y", None]) == [
        "train",
        "test",
        "train",
        "test",
    ]


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_says_what_the_class_says(path):
    values = yaml.safe_load(path.read_text())
    module, _, name = values["_target_"].rpartition(".")
    signature = signature_of_target(values["_target_"])
    assert set(values) - {"_target_"} == set(signature.parameters)
    assert check_parameters(values, signature, "data") == []
    assert signature.attributes.get("task", values.get("task")) in ("classification", "causal_lm")
    source = getattr(__import__(module, fromlist=[name]), name)
    assert source(**{k: v for k, v in values.items() if k != "_target_"}) == source()
    lines = path.read_text().splitlines()
    assert all("#" in line for line in lines if not line.startswith("_target_"))


@pytest.mark.parametrize("name", ["base", "movie_reviews", "tokens"])
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"distill_system.data.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
