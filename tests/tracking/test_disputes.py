"""The section on disputed labels: what it says, that nothing in a text becomes a part of the page, and that damaged files are left out."""

from distill_system.files import write_json
from distill_system.tracking.disputes import csv_name, disputed
from distill_system.tracking.report import write_report
from tests.tracking.fake_run import PLANTED, classification_run

ROW = {"id": "r1", "text": "dull", "label": "good", "teacher_label": "bad", "label_probability": 0.01, "teacher_probability": 0.98, "margin": 0.97}  # fmt: skip


def content(**more):
    pairs = [{"label": "good", "teacher_label": "bad", "count": 3}]
    return {
        "teacher": "main",
        "split": "train",
        "rows": 10,
        "disputed": 3,
        "pairs": pairs,
        "noise": None,
        "shown": [ROW],
    } | more


def test_words():
    (found,) = disputed({"student": content()}, {"student"})
    assert (found["share"], found["csv"], found["noise"]) == ("30.0 %", "disputes_student.csv", "")
    assert found["cards"][0]["teacher_sure"] == "98.0 %"
    assert found["cards"][0]["true_label"] is None
    noise = {"rows": 4, "disputed": 2, "repaired": 1, "first": 3, "first_disputed": 2}
    (found,) = disputed({"student": content(noise=noise)}, set())
    assert found["noise"].startswith("4 labels are wrong on purpose")
    assert "of the first 3 disputes 2 are such" in found["noise"]
    assert found["csv"] is None


def test_damaged_files_are_left_out():
    assert disputed({"a": {}, "b": {"rows": "x", "disputed": 1}}, set()) == []
    (found,) = disputed({"a": {"rows": 0, "disputed": 0, "shown": [1, None], "pairs": None}}, set())
    assert (found["cards"], found["pairs"], found["share"]) == ([], [], "0 %")


def test_a_name_of_a_file():
    assert csv_name("../x y") == "disputes____x_y.csv"


def test_nothing_planted_gets_into_the_page(tmp_path):
    run = classification_run(tmp_path / "run", steps=10)
    evil = ROW | {
        "id": PLANTED,
        "text": PLANTED,
        "label": PLANTED,
        "teacher_label": PLANTED,
        "picture": "javascript:alert(1)",
        "true_label": PLANTED,
    }
    pairs = [{"label": PLANTED, "teacher_label": PLANTED, "count": 1}]
    write_json(run / "student" / "disputes.json", content(teacher=PLANTED, shown=[evil], pairs=pairs))
    page = write_report(run).read_text()
    assert "Training labels the teacher disputes most" in page
    assert PLANTED not in page
    assert "javascript:" not in page
    assert "disputes_student.csv" not in page  # there is no table beside it
