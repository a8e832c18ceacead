"""Evidence: plans, outcomes that outlive their runs, and the page; runs are played by a function."""

import copy
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.evidence import __main__ as command
from benchmarks.evidence import outcomes, plan, render, running
from benchmarks.evidence.picture import draw
from distill_system.errors import Refusal

CONTENT: dict[str, Any] = {
    "question": "Does it help?",
    "minimal_effect": 0.01,
    "setups": {
        "first": {
            "title": "Few labels",
            "seeds": [1, 2, 3],
            "pilot": {"deviation": 0.01, "seeds": 3, "text": "Sizes by a pilot."},
            "comparisons": [{"name": "KD against CE", "baseline": "ce", "method": "kd"}],
        }
    },
}
CONFIG = {"seed": 0, "run": {"name": "x"}, "training": {"lr": 0.1, "devices": 1}, "phases": {"ce": {"training": {}}}}


def a_plan(**changes: Any) -> plan.Plan:
    content = copy.deepcopy(CONTENT)
    content["setups"]["first"] |= changes
    return plan.plan_of("made_up", content)


def arm(accuracy: float, seconds: float = 2.0) -> dict[str, Any]:
    return {"metrics": {"accuracy": accuracy}, "seconds": seconds, "steps": 10, "parameters": 1000}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A repository of one NAME and a cache; returns where its outcomes lie."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "PAGE", tmp_path / "docs" / "evidence.md")
    monkeypatch.setattr(command, "FOLDER", tmp_path / "docs" / "evidence")
    monkeypatch.setattr(plan, "names", lambda folder=None: ["made_up"])
    monkeypatch.setattr(plan, "read_plan", lambda name, folder=None: a_plan())
    monkeypatch.setattr(running, "resolved", lambda setup, seed: CONFIG | {"seed": seed})
    return tmp_path / "docs" / "evidence" / "made_up.json"


def test_unknown_and_missing_settings_are_told_together():
    content = copy.deepcopy(CONTENT)
    content["minimal_effekt"] = content.pop("minimal_effect")
    content["setups"]["first"] |= {"seeds": [1, 1, 2]}
    content["setups"]["first"]["comparisons"][0] = {"name": "a", "baseline": {"least": ["b"]}, "methode": "c"}
    with pytest.raises(Refusal) as refused:
        plan.plan_of("made_up", content)
    keys = [problem.key.removeprefix("made_up.yaml: ") for problem in refused.value.problems]
    first = "setups.first.comparisons[0]"
    assert keys == [
        "minimal_effekt",
        "minimal_effect",
        "setups.first.seeds",
        f"{first}.methode",
        f"{first}.method",
        f"{first}.baseline",
    ]
    assert "did you mean 'minimal_effect'" in str(refused.value)


@pytest.mark.parametrize("name", plan.names())
def test_arms_of_a_plan_are_phases_of_its_experiment(name):
    found = plan.read_plan(name)
    for setup in found.setups.values():
        experiment = yaml.safe_load((running.ROOT / "conf" / "experiment" / f"{setup.experiment}.yaml").read_text())
        for comparison in setup.comparisons:
            for one in plan.arms_of(comparison.baseline) + plan.arms_of(comparison.method):
                phase = setup.corrections.get(one, {"phase": one})["phase"].partition(".")[0]
                assert phase in experiment["phases"], (setup.name, comparison.name, one)
    assert f"<!-- evidence:{name} -->" in command.PAGE.read_text()


def test_an_arm_is_a_phase_a_mean_or_the_best():
    arms = {"a": arm(0.5), "b": arm(0.7), "c.x": arm(0.9)}
    value = lambda which, higher=True: outcomes.value_of(which, "accuracy", arms, higher_is_better=higher)  # noqa: E731
    assert value("c.x") == 0.9
    assert value(["a", "b"]) == pytest.approx(0.6)
    assert value({"best": ["a", "b"]}) == 0.7
    assert value({"best": ["a", "b"]}, False) == 0.5
    assert value(["a", "none"]) is None


def test_digest_covers_results_and_nothing_else():
    other = copy.deepcopy(CONFIG)
    other["run"]["name"], other["training"]["devices"] = "y", 2
    assert outcomes.digest_of(other) == outcomes.digest_of(CONFIG)
    other["training"]["lr"] = 0.2
    assert outcomes.digest_of(other) != outcomes.digest_of(CONFIG)
    assert CONFIG["training"]["devices"] == 1  # untouched


def test_figures_come_from_phases_and_members(tmp_path):
    phase = {"seconds": 1.234, "steps": 7, "parameters": 9}
    (tmp_path / "manifest.json").write_text(json.dumps({"phases": {"ce": phase, "cohort": phase}}))
    confusion = {"labels": ["cat", "dog"], "matrix": [[3, 1], [2, 2]]}
    for place, accuracy, size in (("ce", 0.625, None), ("cohort", 0.8, None), ("cohort/b", 0.7, {"parameters": 5})):
        (tmp_path / place).mkdir()
        evaluation = {"metrics": {"accuracy": accuracy, "ece": None}, "confusion": confusion, "size": size}
        (tmp_path / place / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "cohort" / "ensemble.json").write_text(json.dumps({"metrics": {"accuracy": 0.9}}))
    comparisons = [{"name": "x", "baseline": "ce", "method": "cohort.b", "metric": "recall:cat"}]
    found = outcomes.extract(tmp_path, a_plan(comparisons=comparisons).setups["first"])
    metrics = {"accuracy": 0.625, "recall:cat": 0.75}
    assert found["ce"] == {"metrics": metrics, "seconds": 1.23, "steps": 7, "parameters": 9}
    assert list(found) == ["ce", "cohort", "cohort.b", "cohort.ensemble"]
    assert found["cohort.ensemble"]["metrics"] == {"accuracy": 0.9}
    assert (found["cohort.b"]["parameters"], found["cohort.b"]["metrics"]["accuracy"]) == (5, 0.7)


def run(home: Path, monkeypatch, values: dict[int, tuple[float, float]], *words: str) -> tuple[int, list[int]]:
    """The command with played runs: seed -> accuracy of ce and kd; a seed without values fails. Returns its status and the seeds that were run."""
    ran: list[int] = []

    def play(self, job, machine, folder):
        ran.append(job.seed)
        if job.seed not in values:
            raise RuntimeError("out of luck")
        return {"ce": arm(values[job.seed][0]), "kd": arm(values[job.seed][1], 3.0)}

    monkeypatch.setattr(running.Processes, "__call__", play)
    return command.main(["made_up", *words]), ran


def test_a_seed_is_run_once_and_a_failure_loses_nothing(home, monkeypatch, capsys):
    assert run(home, monkeypatch, {1: (0.70, 0.72), 3: (0.71, 0.74)}) == (1, [1, 2, 3])
    assert "out of luck" in capsys.readouterr().err
    assert list(json.loads(home.read_text())["setups"]["first"]["outcomes"]) == ["1", "3"]
    assert "**UNFINISHED** (2 of 3 seeds)" in command.PAGE.read_text()
    assert run(home, monkeypatch, {2: (0.70, 0.73)}) == (0, [2])
    assert run(home, monkeypatch, {}) == (0, [])
    page = command.PAGE.read_text()
    assert "| KD against CE | accuracy | ce 70.3 | kd 73.0 | +2.7 [+1.2, +4.1] | 3 of 3 | 2, 3 | **BEATS** |" in page
    assert "3 seeds find a difference of 3.1 points with 80 % power" in page  # (4.3027 + 1.0607) * 1 / sqrt(3)
    assert home.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert len(home.with_suffix(".png").read_bytes()) < 60_000


def test_only_the_first_seeds(home, monkeypatch):
    every = dict.fromkeys((1, 2, 3), (0.5, 0.6))
    assert run(home, monkeypatch, every, "--seeds", "2") == (0, [1, 2])
    assert run(home, monkeypatch, every, "--render") == (0, [])
    assert run(home, monkeypatch, every, "--jobs", "2") == (0, [3])


def test_a_kill_keeps_what_is_finished(home, monkeypatch):
    def play(self, job, machine, folder):
        if job.seed == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            while not self.stopping:  # as a run that saves and leaves
                time.sleep(0.01)
            raise running.Stopped
        return {"ce": arm(0.5), "kd": arm(0.6)}

    monkeypatch.setattr(running.Processes, "__call__", play)
    assert command.main(["made_up"]) == 143
    assert list(json.loads(home.read_text())["setups"]["first"]["outcomes"]) == ["1"]
    assert "UNFINISHED" in command.PAGE.read_text()


@pytest.mark.parametrize("how", ["archive", "keep", "discard"])
def test_results_of_other_settings(home, monkeypatch, how, capsys):
    run(home, monkeypatch, dict.fromkeys((1, 2, 3), (0.5, 0.6)))
    changed = CONFIG | {"training": {"lr": 0.3}}
    monkeypatch.setattr(running, "resolved", lambda setup, seed: changed | {"seed": seed})
    later = dict.fromkeys((1, 2, 3), (0.5, 0.4))
    assert run(home, monkeypatch, later) == (2, [])
    assert "training.lr: 0.1 -> 0.3" in capsys.readouterr().err
    status, ran = run(home, monkeypatch, later, "--changed", how)
    assert (status, ran) == (0, [] if how == "keep" else [1, 2, 3])
    setups = json.loads(home.read_text())["setups"]
    assert list(setups) == (["first~1", "first"] if how == "archive" else ["first"])
    page = command.PAGE.read_text()
    assert ("### Few labels (earlier settings)" in page) == (how == "archive")
    assert ("ce 50.0 | kd 40.0" in page) == (how != "keep")
    assert run(home, monkeypatch, later) == (0, [])


def test_only_its_own_part_of_the_page_is_rewritten():
    page = "# E\n\nrules\n\n<!-- evidence:a -->\nold a\n<!-- /evidence:a -->\n\n<!-- evidence:b -->\nold b\n<!-- /evidence:b -->\n"
    assert render.replace_part(page, "a", "new") == page.replace("old a", "new")
    assert render.replace_part(page, "b", "new").endswith(
        "old a\n<!-- /evidence:a -->\n\n<!-- evidence:b -->\nnew\n<!-- /evidence:b -->\n"
    )
    assert render.replace_part("# E\n", "c", "text\n") == "# E\n\n<!-- evidence:c -->\ntext\n<!-- /evidence:c -->\n"


def test_a_members_phase_is_paid_once():
    arms = {
        "cohort": arm(0, 8.0),
        "cohort.a": arm(0, 8.0),
        "cohort.b": arm(0, 8.0),
        "x": arm(0, 1.0),
        "kd_fixed": arm(0, 0),
    }
    assert render._seconds(["cohort.a", "cohort.b", "x"], arms) == 9.0
    assert render._seconds("kd_fixed", arms) == 0.0


def test_drawing_where_low_is_good():
    found = a_plan(comparisons=[{"name": "x", "baseline": "ce", "method": "kd", "higher_is_better": False}])
    results = outcomes.read_results(Path("none.json"), found)
    results["setups"]["first"]["outcomes"] = {str(s): {"arms": {"ce": arm(0.5), "kd": arm(0.4)}} for s in (1, 2, 3)}
    rows = render.rows_of(results)
    assert (rows[0].verdict, rows[0].found.wins) == ("BEATS", 3)
    assert draw(rows)[:4] == b"\x89PNG"


def test_a_curve_has_the_interval_of_its_difference_to_the_first_arm(tmp_path):
    made_up = a_plan(curve={"ce": 0, "kd": 50}, curve_axis="share, %")
    results = outcomes.read_results(tmp_path / "none.json", made_up)
    whole = {"1": (0.5, 0.6), "2": (0.4, 0.6), "3": (0.3, 0.6)}
    entries = {seed: {"arms": {"ce": arm(before), "kd": arm(after)}} for seed, (before, after) in whole.items()}
    results["setups"]["first"]["outcomes"] = entries | {"4": {"arms": {"ce": arm(0.9)}}}  # lacks an arm
    (curve,) = render.curves_of(results)
    assert [(x, round(mean, 6)) for x, mean, _ in curve.points] == [(0.0, 0.4), (50.0, 0.6)]
    assert curve.seeds == [[0.5, 0.6], [0.4, 0.6], [0.3, 0.6]]
    first, second = (difference for _, _, difference in curve.points)
    assert first is None
    assert second is not None
    assert (round(second.difference, 6), round(second.deviation, 6), second.wins) == (0.2, 0.1, 3)
    rows = render.rows_of(results)
    assert draw(rows, [curve]) != draw(rows)
    with pytest.raises(Refusal, match="at least 2 arms"):
        a_plan(curve={"ce": 0})


def test_the_command_of_a_seed():
    setup = a_plan(overrides=["data.limit=5"]).setups["first"]
    job = running.Job(a_plan(), setup, 2, "0123456789abcdef", CONFIG)
    words = running.command(job, running.Machine(2, 1), Path("there"))
    assert words[3:] == [
        "run", "experiment=evidence/made_up", "data.limit=5", "seed=2", "training.devices=2", "training.threads=1", "tracking=none",
        "run.name=made_up-first-seed2-01234567", "run.dir=there",
    ]  # fmt: skip
