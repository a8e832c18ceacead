"""The journal: lines are whole, a torn one is dropped and cut, a rewind leaves no step twice."""

import json
import math
import subprocess
import sys

import pytest

from distill_system.tracking import journal
from distill_system.tracking.journal import Journal


def line(phase, step, **figures):
    return {"phase": phase, "step": step, "time": 1.0, **figures}


def test_what_is_appended_is_read(tmp_path):
    book = Journal(tmp_path / "deep" / "metrics.jsonl")
    book.append([line("teacher", 1, loss=0.5), line("teacher", 2, loss=0.25)])
    book.append([])
    book.append([line("teacher", 3, event="finish")])
    assert [entry["step"] for entry in book.read()] == [1, 2, 3]
    assert book.read()[0] == {"phase": "teacher", "step": 1, "time": 1.0, "loss": 0.5}


def test_not_finite_figures_become_null_and_come_back_as_nan(tmp_path):
    class Scalar:  # stands for a numpy scalar or a tensor of one element
        def item(self):
            return math.inf

    book = Journal(tmp_path / "m.jsonl")
    book.append(
        [line("a", 1, loss=math.nan), line("a", 2, loss=-math.inf), line("a", 3, loss=Scalar()), line("a", 4, loss=1.0)]
    )
    for raw in book.path.read_text().splitlines():
        json.loads(raw, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    steps, values = journal.series(book.read(), "a", "loss")
    assert steps == [1, 2, 3, 4]
    assert [math.isnan(value) for value in values] == [True, True, True, False]


def test_a_torn_last_line_is_dropped_and_the_next_append_does_not_grow_onto_it(tmp_path):
    path = tmp_path / "m.jsonl"
    Journal(path).append([line("a", 1), line("a", 2)])
    with open(path, "ab") as file:
        file.write(b'{"phase": "a", "step": 3, "lo')
    assert [entry["step"] for entry in journal.read(path)] == [1, 2]
    Journal(path).append([line("a", 3)])
    assert [entry["step"] for entry in journal.read(path)] == [1, 2, 3]


def test_a_torn_first_line_leaves_an_empty_journal(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"phase"')
    assert journal.read(path) == []
    Journal(path).append([line("a", 1)])
    assert journal.read(path) == [line("a", 1)]


def test_a_broken_line_in_between_is_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "m.jsonl"
    path.write_bytes(
        json.dumps(line("a", 1)).encode() + b"\n\x00\x00\xff\n" + json.dumps(line("a", 2)).encode() + b"\n"
    )
    assert [entry["step"] for entry in journal.read(path)] == [1, 2]
    assert "line 2" in caplog.text


def test_rewind_removes_later_steps_of_that_phase_only(tmp_path):
    book = Journal(tmp_path / "m.jsonl")
    book.append([line("teacher", step) for step in (5, 10, 15)] + [line("student", step) for step in (5, 10, 15)])
    assert book.rewind("student", 10) == 1
    assert [(entry["phase"], entry["step"]) for entry in book.read()] == [
        ("teacher", 5), ("teacher", 10), ("teacher", 15), ("student", 5), ("student", 10),
    ]  # fmt: skip
    assert book.rewind("student", -1) == 2
    assert {entry["phase"] for entry in book.read()} == {"teacher"}


def test_rewind_with_nothing_to_remove_leaves_the_file_alone(tmp_path):
    book = Journal(tmp_path / "m.jsonl")
    assert book.rewind("a", 3) == 0
    book.append([line("a", 1)])
    before = book.path.stat()
    assert book.rewind("a", 3) == 0
    assert (book.path.stat().st_ino, book.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_rewind_cuts_a_torn_line_too_and_append_goes_on(tmp_path):
    book = Journal(tmp_path / "m.jsonl")
    book.append([line("a", 1), line("a", 2)])
    with open(book.path, "ab") as file:
        file.write(b"{")
    book.rewind("a", 1)
    book.append([line("a", 2, loss=2.0)])
    assert book.read() == [line("a", 1), line("a", 2, loss=2.0)]


def test_series_takes_figures_only():
    lines = [line("a", 1, x=1), line("b", 2, x=2), line("a", 3, x="word"), line("a", 4, x=True), line("a", 5)]
    assert journal.series(lines, "a", "x") == ([1], [1.0])


def test_tracking_imports_neither_torch_nor_anything_heavy():
    modules = ["journal", "wandb", "progress", "report", "plots", "sweep", "secrets"]
    code = (
        ";".join(f"import distill_system.tracking.{name}" for name in modules)
        + ";import sys;"
        + ("print([m for m in ('torch', 'wandb', 'matplotlib', 'jinja2', 'lightning', 'hydra') if m in sys.modules])")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
