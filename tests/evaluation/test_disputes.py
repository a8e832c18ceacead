"""Disputed training labels: order, counts, noise that was found, and a table that no spreadsheet takes for formulas."""

import csv
import doctest
import io
import json
import math

import pytest
import torch

from distill_system.evaluation import disputes as module
from distill_system.evaluation.disputes import as_csv, disputes, summary, write_disputes
from distill_system.evaluation.predict import Predictions
from distill_system.tracking.report import write_report
from tests.tracking.fake_run import classification_run

NAMES = ["=a", "b", "c"]
TEXTS = ["plain", "=HYPERLINK(1)", 'with "quotes", commas', "line\nend", "-1", "unknown"]
TRUE = {1: "b", 3: "=a"}


class Store:
    def row(self, i):
        return {"id": f"r{i}", "text": TEXTS[i]} | ({"true_label": TRUE[i]} if i in TRUE else {})

    def text(self, i):
        return TEXTS[i]


def predictions():
    probs = torch.tensor(
        [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.05, 0.05, 0.9], [0.3, 0.5, 0.2], [0.1, 0.6, 0.3], [0.9, 0.05, 0.05]]
    )
    return Predictions("classification", 3, torch.arange(6), torch.tensor([0, 0, 0, 2, 0, -100]), probs.log())


def test_doctests():
    assert doctest.testmod(module).failed == 0


def test_largest_margins_first():
    found = disputes(predictions(), Store(), NAMES)
    assert [row["id"] for row in found] == ["r2", "r1", "r4", "r3"]  # r1 and r4 alike: by id
    assert [row["margin"] for row in found] == pytest.approx([0.85, 0.5, 0.5, 0.3])
    first = found[0]
    assert (first["label"], first["teacher_label"]) == ("=a", "c")
    assert (first["label_probability"], first["teacher_probability"]) == pytest.approx((0.05, 0.9))
    assert [row.get("true_label") for row in found] == [None, "b", None, "=a"]


def test_summary():
    found = disputes(predictions(), Store(), NAMES)
    counts = summary(found, rows=5, noisy=3)
    assert (counts["rows"], counts["disputed"]) == (5, 4)
    assert counts["pairs"] == [
        {"label": "=a", "teacher_label": "b", "count": 2},
        {"label": "=a", "teacher_label": "c", "count": 1},
        {"label": "c", "teacher_label": "b", "count": 1},
    ]
    assert counts["noise"] == {"rows": 3, "disputed": 2, "repaired": 1, "first": 4, "first_disputed": 2}
    assert summary(found, rows=5)["noise"] is None


def test_table_is_safe_and_whole(tmp_path):
    text = as_csv(disputes(predictions(), Store(), NAMES)).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["id"] for row in rows] == ["r2", "r1", "r4", "r3"]
    assert [row["text"] for row in rows] == [TEXTS[2], "'=HYPERLINK(1)", "'-1", TEXTS[3]]
    assert rows[0]["label"] == "'=a"
    assert [row["true_label"] for row in rows] == ["", "b", "", "'=a"]
    assert not [cell for row in rows for cell in row.values() if cell[:1] in ("=", "+", "-", "@")]


def test_files_and_the_page(tmp_path):
    run = classification_run(tmp_path / "run", steps=10)
    content = write_disputes(run / "teacher", predictions(), Store(), NAMES, noisy=3, teacher="main")
    assert json.loads((run / "teacher" / "disputes.json").read_text()) == content
    assert (content["teacher"], content["split"], len(content["shown"])) == ("main", "train", 4)
    page = write_report(run).read_text()
    assert "Training labels the teacher disputes most" in page
    assert "main gives 4 of 5 labelled training rows (80.0 %) another label" in page
    assert (
        "3 labels are wrong on purpose (data.label_noise): the teacher disputes 2 of them and names the true label of 1"
        in page
    )
    assert 'href="disputes_teacher.csv" download' in page
    assert (run / "report" / "disputes_teacher.csv").read_bytes() == (run / "teacher" / "disputes.csv").read_bytes()
    assert "has seen their labels" in page


def test_nothing_disputed():
    calm = predictions()
    calm.labels_N = calm.logits_NC.argmax(-1)
    found = disputes(calm, Store(), NAMES)
    assert found == []
    assert as_csv(found).decode("utf-8-sig").startswith("id,label,teacher_label")
    assert summary(found, rows=0)["disputed"] == 0


def test_classes_that_a_teacher_doesn_t_know():
    partial = predictions()
    partial.logits_NC[:, 0] = -math.inf  # it can only dispute: p_label = 0
    found = disputes(partial, Store(), NAMES)
    assert all(math.isfinite(row["margin"]) for row in found)
