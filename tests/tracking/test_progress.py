"""Progress degrades to few plain lines without a terminal, and tables stay readable when narrow."""

import io
import re

import pytest

from distill_system.files import write_json
from distill_system.tracking import progress
from distill_system.tracking.progress import Progress, print_rows, summary_table


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = {"s": 0.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now["s"])
    return now


def run(out, clock, steps, seconds_a_step, total=None, first=1):
    bar = Progress("student", total or steps, True, stream=out)
    for step in range(first, steps + 1):
        clock["s"] += seconds_a_step
        bar.update(step, {"loss": 0.5, "samples_per_s": 320.0, "tokens_per_s": 12345.0, "event": "x"})
    return bar


def test_without_a_terminal_lines_are_few_and_plain(clock):
    out = io.StringIO()
    run(out, clock, 1000, 0.1).close()  # 100 s: 5 % take 5 s
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert 15 <= len(text.splitlines()) <= 22
    assert re.match(r"student: step 1000/1000  loss 0.500  320 samples/s  12345 tokens/s", text.splitlines()[-1])


def test_slow_steps_give_a_line_every_ten_seconds_and_fast_ones_hardly_any(clock):
    slow, fast = io.StringIO(), io.StringIO()
    run(slow, clock, 20, 1.0, total=100000).close()
    assert len(slow.getvalue().splitlines()) in (3, 4)
    run(fast, clock, 100, 0.01).close()  # one second in all
    assert len(fast.getvalue().splitlines()) == 2  # the first and the last


def test_time_left_counts_this_process_only(clock):
    bar = run(io.StringIO(), clock, 110, 2.0, total=120, first=100)  # resumed at step 100
    assert bar.seconds_left() == pytest.approx(20.0)


def test_notes_are_lines_and_disabled_says_nothing(clock):
    out = io.StringIO()
    bar = Progress("student", 10, True, stream=out)
    bar.note("valid accuracy 0.81 [best]")
    bar.close()
    assert out.getvalue() == "student: valid accuracy 0.81 [best]\n"
    silent = io.StringIO()
    with Progress("student", 10, False, stream=silent) as bar:
        bar.update(1, {"loss": 1.0})
        bar.note("x")
    assert silent.getvalue() == ""


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_on_a_terminal_the_bar_fits_the_width(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    bar = Progress("student", 100, True, stream=out)
    for step in range(1, 101):
        bar.update(step, {"loss": 0.1234, "samples_per_s": 320.0, "tokens_per_s": 12345.0})
    bar._bar.refresh()
    bar.note("a note")
    bar.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    frames = [part for line in plain.split("\n") for part in line.split("\r") if "━" in part]
    assert frames
    assert max(map(len, frames)) <= columns
    assert "100/100" in frames[-1]
    assert out.getvalue().rstrip().endswith("tokens/s")  # what stays is one plain line


def test_a_closed_pipe_ends_the_lines_not_the_training(clock):
    out = io.StringIO()
    bar = Progress("student", 10, True, stream=out)
    out.close()
    bar.update(1, {"loss": 1.0})
    bar.close()


MANIFEST = {
    "run": "demo[1]",
    "phases": {
        "teacher": {"state": "finished", "kind": "finetune", "metrics": {"nll": 0.4, "accuracy": 0.852}, "size_bytes": 90_900_000,
                    "parameters": 22_700_000, "seconds": 185.0, "warnings": ["3 texts stand in train and test"]},
        "student": {"state": "running", "kind": "distill", "metrics": {}},
    },
}  # fmt: skip


@pytest.mark.parametrize(("columns", "terminal"), [(200, False), (120, True), (36, True)])
def test_summary_is_whole_on_any_width(monkeypatch, tmp_path, columns, terminal):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal() if terminal else io.StringIO()
    write_json(tmp_path / "teacher" / "evaluation.json", {"latency": {"batch_1": {"p50_ms": 4.5678}}})
    summary_table(MANIFEST, tmp_path / "report" / "index.html", stream=out)
    text = out.getvalue()
    for word in (
        "demo[1]",
        "accuracy 0.8520",
        "90.9 MB",
        "22.7M",
        "3 min 05 s",
        "4.57 ms",
        "distill",
        "running",
        "3 texts stand",
    ):
        assert word in text
    assert f"report: {tmp_path}/report/index.html" in text
    assert "…" not in text


def test_no_rows_print_nothing_wrong():
    out = io.StringIO()
    print_rows([], stream=out)
    summary_table({"run": "x", "phases": {}}, stream=out)
    assert "Traceback" not in out.getvalue()


def test_members_losses_are_told_apart():
    both = {"loss": 3.0, "loss/a": 1.1, "loss/b": 1.9, "loss/a/hard": 1.0, "grad_norm/a": 1.0, "grad_norm/b": 2.0}
    assert progress.loss_words(both) == "a 1.10, b 1.90"
    many = {f"{kind}/{role}": 2.0 for kind in ("loss", "grad_norm") for role in "abcde"} | {"loss": 10.0}
    assert progress.loss_words(many) == "2.00 (mean of 5)"
    assert progress.loss_words({"loss": 0.5, "loss/soft": 0.4, "grad_norm": 1.0}) == "0.500"
    assert progress.loss_words({}) == ""


def test_members_have_rows_below_their_phase(tmp_path):
    members = {name: {"metrics": {"accuracy": value}, "parameters": 1000} for name, value in (("a", 0.7), ("b", 0.72))}
    phase = {
        "kind": "mutual",
        "state": "finished",
        "members": members,
        "best_member": "b",
        "ensemble": {"accuracy": 0.75},
    }
    write_json(tmp_path / "cohort" / "b" / "evaluation.json", {"latency": {"batch_1": {"p50_ms": 1.25}}})
    out = io.StringIO()
    summary_table({"run": "x", "phases": {"cohort": phase}}, tmp_path / "report" / "index.html", stream=out)
    rows = [[cell.rstrip() for cell in row.split("│")[1:-1]] for row in out.getvalue().splitlines() if "│" in row]
    assert [row[0] for row in rows] == [" cohort", "   a", "   b", "   all together"]
    assert [row[1].strip() for row in rows] == ["mutual", "", "the best", "mean"]
    assert "0.7500" in " ".join(rows[3])
    assert rows[2][-1].strip() == "1.25 ms"
