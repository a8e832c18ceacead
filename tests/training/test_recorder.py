"""Every figure of every step reaches the journal once, whatever the rhythm in which figures are fetched."""

import math

import pytest
import torch

from distill_system import distributed
from distill_system.tracking.journal import encode
from distill_system.training.recorder import Recorder, TooManyBadSteps


def record(steps=7, means=None, norms=None, world_rows=4, **settings):
    lines = []
    given = {"log_every": 1, "flush_every": 3, "max_bad_steps": 0, "total_steps": steps} | settings
    recorder = Recorder(phase="student", names=["soft", "hard"], write=lines.extend, **given)
    for step in range(1, steps + 1):
        mean_L = torch.tensor((means or {}).get(step, [float(step), 2.0 * step]), dtype=torch.float64)
        norm_R = torch.tensor([(norms or {}).get(step, 0.25 * step)])
        index = torch.arange(world_rows) + 10 * step
        index[-1] = -1  # filler
        batch = {"index": index, "labels": torch.zeros(world_rows), "input_ids": torch.zeros(world_rows, 5)}
        recorder.add(step, mean_L, norm_R, step / 100, [batch], [1.0, 0.5])
    return recorder, lines


def plain(lines):
    return [{k: v for k, v in line.items() if k not in ("time", "samples_per_s", "tokens_per_s")} for line in lines]


def test_every_step_has_a_line_and_the_total_is_weighted():
    _, lines = record()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert plain(lines)[2] == {
        "phase": "student",
        "step": 3,
        "loss": 3.0 + 0.5 * 6.0,
        "loss/soft": 3.0,
        "loss/hard": 6.0,
        "lr": 0.03,
        "grad_norm": 0.75,
    }
    assert all(line["samples_per_s"] > 0 and line["tokens_per_s"] > line["samples_per_s"] for line in lines)


def test_log_every_third_step_and_the_last():
    _, lines = record(log_every=3)
    assert [line["step"] for line in lines] == [3, 6, 7]


@pytest.mark.parametrize("log_every", [1, 3])
def test_the_rhythm_of_fetching_changes_no_line(log_every):
    reference = plain(record(log_every=log_every, flush_every=1)[1])
    for flush_every in (2, 3, 5, 100):
        assert plain(record(log_every=log_every, flush_every=flush_every)[1]) == reference


def test_nothing_is_fetched_between_the_first_steps_and_a_flush():
    recorder, lines = record(steps=19, flush_every=20, total_steps=40)
    assert lines[-1]["step"] == 10  # 1, 2, 5 and 10 come at once, so that a user sees numbers
    recorder.flush()
    assert [line["step"] for line in lines] == list(range(1, 20))
    recorder.flush()
    assert len(lines) == 19


def test_samples_and_tokens_are_counted():
    recorder, _ = record(steps=7)
    assert (recorder.samples, recorder.tokens) == (28, 140)


def test_members_that_live_apart_are_joined_and_rows_count_once(monkeypatch):
    """Two parts of one rank each, which see the same rows: each has the terms of its own member, and the sum over ranks has all."""
    monkeypatch.setattr(distributed, "parts", lambda: 2)

    def gathered(tensor):
        """As if the other part's figures came in: those of the mirrored member."""
        terms, roles, steps = 2, 2, 1
        width = 3 * terms + roles
        own = tensor[:-2].view(steps, width)
        other = torch.cat(
            [
                own[:, :terms].flip(1),
                own[:, terms : 2 * terms].flip(1),
                own[:, 2 * terms : 3 * terms].flip(1),
                own[:, 3 * terms :].flip(1),
            ],
            1,
        )
        return torch.cat([(own + other).flatten(), 2 * tensor[-2:]])

    monkeypatch.setattr(distributed, "sum_over_ranks", gathered)
    lines = []
    recorder = Recorder(
        phase="p", names=["a/hard", "b/hard"], roles=["a", "b"], log_every=1, flush_every=1, max_bad_steps=0, total_steps=1, write=lines.extend
    )  # fmt: skip
    given = {"index": torch.arange(4), "labels": torch.zeros(4), "input_ids": torch.zeros(4, 5)}
    recorder.add(1, torch.tensor([3.0, 0.0]), torch.tensor([0.6, 0.0]), 0.1, [given], [0.5, 0.0])
    assert (recorder.samples, recorder.tokens) == (4, 20)
    line = {
        key: lines[0][key]
        for key in ("loss", "loss/a/hard", "loss/b/hard", "loss/a", "loss/b", "grad_norm/a", "grad_norm/b")
    }
    assert line == pytest.approx(
        {
            "loss": 3.0,
            "loss/a/hard": 3.0,
            "loss/b/hard": 3.0,
            "loss/a": 1.5,
            "loss/b": 1.5,
            "grad_norm/a": 0.6,
            "grad_norm/b": 0.6,
        }
    )
    assert lines[0]["grad_norm"] == pytest.approx((2 * 0.36) ** 0.5)


@pytest.mark.parametrize("bad", [{"means": {4: [math.nan, 1.0]}}, {"norms": {4: math.inf}}, {"norms": {4: math.nan}}])
def test_a_bad_step_is_an_event_and_still_a_line(bad):
    recorder, lines = record(max_bad_steps=1, **bad)
    assert [line["step"] for line in lines if line.get("event") == "bad_step"] == [4]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]
    assert recorder.bad_steps == 1
    assert b"NaN" not in encode(lines)
    assert b"null" in encode(lines)


def test_a_bad_step_between_two_lines_is_told_all_the_same():
    _, lines = record(means={4: [math.nan, 1.0]}, max_bad_steps=1, log_every=3)
    assert [(line["step"], line.get("event")) for line in lines] == [(3, None), (4, "bad_step"), (6, None), (7, None)]


def test_too_many_bad_steps_end_the_run_with_the_samples():
    with pytest.raises(TooManyBadSteps) as raised:
        record(means={4: [math.nan, 1.0], 6: [1.0, math.inf]}, max_bad_steps=1)
    text = str(raised.value)
    assert "2 steps" in text
    assert "training.max_bad_steps is 1" in text
    assert text.endswith("step 6 with training samples 60, 61, 62")  # and not the filler


def test_bad_steps_before_a_resume_count():
    with pytest.raises(TooManyBadSteps, match="3 steps"):
        record(means={4: [math.nan, 1.0]}, max_bad_steps=2, bad_steps=2)


def test_lines_are_written_before_the_run_ends_of_them():
    lines = []
    recorder = Recorder(
        phase="p",
        names=["a"],
        log_every=1,
        flush_every=1,
        max_bad_steps=0,
        total_steps=3,
        write=lines.extend,
    )
    batch = {"index": torch.tensor([5]), "labels": torch.zeros(1)}
    with pytest.raises(TooManyBadSteps):
        recorder.add(1, torch.tensor([math.nan]), torch.tensor([1.0]), 0.1, [batch], [1.0])
    assert [line.get("event") for line in lines] == ["bad_step", None]
