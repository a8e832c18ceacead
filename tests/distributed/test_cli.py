"""The real thing: `distill run` on two ranks, from end to end, killed in the middle in every way, and gone on with; and `distill evaluate`.

Six launches of about ten seconds each, shared by all tests of the file.
"""

import json
import os
import shutil
import signal
import time

import pytest
import torch

from tests.distributed.lab import STEPS, Lab, end, is_gone, ranks_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def straight(lab):
    """Undisturbed: status, stdout, stderr."""
    return lab.run("run.name=straight")


@pytest.fixture(scope="module")
def disturbed(lab):
    """Told to leave; one rank killed; the launcher killed; let run to its end. What was seen at each."""
    seen = {}
    process = lab.caught(5, "run.name=disturbed")
    seen["term"] = end(process, signal.SIGTERM, 15)
    seen["term manifest"] = lab.json("disturbed", "manifest.json")
    shutil.copytree(lab.folder / "runs" / "disturbed", lab.folder / "runs" / "elsewhere")

    process = lab.caught(9, "run.name=disturbed")
    ranks = ranks_of(process.pid)
    os.kill(ranks[1], signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=20)
    seen["rank"] = (process.returncode, err, time.monotonic() - began)
    seen["rank gone"] = [is_gone(pid, 5) for pid in ranks]

    process = lab.caught(14, "run.name=disturbed")
    ranks = ranks_of(process.pid)
    seen["launcher"] = end(process, signal.SIGKILL, 10)
    seen["launcher gone"] = [is_gone(pid, 10) for pid in ranks]

    seen["last"] = lab.run("run.name=disturbed")
    return seen


def test_a_run_from_end_to_end(lab, straight):
    status, out, err = straight
    assert status == 0, err
    assert "Traceback" not in err
    assert "student" in out
    assert lab.steps("straight") == {phase: list(range(1, steps + 1)) for phase, steps in STEPS.items()}
    manifest = lab.json("straight", "manifest.json")
    assert {name: phase["state"] for name, phase in manifest["phases"].items()} == dict.fromkeys(STEPS, "finished")
    student = manifest["phases"]["student"]
    assert student["steps"] == 24
    assert student["resumes"] == 0
    assert student["cost"]["ranks"] == 2
    assert student["cost"]["samples"] == pytest.approx(24 * 12, rel=0.2)  # an epoch's last batch is smaller
    assert not list((lab.folder / "runs" / "straight").rglob(".part-*"))
    events = [(line["phase"], line["event"]) for line in lab.lines("straight") if "event" in line]
    assert events == [(phase, event) for phase in STEPS for event in ("start", "finish")]


def test_its_artifacts_load_and_differ_as_they_should(lab, straight):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = lab.folder / "runs" / "straight"
    for phase, layers in (("teacher", 3), ("student", 1)):
        model = AutoModelForSequenceClassification.from_pretrained(folder / phase / "model")
        assert model.config.num_hidden_layers == layers
        assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
        tokenizer = AutoTokenizer.from_pretrained(folder / phase / "model")
        assert model(**tokenizer("a row", return_tensors="pt")).logits.shape == (1, 3)
    passport = lab.json("straight", "student/model/compression.json")
    assert [step["phase"] for step in passport["lineage"]] == ["teacher", "student"]


def test_its_report_is_there(lab, straight):
    report = lab.json("straight", "report/report.json")
    assert report["run"] == "straight"
    assert list(report["phases"]) == list(STEPS)
    for phase in report["phases"].values():
        expected = {"kind", "metrics", "size_bytes", "parameters", "nonzeros", "seconds", "inputs"}
        assert phase.keys() == expected
        assert 0 <= phase["metrics"]["accuracy"] <= 1
    assert report["phases"]["student"]["parameters"] < report["phases"]["teacher"]["parameters"]
    digest = lab.json("straight", "manifest.json")["phases"]["teacher"]["digest"]
    inputs = report["phases"]["student"]["inputs"]
    assert inputs["teachers.main.phase"] == {"phase": "teacher", "digest": digest}
    page = (lab.folder / "runs" / "straight" / "report" / "index.html").read_text()
    assert "<svg" in page
    assert "experiment=tiny" in page


def test_a_finished_run_is_shown_and_nothing_is_started(lab, straight):
    before = {path: path.stat().st_mtime_ns for path in (lab.folder / "runs" / "straight" / "student").rglob("*")}
    began = time.monotonic()
    status, out, err = lab.run("run.name=straight")
    assert status == 0, err
    assert time.monotonic() - began < 20
    assert "Nothing to do" in out
    assert lab.steps("straight")["student"] == list(range(1, 25))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_sigterm_saves_and_leaves_with_143(disturbed):
    status, err, seconds = disturbed["term"]
    assert status == 143, err
    assert seconds < 10
    assert "Traceback" not in err
    phases = disturbed["term manifest"]["phases"]
    assert phases["teacher"]["state"] == "finished"
    assert phases["student"]["state"] != "finished"


def test_a_killed_rank_ends_all_and_is_told_once(disturbed):
    status, err, seconds = disturbed["rank"]
    assert status == 1
    assert seconds < 10
    assert err.count("Traceback") <= 1
    assert disturbed["rank gone"] == [True, True]
    assert "rank" in err


def test_a_killed_launcher_leaves_no_rank_behind(disturbed):
    assert disturbed["launcher"][0] == -signal.SIGKILL
    assert disturbed["launcher gone"] == [True, True]


def test_after_all_that_the_weights_are_bit_equal(lab, straight, disturbed):
    status, _, err = disturbed["last"]
    assert status == 0, err
    for phase in STEPS:
        weights, expected = lab.weights("disturbed", phase), lab.weights("straight", phase)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected), phase
    ours, expected = (lab.json(name, "manifest.json")["phases"]["student"] for name in ("disturbed", "straight"))
    assert ours["digest"] == expected["digest"]
    assert (ours["resumes"], expected["resumes"]) == (3, 0)


def test_and_no_step_is_lost_or_told_twice(lab, straight, disturbed):
    assert lab.steps("disturbed") == lab.steps("straight")
    assert lab.losses("disturbed") == lab.losses("straight")
    events = [line["event"] for line in lab.lines("disturbed") if line["phase"] == "student" and "event" in line]
    assert events[0] == "start"
    assert events[-1] == "finish"
    assert events.count("resume") == 3


def test_what_two_ranks_began_one_rank_ends(lab, straight, disturbed):
    single = ("training=single", "training.devices=1", "phases.student.training.strategy=single")
    status, _, err = lab.run("run.name=elsewhere", *single, "phases.student.teachers.main.placement=replicated")
    assert status == 0, err
    resume = next(line for line in lab.lines("elsewhere") if line.get("event") == "resume")
    assert resume["ranks"] == 1
    assert resume["strategy"] == "single"
    assert resume["step"] >= 5
    assert lab.losses("elsewhere") == pytest.approx(lab.losses("straight"), rel=1e-4)
    expected = lab.weights("straight")
    weights = lab.weights("elsewhere")
    assert max(float((weights[name] - expected[name]).abs().max()) for name in expected) < 1e-3


def test_evaluate_gives_the_figures_of_the_run(lab, straight):
    student, teacher = (f"runs/straight/{phase}" for phase in ("student", "teacher"))
    data = ("data=table", "data.path=rows.csv", "data.max_length=24")
    status, out, err = lab.call("evaluate", student, *data, f"teacher={teacher}", "json=figures.json")
    assert status == 0, err
    figures = json.loads((lab.folder / "figures.json").read_text())
    expected = lab.json("straight", "student/evaluation.json")
    assert figures["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
    assert next(iter(figures["teacher"].values())) == pytest.approx(expected["teacher"]["main"], rel=1e-4, abs=1e-7)
    for name in ("size_bytes", "parameters", "nonzeros"):
        assert figures["size"][name] == expected["size"][name]
    assert f"{figures['metrics']['accuracy']:.4f}" in out


def test_a_language_model_that_misses_its_gate(lab):
    overrides = [
        "run.name=language",
        "data=text",
        "data.path=texts",
        "data.block_size=32",
        "models@phases.teacher.model=tiny_llama",
        "phases.teacher.model.max_position_embeddings=32",
        "phases.student.training.max_steps=6",
        "phases.student.gate.metric=perplexity",
        "phases.student.gate.at_most=1.0",
    ]
    status, out, err = lab.run(*overrides)
    assert status == 3, err
    assert "gate" in out + err
    assert "perplexity" in out + err
    student = lab.json("language", "manifest.json")["phases"]["student"]
    assert student["state"] == "gated"
    assert student["gate"] == {
        "metric": "perplexity",
        "at_least": None,
        "at_most": 1.0,
        "value": student["metrics"]["perplexity"],
        "passed": False,
    }
    assert 1 < student["metrics"]["perplexity"] < 260
    assert student["metrics"]["bits_per_byte"] > 0
    page = (lab.folder / "runs" / "language" / "report" / "index.html").read_text()
    assert "gate" in page
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(lab.folder / "runs" / "language" / "student" / "model")
    assert model.config.num_hidden_layers == 1
    assert lab.losses("language")[-1] < lab.losses("language")[0]
