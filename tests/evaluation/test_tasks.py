"""A saved model of each task evaluated on a small table, as `distill evaluate` does it."""

import json

import pytest

from distill_system.data.table import Table
from distill_system.errors import Refusal
from distill_system.evaluation.evaluate import evaluate_folder
from distill_system.evaluation.names import METRICS
from tests.models.test_heads import NAMES, TASKS, make

CELLS = {
    "multi_label": lambda i: ["x", "z"] if i % 3 else ["y"],
    "regression": lambda i: i / 10,
    "token_classification": lambda i: ["B-x", "I-x" if i % 2 else "O"],
}


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))

    def write(task):
        texts = [["word", f"w{i}"] if task == "token_classification" else f"text {i}" for i in range(40)]
        rows = [{"text": text, "label": CELLS[task](i)} for i, text in enumerate(texts)]
        path = tmp_path / f"{task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Table(str(path), task=task, max_length=40)

    return write


@pytest.mark.parametrize("task", TASKS)
def test_every_task(tmp_path, table, task):
    make(tmp_path / "m", task)
    found = evaluate_folder(tmp_path / "m", table(task), split="train", teacher=tmp_path / "m", batch_size=7)
    assert set(METRICS[task]) <= set(found["metrics"])
    assert found["metrics"]["tokens" if task == "token_classification" else "samples"] > 20
    same = found["teacher"]["teacher"]
    assert same["mse"] == 0 if task == "regression" else same["agreement"] == 1
    json.dumps(found, allow_nan=False)


def test_a_model_of_another_task_is_refused(tmp_path, table):
    make(tmp_path / "m", "regression")
    with pytest.raises(Refusal, match="a model for regression, which data of task multi_label"):
        evaluate_folder(tmp_path / "m", table("multi_label"), split="train")
    assert NAMES["regression"] == []
