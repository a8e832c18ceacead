"""Figures and rows of every task from predictions made by hand, down to the report's page."""

import json
import math

import pytest
import torch

from distill_system.data.base import Rows
from distill_system.data.samples import samples
from distill_system.evaluation.evaluate import phase_evaluation, prediction_rows
from distill_system.evaluation.names import CHANCE_METRIC, DEFAULT_METRIC, METRICS
from distill_system.evaluation.predict import Predictions
from distill_system.tracking.comparison import CHANCE
from distill_system.tracking.report import write_report
from tests.tracking.fake_run import manifest_phase, write

NAN = math.nan
NAMES = {
    "classification": ["no", "yes"],
    "multi_label": ["no", "yes"],
    "token_classification": ["O", "B-x"],
    "regression": [],
}


class Store:
    """Rows as a token store gives them."""

    def row(self, i):
        return {
            "id": f"r{i}",
            "text": f"w0 w1 {i}",
            "words": ["w0", "w1", str(i)],
            **({"tagged": [1]} if i == 1 else {}),
        }

    def text(self, i):
        return self.row(i)["text"]


def predictions(task):
    two = torch.tensor([[2.0, -1.0], [-1.0, 1.0], [0.5, 0.25]])
    if task == "classification":
        return Predictions(task, 2, torch.arange(3), torch.tensor([0, 0, -100]), two, {"main": -two})
    if task == "multi_label":
        labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [NAN, NAN]])
        return Predictions(task, 2, torch.arange(3), labels, two, {"main": -two})
    if task == "regression":
        labels = torch.tensor([[1.0], [2.5], [NAN]])
        return Predictions(task, 1, torch.arange(3), labels, two[:, :1], {"main": two[:, :1] + 1})
    samples_P = torch.tensor([0, 0, 1])  # the third row has no word with a tag
    return Predictions(task, 2, torch.arange(3), torch.tensor([0, 1, 1]), two, {"main": -two}, samples_P)


def test_names_agree_everywhere():
    from distill_system.tracking.figures import METRICS as SHOWN
    from distill_system.tracking.figures import quality

    for task, names in METRICS.items():
        assert set(names) <= set(SHOWN)
        found = quality(dict.fromkeys(names, 0.5))
        assert found is not None
        assert found.name == DEFAULT_METRIC[task]  # what the report leads with is what chooses the best weights
        assert CHANCE_METRIC[task] in names
    assert {task: metric for task, (metric, _) in CHANCE.items()} == {t: CHANCE_METRIC[t] for t in CHANCE}


@pytest.mark.parametrize("task", NAMES)
def test_every_task_down_to_the_page(tmp_path, task):
    found = phase_evaluation(predictions(task), split="test", label_names=NAMES[task])
    assert set(METRICS[task]) <= set(found["metrics"])
    assert found["task"] == task
    assert "chance" in found["teachers"]["main"]
    rows = prediction_rows(predictions(task), Store(), NAMES[task])
    json.dumps([found, rows], allow_nan=False)
    more = {"latency": {}, "size": {"size_bytes": 100, "parameters": 10, "nonzeros": 10}, "peak_memory_bytes": 1}
    settings = {"teachers": {"main": {"model": "elsewhere"}}}
    phase = manifest_phase("distill", found | more, 10, settings=settings)
    write(tmp_path / "run", "run", {"student": phase}, [], {"student": found | more}, {"student": rows})
    page = write_report(tmp_path / "run").read_text()
    assert "Where teacher and student disagree" in page
    assert CHANCE[task][1] in page
    assert "w0 w1" in page


def test_numbers_in_the_report(tmp_path):
    rows = prediction_rows(predictions("regression"), Store(), [])
    assert [row["label"] for row in rows["rows"]] == [1.0, 2.5, None]
    assert rows["rows"][0] | {"prediction": 2.0, "teacher_prediction": 3.0, "confidence": None} == rows["rows"][0]


def test_rows_of_several_labels():
    rows = prediction_rows(predictions("multi_label"), Store(), ["no", "yes"])["rows"]
    assert [row["label"] for row in rows] == ["no", "(no label)", None]
    assert [row["prediction"] for row in rows] == ["no", "yes", "no, yes"]
    assert rows[0]["confidence"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert rows[1]["teacher_prediction"] == "no"


def test_rows_of_tags():
    rows = prediction_rows(predictions("token_classification"), Store(), ["O", "B-x"])["rows"]
    assert [row["label"] for row in rows] == ["w1 (x)", "w1 (x)", None]
    assert [row["prediction"] for row in rows] == ["w1 (x)", "no spans", None]
    assert [row["teacher_prediction"] for row in rows] == ["w0 (x)", "w1 (x)", None]


def test_f1_says_what_it_is_of():
    assert (
        phase_evaluation(predictions("token_classification"), split="test", label_names=["O", "B-x"])["f1_of"]
        == "spans"
    )
    assert (
        phase_evaluation(predictions("token_classification"), split="test", label_names=["N", "V"])["f1_of"] == "tags"
    )


def test_the_words_of_a_store_fit_the_tags():
    """`tagged` of a row that was cut names the words that are left."""

    class Encoded(dict):
        encodings = ()

        def word_ids(self, i):
            return [None, 0, 0, 2]

    class Tokenizer:
        model_input_names = ()
        is_fast = True
        unk_token_id = eos_token_id = pad_token_id = 0

        def __call__(self, words, **options):
            return Encoded(input_ids=[[1, 2, 3, 4]])

    rows = Rows(["0"], ["a b c"], None, [["x", "x", "y"]], None, [["a", "b", "c"]])
    arrays, (line,), _ = samples(rows, Tokenizer(), 4, ["x", "y"], "token_classification")
    assert arrays["labels"].tolist() == [-100, 0, -100, 1]
    assert line["tagged"] == [0, 2]
