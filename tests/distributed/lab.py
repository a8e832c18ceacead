"""A folder in which `distill` is run as a person would run it: a small table, an experiment, and a loss that can be slowed down."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
STEPS = {"teacher": 6, "student": 24}
EXPERIMENT = """# @package _global_
# distill run experiment=tiny
#
# Two phases on sixty rows.
defaults:
  - /phases@phases.teacher: finetune
  - /models@phases.teacher.model: from_config
  - /phases@phases.student: distill
  - /models@phases.student.model: from_layers
  - /losses@phases.student.losses.brake: brake
  - override /training: zero2
  - override /data: table
  - override /tracking: none

config: {allowed_targets: [brakes]}
data: {path: rows.csv, max_length: 24}
training: {devices: 2, batch_size: 12, max_epochs: null, max_steps: 6, checkpoint_every: 2, flush_every: 1, log_every: 1}
phases:
  teacher:
    model: {tokenizer: bytes, hidden_size: 32, num_hidden_layers: 3, intermediate_size: 48, max_position_embeddings: 32}
    training: {lr: 2.0e-3}
  student:
    model: {phase: teacher, num_layers: 1, dropout: 0.0}
    teachers: {main: {phase: teacher, placement: zero3}}
    training: {strategy: zero3, max_steps: 24, lr: 2.0e-3, eval_every: 5}
"""
BRAKE_YAML = """# A loss of zero that takes as long as the environment says.
_target_: brakes.Brake
weight: 0.0
"""
BRAKE = '''"""A loss of zero that takes as long as the environment says: to be caught in the act."""

import os
import time

from distill_system.losses.base import Loss
from distill_system.schema import NonNegative


class Brake(Loss):
    def __init__(self, weight: NonNegative = 0.0) -> None:
        super().__init__(weight)

    def forward(self, student, teacher, targets):
        time.sleep(float(os.environ.get("BRAKE_S", 0)))
        return student.logits.sum() * 0, targets.count()
'''


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder, self.config_dir = folder, folder / "mine"
        self._write("mine/experiment/tiny.yaml", EXPERIMENT)
        self._write("mine/losses/brake.yaml", BRAKE_YAML)
        self._write("mine/brakes.py", BRAKE)
        with open(folder / "rows.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for i in range(60):
                colour = ["red", "green", "blue"][i % 3]
                rows.writerow([f"{i} is {'very ' * (i % 3)}{colour}", colour if i % 9 else ""])
        for i in range(12):
            self._write(f"texts/{i}.txt", f"text number {i} of twelve, and all are alike. " * 8)

    def _write(self, name: str, content: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def start(self, *words: str, brake_s: float = 0.0) -> subprocess.Popen:
        environment = os.environ | {
            "BRAKE_S": str(brake_s),
            "DISTILL_CACHE": str(self.folder / "cache"),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "distill_system.cli", *words]
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def call(self, *words: str) -> tuple[int, str, str]:
        """(status, stdout, stderr) of a command that is let run to its end."""
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        return process.returncode, out, err

    def run(self, *overrides: str) -> tuple[int, str, str]:
        return self.call("run", f"--config-dir={self.config_dir}", "experiment=tiny", *overrides)

    def caught(self, step: int, *overrides: str) -> subprocess.Popen:
        """A run that has just logged this step of the student (it is braked, so that the next ones take their time)."""
        words = ("run", f"--config-dir={self.config_dir}", "experiment=tiny", *overrides)
        process = self.start(*words, brake_s=0.25)
        name = next(word.partition("=")[2] for word in overrides if word.startswith("run.name="))
        deadline = time.monotonic() + 100
        while step not in self.steps(name).get("student", []):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise AssertionError(f"it ended before it could be caught: {process.communicate()}")
            time.sleep(0.05)
        return process

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / "runs" / name / "metrics.jsonl"
        content = path.read_text() if path.is_file() else ""
        return [json.loads(line) for line in content.split("\n")[:-1]]

    def steps(self, name: str) -> dict[str, list[int]]:
        """Steps that have a line with a loss, by phase, in the journal's order."""
        found: dict[str, list[int]] = {}
        for line in self.lines(name):
            if "loss" in line:
                found.setdefault(line["phase"], []).append(line["step"])
        return found

    def losses(self, name: str, phase: str = "student") -> list[float]:
        return [line["loss"] for line in self.lines(name) if line["phase"] == phase and "loss" in line]

    def json(self, name: str, file: str) -> Any:
        return json.loads((self.folder / "runs" / name / file).read_text())

    def weights(self, name: str, phase: str = "student") -> dict[str, Any]:
        return load_file(self.folder / "runs" / name / phase / "model" / "model.safetensors")


def ranks_of(launcher: int) -> list[int]:
    """Process ids of the ranks that a launcher has started, in their order."""
    text = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
    found = [int(word) for word in text.split()]
    return sorted(pid for pid in found if b"_rank" in Path(f"/proc/{pid}/cmdline").read_bytes())


def is_gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def end(process: subprocess.Popen, number: signal.Signals, within_s: float) -> tuple[int, str, float]:
    """Signals the launcher; (status, stderr, seconds it took)."""
    began = time.monotonic()
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=within_s)
    finally:
        process.kill()
    return process.returncode, err, time.monotonic() - began
