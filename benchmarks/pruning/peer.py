"""Torch-Pruning on the same cut: half the feed-forward of the same BERT, in an environment of its own that is made on first use and kept in the cache.

The environment sees the packages of the one that runs this, so that both work with the same torch and transformers, in the same process, one after the
other.
"""

import copy
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import Figures, figure, interleaved
from benchmarks.pruning.models import batch, cut_by_magnitude, encoder
from benchmarks.pruning.results import NEURONS, against
from distill_system.packages import cache_folder, locked

ROOT = Path(__file__).parents[2]
PACKAGE, VERSION = "torch-pruning", "1.6.1"


class Failed(Exception):
    """The peer can't be had or doesn't work; the text says why."""


def environment(folder: Path) -> Path:
    """The Python of an environment with the peer in it; made unless it is there.

    Raises:
        Failed: it can't be made.
    """
    python = folder / "bin" / "python"
    done = folder / "finished"
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not done.exists():
            _run([sys.executable, "-m", "venv", "--clear", "--system-site-packages", str(folder)])
            # "System" is the Python below this environment: what is installed here comes by a path file.
            where = "import sysconfig; print(sysconfig.get_path('purelib'))"
            inside = Path(_run([str(python), "-c", where]).strip())
            (inside / "benchmarked.pth").write_text(sysconfig.get_path("purelib") + "\n")
            # Without dependencies: its torch and numpy are those that are here.
            _run([str(python), "-m", "pip", "install", "-q", "--no-deps", f"{PACKAGE}=={VERSION}"])
            done.touch()
    return python


def _run(command: list[str], timeout_s: int = 600, **more: Any) -> str:
    """What a command prints.

    Raises:
        Failed: with the last line of what it said.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, **more)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(str(error)) from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise Failed(lines[-1].strip() if lines else f"exit {done.returncode} without a word")
    return done.stdout


def plan_and_cut(model: Any, inputs: dict[str, Any]) -> None:
    """As Torch-Pruning's own example of BERT does it, with the same importance as ours, of the neurons alone."""
    peer = importlib.import_module("torch_pruning")
    neurons = {id(layer.intermediate.dense) for layer in model.bert.encoder.layer}
    others = [module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in neurons]
    peer.pruner.BasePruner(
        model,
        inputs,
        importance=peer.importance.MagnitudeImportance(p=1),
        pruning_ratio=NEURONS,
        ignored_layers=others,
        output_transform=lambda output: output.logits.sum(),
    ).step()


def timed(dense: Any, cut: Any) -> float:
    """CPU seconds of one cut, of a fresh copy."""
    model = copy.deepcopy(dense)
    began = time.thread_time()
    cut(model)
    return time.thread_time() - began


def measured(quick: bool) -> dict[str, Any]:
    """What the process in the peer's environment finds; `ours` works without the peer too."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rounds = 1 if quick else 15
    dense = encoder(quick)[0].eval()
    inputs = {key: value for key, value in batch(1).items() if key in ("input_ids", "attention_mask")}
    cuts: dict[str, Any] = {"ours": functools.partial(cut_by_magnitude, kind="neurons", share=NEURONS)}
    try:
        importlib.import_module("torch_pruning")
        cuts["peer"] = functools.partial(plan_and_cut, inputs=inputs)
    except ImportError:
        pass
    made = {name: copy.deepcopy(dense) for name in cuts}
    for name, cut in cuts.items():
        cut(made[name])
    seconds = interleaved({name: functools.partial(timed, dense, cut) for name, cut in cuts.items()}, rounds)
    found: dict[str, Any] = {name: statistics.median(values) for name, values in seconds.items()}
    if "peer" in cuts:
        with torch.inference_mode():
            apart = (made["ours"](**inputs).logits - made["peer"](**inputs).logits).abs().max()
        ours, peer = against(
            lambda: made["ours"](**inputs), lambda: made["peer"](**inputs), 2 if quick else 20, 1 if quick else 21
        )
        found |= {"ours_latency": ours, "peer_latency": peer, "apart": float(apart)}
    return found


def measure(quick: bool) -> Figures:
    try:
        python = environment(cache_folder() / "benchmarks" / f"{PACKAGE}-{VERSION}")
        found, why = _in(python, quick), ""
    except Failed as failure:
        found, why = _in(Path(sys.executable), quick), str(failure)
    if "peer" not in found:
        print(f"Torch-Pruning {VERSION} failed: {why}")
        return {"torch_pruning": figure(1000 * found["ours"], None, None, f"ms of CPU; the peer failed: {why}")}
    print(f"outputs of Torch-Pruning's cut and ours differ by {found['apart']:.2g}")
    return {
        "torch_pruning": figure(1000 * found["ours"], 1000 * found["peer"], None, "ms of CPU, plan and cut"),
        "torch_pruning_latency": figure(
            1000 * found["ours_latency"], 1000 * found["peer_latency"], None, "ms of CPU, 1 rows"
        ),
    }


def _in(python: Path, quick: bool) -> dict[str, Any]:
    """`measured` in a process of that Python."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        code = (
            "import json, pathlib; from benchmarks.pruning.peer import measured; "
            f"pathlib.Path({str(file)!r}).write_text(json.dumps(measured({quick})))"
        )
        _run([str(python), "-c", code], cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)})
        return json.loads(file.read_text())
