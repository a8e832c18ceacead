"""The walk through the graph of phases in one process, with phases that only pretend: order, skipping, gates, stopping, failing."""

import json
import signal

import pytest
import torch

from distill_system import pipeline
from distill_system.artifacts import Artifact, digest_artifact
from distill_system.manifest import Manifest
from distill_system.phases.context import Result
from distill_system.training.fit import Outcome, Progress

SIZE = {"size_bytes": 10, "parameters": 3, "nonzeros": 2}


class Pretend:
    """A phase whose training is one file; it remembers each time that it ran."""

    ran: list = []  # noqa: RUF012 (shared on purpose)
    behave: dict = {}  # noqa: RUF012

    def __init__(self, kind, model, losses, **_):
        self.kind, self.model = kind, model

    def run(self, context):
        Pretend.ran.append(context.name)
        Pretend.context = context
        context.announce(4)
        context.write([{"phase": context.name, "step": 1, "time": 0.0, "loss": 1.0}])
        behaviour = Pretend.behave.get(context.name)
        if behaviour == "steps":
            for name in ("one", "two"):
                step = context.step(name)
                step.rewind(-1)
                step.announce(2)
                step.write([{"phase": step.title, "step": n, "time": 0.0, "loss": 1.0} for n in (1, 2)])
                step.end(step.title, 2, {"accuracy": 0.5}, [])
            context.step("one").rewind(1)
        if isinstance(behaviour, BaseException):
            raise behaviour
        outcome = Outcome(Progress(step=4, samples=32, seconds=1.0, resumes=1))
        if behaviour == "preempted":
            outcome.preempted = True
            return Result(None, outcome)
        folder = context.folder / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"of": context.name}))
        evaluation = {"metrics": {"accuracy": 0.7, "samples": 9}, "split": "test", "size": SIZE, "latency": {}}
        context.folder.joinpath("evaluation.json").write_text(json.dumps(evaluation))
        context.warnings += ["mind the gap", "mind the gap"]
        return Result(Artifact(folder, digest_artifact(folder)), outcome, evaluation)


@pytest.fixture
def walk(tmp_path, monkeypatch):
    """Runs the pipeline on two pretended phases; gives (status, manifest's phases)."""
    monkeypatch.setattr(Pretend, "ran", [])
    monkeypatch.setattr(Pretend, "behave", {})
    monkeypatch.setattr(pipeline, "write_report", lambda folder: folder / "report" / "index.html")
    monkeypatch.setattr(pipeline, "settings_of", lambda config, name: {"model": config["phases"][name]["model"]})
    monkeypatch.setattr(pipeline.distributed, "start", lambda *_, **__: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    folder = tmp_path / "runs" / "walk"

    def instantiate(node):
        if node is CONFIG["tracking"]:
            from distill_system.tracking.wandb import NoTracking

            return NoTracking()
        return Pretend(**{k: v for k, v in node.items() if k != "_target_"}) if "kind" in node else object()

    monkeypatch.setattr(pipeline, "instantiate", instantiate)

    def run(**phases):
        config = CONFIG | {"phases": {name: CONFIG["phases"][name] | phases.get(name, {}) for name in CONFIG["phases"]}}
        folder.mkdir(parents=True, exist_ok=True)
        Manifest.read(folder, "walk").write()
        status = pipeline.run(folder, config)
        return status, Manifest.read(folder, "walk").phases

    run.folder = folder
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


CONFIG = {
    "run": {"name": "walk"},
    "seed": 0,
    "data": {"_target_": "x"},
    "tracking": {"_target_": "none"},
    "training": {"accelerator": "cpu", "threads": torch.get_num_threads()},
    "phases": {
        "teacher": {"kind": "finetune", "model": {}, "losses": {}},
        "student": {
            "kind": "distill",
            "model": {"phase": "teacher"},
            "losses": {},
            "teachers": {"main": {"phase": "teacher"}, "other": {"model": "hub/model"}},
        },
    },
}


def test_phases_run_in_order_and_are_recorded(walk):
    status, phases = walk()
    assert status == 0
    assert Pretend.ran == ["teacher", "student"]
    teacher, student = phases["teacher"], phases["student"]
    assert (teacher["state"], student["state"]) == ("finished", "finished")
    assert student["inputs"] == {
        "teachers.main.phase": {"phase": "teacher", "digest": teacher["digest"]},
        "model.phase": {"phase": "teacher", "digest": teacher["digest"]},
        "teachers.other.model": {"model": "hub/model"},
    }
    assert teacher["inputs"] == {}
    assert teacher["digest"] == digest_artifact(walk.folder / "teacher" / "model")
    assert teacher["digest"] != student["digest"]
    assert {key: student[key] for key in SIZE} == SIZE
    assert (student["steps"], student["resumes"], student["gate"]) == (4, 1, None)
    assert student["warnings"] == ["mind the gap"]
    assert student["cost"] == {"seconds": 1.0, "samples": 32, "tokens": 0, "ranks": 1}
    assert Pretend.context.artifacts == {"teacher": walk.folder / "teacher" / "model"}
    lines = [json.loads(line) for line in (walk.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line.get("event")) for line in lines] == [
        ("teacher", None),
        ("teacher", "finish"),
        ("student", None),
        ("student", "finish"),
    ]


def test_a_finished_phase_is_not_run_again(walk):
    walk()
    status, _ = walk()
    assert status == 0
    assert Pretend.ran == ["teacher", "student"]


def test_a_phase_whose_model_is_gone_is(walk):
    walk()
    import shutil

    shutil.rmtree(walk.folder / "student" / "model")
    walk()
    assert Pretend.ran == ["teacher", "student", "student"]


def test_a_gate_that_is_not_kept_ends_the_run(walk, capsys):
    status, phases = walk(teacher={"gate": {"metric": "accuracy", "at_least": 0.8}})
    assert status == 3
    assert Pretend.ran == ["teacher"]
    assert phases["teacher"]["state"] == "gated"
    assert phases["teacher"]["gate"]["passed"] is False
    assert "student" not in phases
    told = capsys.readouterr()
    assert "phases.teacher.gate" in told.out + told.err
    status, phases = walk(teacher={"gate": {"metric": "accuracy", "at_least": 0.6}})  # with a gate it keeps, it goes on
    assert status == 0
    assert Pretend.ran == ["teacher", "student"]


def test_a_gate_that_is_kept_lets_it_pass(walk):
    status, phases = walk(teacher={"gate": {"metric": "accuracy", "at_least": 0.7}})
    assert status == 0
    assert phases["teacher"]["gate"]["passed"] is True


def test_a_phase_that_was_told_to_leave_ends_the_run_with_143(walk):
    Pretend.behave["teacher"] = "preempted"
    status, phases = walk()
    assert status == 143
    assert Pretend.ran == ["teacher"]
    assert phases["teacher"]["state"] == "running"
    Pretend.behave.clear()
    status, phases = walk()
    assert status == 0
    assert phases["teacher"]["seconds"] >= phases["teacher"]["seconds_before"] >= 0


def test_a_signal_between_phases_starts_no_other(walk, monkeypatch):
    answers = iter([False, True])
    monkeypatch.setattr(pipeline.Signals, "agreed", lambda self: next(answers))
    status, phases = walk()
    assert status == 143
    assert Pretend.ran == ["teacher"]
    assert phases["teacher"]["state"] == "finished"


def test_a_signal_sets_a_flag(walk):
    signals = pipeline.Signals()
    assert not signals.asked
    signal.raise_signal(signal.SIGUSR1)
    assert signals.asked
    assert signals.agreed()
    again = pipeline.Signals()
    signal.raise_signal(signal.SIGTERM)
    assert again.asked


def test_a_failing_phase_is_recorded_as_failed_and_begins_again(walk):
    Pretend.behave["student"] = RuntimeError("no luck")
    with pytest.raises(RuntimeError, match="no luck"):
        walk()
    phases = Manifest.read(walk.folder, "walk").phases
    assert (phases["teacher"]["state"], phases["student"]["state"]) == ("finished", "failed")
    started = phases["student"]["started"]
    Pretend.behave.clear()
    status, phases = walk()
    assert status == 0
    assert phases["student"]["started"] == started
    assert Pretend.ran == ["teacher", "student", "student"]


def test_leftovers_of_a_killed_process_are_removed(walk):
    for name in (".part-x", "student/.part-model-y"):
        (walk.folder / name).mkdir(parents=True)
    walk()
    assert not list(walk.folder.rglob(".part-*"))


def test_a_step_of_a_phase_has_journal_lines_of_its_own(walk):
    Pretend.behave["student"] = "steps"
    assert walk()[0] == 0
    lines = [json.loads(line) for line in (walk.folder / "metrics.jsonl").read_text().splitlines()]
    told = [(line["phase"], line["step"], line.get("event")) for line in lines if line["phase"].startswith("student")]
    assert told == [
        ("student", 1, None),
        ("student.one", 1, None),
        ("student.two", 1, None),
        ("student.two", 2, None),
        ("student.two", 2, "finish"),
        ("student", 4, "finish"),
    ]
