"""The manifest: what is compared, what may differ, and phases that are taken over from another run."""

import dataclasses
import json

import pytest

from distill_system.manifest import PLACEMENT, Manifest, adopt, determining, differences, identity
from distill_system.settings import Gate, Training
from distill_system.verdict import first_failed_gate, judge

PHASE = {
    "_target_": "x.Y",
    "kind": "distill",
    "teachers": {"main": {"phase": "teacher", "model": None, "placement": "replicated"}},
    "training": {"lr": 1.0},
    "gate": {"metric": "accuracy", "at_least": 0.5, "at_most": None},
}


def config(**training):
    return {"seed": 0, "data": {"limit": 3}, "training": training, "phases": {"student": PHASE}}


def settings(training=None, **changes):
    values = dataclasses.asdict(training or Training())
    return determining(config() | changes, "student", values, {"digest": "d"})


def test_write_and_read(tmp_path):
    manifest = Manifest(tmp_path, "run", "distill run", "now")
    manifest.update("a", state="running", kind="finetune")
    manifest.update("a", state="finished")
    again = Manifest.read(tmp_path, "other")
    assert (again.run, again.command, again.phases) == (
        "run",
        "distill run",
        {"a": {"state": "finished", "kind": "finetune"}},
    )
    assert not again.finished("a")  # its model is gone
    (tmp_path / "a" / "model").mkdir(parents=True)
    assert again.finished("a")
    assert not again.finished("b")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 1}', '{"version": 2, "run": "x", "command": "", "phases": {}}']
)
def test_a_manifest_that_can_not_be_understood(text, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json can't be read .*run\.overwrite=true"):
        Manifest.read(tmp_path, "run")


def test_placement_does_not_determine_a_result():
    first = settings()
    for name in PLACEMENT:
        changed = dataclasses.replace(Training(), **{name: "other"})  # type: ignore[arg-type]
        assert settings(changed) == first, name
    moved = PHASE | {"teachers": {"main": PHASE["teachers"]["main"] | {"placement": "zero3"}}}
    assert settings(phases={"student": moved}) == first
    assert settings(phases={"student": PHASE | {"gate": {"metric": "nll"}}}) == first


def test_everything_else_does():
    first = settings()
    others = [f.name for f in dataclasses.fields(Training) if f.name not in PLACEMENT]
    for name in others:
        changed = dataclasses.replace(Training(), **{name: "other"})  # type: ignore[arg-type]
        assert differences(first, settings(changed)) == [f"training.{name}: {getattr(Training(), name)!r} -> 'other'"]
    assert differences(first, settings(seed=1)) == ["seed: 0 -> 1"]
    assert differences(first, settings(data={"limit": 4})) == ["data.limit: 3 -> 4"]
    assert identity(first, {}) != identity(settings(seed=1), {})
    assert identity(first, {"a": 1}) != identity(first, {"a": 2})


def test_differences_name_each_leaf():
    old = {"a": {"b": 1, "c": [1]}, "d": None}
    assert differences(old, {"a": {"b": 2, "c": [1]}, "e": 3}) == ["a.b: 1 -> 2", "e: None -> 3"]
    assert differences(old, old) == []


def test_adopt_takes_files_and_record_but_no_checkpoints(tmp_path):
    source = Manifest(tmp_path / "one", "one")
    for path in ("teacher/model/config.json", "teacher/checkpoints/step-1/state", "teacher/evaluation.json"):
        (source.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (source.folder / path).write_text(path)
    source.update("teacher", state="finished", digest="d")
    target = Manifest(tmp_path / "two", "two")
    adopt(target, source, "teacher")
    assert target.finished("teacher")
    assert target.phases["teacher"] == {"state": "finished", "digest": "d", "adopted_from": "one"}
    found = sorted(str(path.relative_to(target.folder)) for path in target.folder.rglob("*") if path.is_file())
    assert found == ["manifest.json", "teacher/evaluation.json", "teacher/model/config.json"]
    assert json.loads((target.folder / "manifest.json").read_text())["phases"]["teacher"]["digest"] == "d"


@pytest.mark.parametrize(
    ("gate", "value", "passed"),
    [
        ({"at_least": 0.5}, 0.5, True),
        ({"at_least": 0.5}, 0.49, False),
        ({"at_most": 2.0}, 2.0, True),
        ({"at_most": 2.0}, 2.1, False),
        ({"at_least": 0.0, "at_most": 1.0}, 0.5, True),
        ({"at_least": 0.0}, None, False),
        ({"at_least": 0.0}, float("nan"), False),
    ],
)
def test_judge(gate, value, passed):
    verdict = judge(Gate(metric="m", **gate), {} if value is None else {"m": value})
    assert verdict is not None
    assert verdict["passed"] is passed


def test_the_gate_of_now_judges_what_is_finished(tmp_path):
    manifest = Manifest(tmp_path, "run", phases={"student": {"state": "finished", "metrics": {"accuracy": 0.4}}})
    assert first_failed_gate(config(), manifest) is None  # not finished without its model
    (tmp_path / "student" / "model").mkdir(parents=True)
    said = first_failed_gate(config(), manifest)
    assert said is not None
    assert "phase student has accuracy 0.4, its gate asks for at_least 0.5 (phases.student.gate)" in said
    eased = config() | {"phases": {"student": PHASE | {"gate": {"metric": "accuracy", "at_least": 0.3}}}}
    assert first_failed_gate(eased, manifest) is None


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [("placement", "spread", True), ("batched", "auto", True), ("compile", True, True), ("artifact", "best", False)],
)
def test_where_members_live_decides_nothing(key, value, same):
    cohort = {"placement": "auto", "batched": "never", "compile": False, "artifact": "all"}
    one, other = (settings(phases={"student": PHASE | {"cohort": given}}) for given in (cohort, cohort | {key: value}))
    assert (one == other) is same


def test_members_are_found_by_the_phase_s_name_and_theirs(tmp_path):
    manifest = Manifest(tmp_path, "run")
    manifest.update("cohort", state="finished", digest="d", members={"a": {"digest": "x"}, "b": {"digest": "y"}})
    for folder in ("cohort/model", "cohort/a/model"):
        (tmp_path / folder).mkdir(parents=True)
    assert manifest.models() == {"cohort": tmp_path / "cohort/model", "cohort.a": tmp_path / "cohort/a/model"}
    assert [manifest.digest(name) for name in ("cohort", "cohort.a", "cohort.b", "cohort.c", "x.a")] == [
        "d",
        "x",
        "y",
        None,
        None,
    ]
