"""Kills a run at random moments, resumes it until it ends, and holds it against an undisturbed one.

    python -m benchmarks.chaos --kills 10 --json chaos.json [--experiment demo_quick] [overrides]

Kills fall at steps that are drawn, all of them before the run ends, however fast the machine is; a little after the step, so that they hit saving,
validation and the ends of phases too. A kill is SIGTERM to the launcher (ranks save and leave), SIGKILL to the launcher, to one rank, or to all, seeded so that a failure can be repeated. Afterwards the
weights of every phase must be bit-equal, each step must stand in metrics.jsonl once with the same losses, and no unfinished file may be left.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KINDS = ("term", "kill launcher", "kill one rank", "kill all")
FIGURES = ("loss", "grad_norm")


def command(folder: Path, name: str, experiment: str, overrides: list[str]) -> list[str]:
    base = [sys.executable, "-m", "distill_system.cli", "run", f"experiment={experiment}", "tracking=none"]
    often = ["training.checkpoint_every=3", "training.log_every=1", "training.flush_every=1"]
    return [*base, f"run.dir={folder}", f"run.name={name}", *often, *overrides]


def ranks_of(folder: Path) -> list[int]:
    """Processes that work on the run folder as ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"_rank" in words and str(folder).encode() in words:
            found.append(int(path.parent.name))
    return found


def strike(kind: str, launcher: subprocess.Popen, folder: Path, dice: random.Random) -> None:
    if kind == "term":
        launcher.send_signal(signal.SIGTERM)
        return
    targets = [launcher.pid] if kind == "kill launcher" else ranks_of(folder)
    if kind == "kill one rank" and targets:
        targets = [dice.choice(sorted(targets))]
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def reached(folder: Path) -> int:
    """Steps that stand in the journal."""
    path = folder / "metrics.jsonl"
    return path.read_text().count('"loss":') if path.is_file() else 0


def caught(launcher: subprocess.Popen, folder: Path, step: int, delay_s: float) -> bool:
    """Waits until the run has made so many steps, and a little longer; False if it ended before."""
    while reached(folder) < step:
        if launcher.poll() is not None:
            return False
        time.sleep(0.02)
    try:
        launcher.wait(delay_s)
    except subprocess.TimeoutExpired:
        return True
    return False


def disturbed(folder: Path, words: list[str], total: int, kills: int, seed: int) -> list[dict[str, Any]]:
    """Runs until finished, killed `kills` times on the way; returns what was done and what came of it."""
    dice = random.Random(seed)
    history: list[dict[str, Any]] = []
    run = folder / "disturbed"
    for step in sorted(dice.choices(range(1, total), k=kills)):
        launcher = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # A step that was undone by the last kill is made again: one kill after the other gets further.
        if caught(launcher, run, step, dice.uniform(0, 1.5)):
            kind = dice.choice(KINDS)
            began, at = time.monotonic(), reached(run)
            strike(kind, launcher, run, dice)
            launcher.wait(60)
            while ranks_of(run) and time.monotonic() - began < 30:
                time.sleep(0.1)
            ended = round(time.monotonic() - began, 1)
            history.append({"kind": kind, "step": at, "status": launcher.returncode, "ended_in_s": ended})
            print(json.dumps(history[-1]), flush=True)
    while True:
        launcher = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        _, errors = launcher.communicate(timeout=1800)
        if launcher.returncode != 0:
            raise RuntimeError(f"the run failed after {len(history)} kills:\n{errors}")
        return history


def steps(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Figures by (phase, step); a step that stands twice is an error."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if "loss" in line:
            key = (line["phase"], line["step"])
            assert key not in found, f"{key} stands twice"
            found[key] = {name: value for name, value in line.items() if name.startswith(FIGURES)}
    return found


def digests(phase: dict[str, Any]) -> dict[str, str]:
    """Of a phase's model and its members'."""
    return {"": phase["digest"]} | {name: member["digest"] for name, member in phase.get("members", {}).items()}


def compare(one: Path, other: Path) -> dict[str, Any]:
    manifests = [json.loads((folder / "manifest.json").read_text())["phases"] for folder in (one, other)]
    weights = {name: digests(manifests[0][name]) == digests(manifests[1][name]) for name in manifests[0]}
    left = [str(path.relative_to(other)) for path in other.rglob(".part-*")]
    return {
        "bit_equal": weights,
        "same_steps": steps(one) == steps(other),
        "left_over": left,
        "resumes": sum(p["resumes"] for p in manifests[1].values()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="demo_quick")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = Path(scratch)
        given = (arguments.experiment, arguments.overrides)
        subprocess.run(command(folder, "undisturbed", *given), check=True, stdout=subprocess.DEVNULL)
        words, total = command(folder, "disturbed", *given), reached(folder / "undisturbed")
        history = disturbed(folder, words, total, arguments.kills, arguments.seed)
        result = compare(folder / "undisturbed", folder / "disturbed") | {"kills": history}
    print(json.dumps({key: value for key, value in result.items() if key != "kills"}))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))
    return 0 if all(result["bit_equal"].values()) and result["same_steps"] and not result["left_over"] else 1


if __name__ == "__main__":
    sys.exit(main())
