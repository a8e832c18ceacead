"""The life of a training: stopped anywhere it goes on to the same end; it stops early, keeps the best, and is not done twice."""

import shutil
import signal

import pytest
import torch

from distill_system import distributed
from distill_system.files import read_json
from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.settings import Training
from distill_system.training import checkpoint
from distill_system.training.fit import steps_of
from tests.training.tiny import Bench, engine, equal, heard, state

STEPS = 9


def quality(one):
    """A figure of the weights, as an evaluation would give."""
    assert not one.objective.training
    return {"accuracy": float(one.objective.student.head.weight.detach().sum()), "samples": 4}


def falling_after(step):
    """Validations every third step: the first is the best from `step` on."""
    return lambda one: {"accuracy": 1.0 - abs(one.scalars()["updates"] - step) / 10}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("straight"), validate=quality, keep="last")
    bench.run()
    return bench


def test_a_training_from_end_to_end(straight):
    assert straight.stepped == list(range(1, STEPS + 1))
    assert straight.events() == [("start", 0)]
    losses = [line["loss"] for line in straight.lines if "loss" in line]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    assert [line["step"] for line in straight.lines if "valid/accuracy" in line] == [3, 6, 9]
    assert not straight.engine.objective.training
    assert (straight.fit.progress.samples, straight.fit.progress.tokens) == (8 * STEPS, 40 * STEPS)
    names = sorted(path.name for path in (straight.folder / "checkpoints").iterdir())
    assert names == ["step_00000008", "step_00000009"]


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_a_stop_at_any_step_is_not_seen_in_the_result(straight, tmp_path, stop):
    bench = Bench(tmp_path, validate=quality, keep="last")
    first = bench.run(stop_at=stop)
    assert first.preempted
    assert first.progress.step == stop
    assert bench.events()[-1] == ("preempted", stop)
    assert (tmp_path / "checkpoints" / f"step_{stop:08d}").is_dir()
    second = bench.run()
    assert not second.preempted
    assert second.progress.resumes == 1
    assert ("resume", stop) in bench.events()
    assert bench.stepped == list(range(1, STEPS + 1))
    assert bench.figures() == straight.figures()
    assert equal(state(bench.engine), state(straight.engine))
    assert (second.progress.samples, second.progress.tokens) == (8 * STEPS, 40 * STEPS)


@pytest.mark.parametrize("crash", [2, 3, 5, 8, 9])
def test_after_a_crash_no_step_is_told_twice(straight, tmp_path, crash):
    """Checkpoints are at 4 and 8; what was written after them is taken back, also when there was none yet."""
    bench = Bench(tmp_path, validate=quality, keep="last", flush_every=1)
    with pytest.raises(KeyError, match="the power went"):
        bench.run(crash_at=crash)
    bench.run()
    assert bench.figures() == straight.figures()
    assert equal(state(bench.engine), state(straight.engine))


def test_a_stop_asked_in_the_last_step_is_no_stop(tmp_path):
    bench = Bench(tmp_path)
    outcome = bench.run(stop_at=STEPS)
    assert not outcome.preempted
    assert outcome.progress.step == STEPS


def test_sigterm_reaches_our_handler_and_nobody_else_s(tmp_path):
    """Lightning has one of its own, which would end this rank with an exception in the middle of things."""
    asked = []

    def handler(*_):
        asked.append(len(bench.stepped))

    def teacher(given):
        if len(bench.stepped) == 3 and not asked:
            signal.raise_signal(signal.SIGTERM)
        return heard(given)

    bench = Bench(tmp_path)
    bench.teacher = teacher
    before = signal.signal(signal.SIGTERM, handler)
    try:
        outcome = bench.run(stop_asked=lambda: bool(asked))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == [3]
    assert outcome.preempted
    assert outcome.progress.step == 4  # the ranks agree at the beginning of the next step
    assert (tmp_path / "checkpoints" / "step_00000004").is_dir()


def test_a_finished_training_is_not_trained_again(straight):
    shape = {name: tensor.clone() for name, tensor in straight.weights().items()}
    stepped = list(straight.stepped)
    outcome = straight.run()
    assert straight.stepped == stepped
    assert outcome.progress.step == STEPS
    assert equal(straight.weights(), shape)


def test_patience_stops_early_and_a_resume_keeps_that(tmp_path):
    bench = Bench(tmp_path, total_steps=30, validate=falling_after(3), patience=2, keep="last")
    outcome = bench.run()
    assert ("early_stop", 9) in bench.events()
    assert outcome.progress.step == 9
    assert (outcome.progress.best_step.get("student"), outcome.progress.without_progress) == (3, 2)
    assert not outcome.preempted
    bench.run()
    assert bench.stepped[-1] == 9


def test_without_patience_it_goes_on(tmp_path):
    assert Bench(tmp_path, total_steps=12, validate=falling_after(3)).run().progress.step == 12


def test_the_best_weights_are_handed_on_also_after_a_resume(tmp_path):
    best = Bench(tmp_path / "six", total_steps=9, validate=falling_after(6), keep="last")
    best.run(stop_at=6)
    whole = Bench(tmp_path / "whole", validate=falling_after(6))
    assert whole.run().progress.best_step.get("student") == 6
    assert equal(whole.weights(), best.weights())
    assert whole.engine.scalars() == {"updates": 9.0}
    last = Bench(tmp_path / "last", validate=falling_after(6), keep="last")
    last.run()
    assert not equal(last.weights(), best.weights())
    for stop in (5, 6, 7, 8):
        resumed = Bench(tmp_path / f"stop-{stop}", validate=falling_after(6))
        resumed.run(stop_at=stop)
        assert resumed.run().progress.best_step.get("student") == 6
        assert equal(resumed.weights(), best.weights()), stop


def test_the_best_may_be_the_last(tmp_path):
    bench = Bench(tmp_path, validate=falling_after(20))
    assert bench.run().progress.best_step.get("student") == 9
    assert list((tmp_path / "checkpoints").glob("best_*")) == [tmp_path / "checkpoints" / "best_00000006"]
    assert bench.fit.outcome.warnings == []


def test_lower_may_be_better(tmp_path):
    bench = Bench(tmp_path, validate=falling_after(6), better=lambda a, b: a < b)
    assert bench.run().progress.best["student"] == pytest.approx(0.7)


def test_a_figure_that_is_not_there_is_never_the_best(tmp_path):
    """Perplexity that overflows and accuracy without a label are None."""
    values = {3.0: None, 6.0: 0.5, 9.0: None}
    bench = Bench(tmp_path, validate=lambda one: {"accuracy": values[one.scalars()["updates"]]})
    progress = bench.run().progress
    assert (progress.best["student"], progress.best_step["student"], progress.without_progress) == (0.5, 6, 1)
    nothing = Bench(tmp_path / "none", validate=lambda one: {"accuracy": None}, patience=2)
    assert nothing.run().progress.step == 6
    assert nothing.fit.progress.best_step.get("student") is None


def test_damaged_best_weights_are_told_and_the_last_handed_on(tmp_path):
    bench = Bench(tmp_path, validate=falling_after(6))
    bench.run(stop_at=8)
    next((tmp_path / "checkpoints" / "best_00000006").glob("rank_*")).write_bytes(b"")
    outcome = bench.run()
    assert "best weights (step 6) can't be used" in outcome.warnings[0]
    assert outcome.progress.step == STEPS


def test_a_damaged_checkpoint_is_told_in_the_journal_and_the_report(straight, tmp_path):
    bench = Bench(tmp_path, validate=quality, keep="last")
    bench.run(stop_at=8)
    (tmp_path / "checkpoints" / "step_00000008" / "state.json").unlink()
    outcome = bench.run()
    resume = next(line for line in bench.lines if line.get("event") == "resume")
    assert resume["step"] == 4
    assert resume["passed_over"] == outcome.warnings[0]
    assert "step_00000008" in outcome.warnings[0]
    assert bench.figures() == straight.figures()
    assert equal(state(bench.engine), state(straight.engine))


def test_checkpoints_of_other_settings_are_not_used_and_do_not_push_out_new_ones(tmp_path):
    old = Bench(tmp_path, checkpoint_every=3)
    old.run()
    new = Bench(tmp_path, checkpoint_every=3)
    outcome = new.run(stop_at=4, identity="other")
    assert new.events()[0] == ("start", 0)
    assert "of other settings" in outcome.warnings[0]
    store, _ = checkpoint.newest(tmp_path / "checkpoints", "other")
    assert store is not None
    assert store.state["progress"]["step"] == 4
    new.run(identity="other")
    assert new.stepped == list(range(1, STEPS + 1))


def test_dropout_of_a_step_depends_on_the_step_alone(tmp_path):
    one, other = Bench(tmp_path / "a", total_steps=3), Bench(tmp_path / "b", total_steps=3)
    one.run()
    torch.manual_seed(99)
    other.run()
    assert one.figures() == other.figures()
    without = Bench(tmp_path / "c", total_steps=3, dropout=0.0)
    without.run()
    assert without.figures() != one.figures()


def test_state_holds_what_a_resume_needs(tmp_path):
    bench = Bench(tmp_path, validate=quality)
    bench.run(stop_at=6)
    document = read_json(tmp_path / "checkpoints" / "step_00000006" / "state.json")
    assert document["identity"] == "mine"
    assert document["progress"]["step"] == 6
    assert document["progress"]["best_step"]["student"] in (3, 6)
    assert document["scalars"] == {"updates": 6.0}


def test_other_strategies_read_it_by_name(straight, tmp_path):
    """The names don't depend on the engine: `student.` and the student's own."""
    folder = tmp_path / "copied"
    shutil.copytree(straight.folder / "checkpoints" / "step_00000009", folder)
    fresh = engine(seed=3)
    checkpoint.load(checkpoint.Store(folder), fresh)
    assert equal(state(fresh), state(straight.engine))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_epochs": 2}, 20),
        ({"max_epochs": 0.25}, 3),
        ({"max_epochs": 2, "max_steps": 8}, 8),
        ({"max_epochs": 1, "max_steps": 100}, 10),
        ({"max_epochs": None, "max_steps": 100}, 100),
    ],
)
def test_steps_of_a_phase(settings, expected):
    assert steps_of(Training(**settings), 10) == expected


def test_buffers_are_the_lead_rank_s_before_anything_is_measured_or_handed_on(tmp_path, monkeypatch):
    """Each rank has seen other rows: what they say of running statistics differs."""
    monkeypatch.setattr(distributed, "from_lead", lambda tensor: tensor.fill_(7.0))
    measured = []

    def validate(one):
        measured.append(float(one.objective.student.seen))
        return {"accuracy": 0.5}

    bench = Bench(tmp_path, total_steps=3, validate=validate)
    bench.run()
    assert measured == [7.0]
    assert float(bench.engine.objective.student.seen) == 7.0
    assert not (bench.engine.objective.student.head.weight == 7.0).any()


class Watched(SoftTarget):
    """Notes the temperature of each step."""

    def __init__(self, seen):
        super().__init__({"start": 4.0, "end": 1.0, "shape": "linear"}, weight={"start": 1.0, "end": 0.0})
        self.seen = seen

    def forward(self, student, teacher, targets):
        self.seen.append(self.current(self.temperature))
        return super().forward(student, teacher, targets)


def test_temperatures_and_weights_follow_the_steps_also_after_a_resume(tmp_path):
    seen = []
    bench = Bench(tmp_path, total_steps=6, checkpoint_every=3)
    losses = {"soft": Watched(seen), "hard": HardLabel()}
    bench.run(stop_at=3, settings={"losses": losses})
    bench.run(settings={"losses": {"soft": Watched(seen), "hard": HardLabel()}})
    assert seen == pytest.approx([4.0, 3.5, 3.0, 2.5, 2.0, 1.5])
    weights = [line["weight/soft"] for line in bench.lines if "weight/soft" in line]
    assert weights == pytest.approx([1 - step / 6 for step in range(6)])
