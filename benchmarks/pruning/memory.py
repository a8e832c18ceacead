"""Memory and time of a global selection over the weights of a model that ranks share under ZeRO-3, or that one process holds.

Memory is the process's highest (VmHWM, reset before) above what it held. For that, the allocator gives back every tensor of 128 KiB or more as soon as it is
freed (MALLOC_MMAP_THRESHOLD_: with 1 MiB, the tensors of a stretch of scores would lie in its heap, with its holes), and the rest before a measurement
(malloc_trim). Time is taken in a process of its own, whose allocator is left as it is.
"""

import ctypes
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Figures, figure, reset_peak, resident
from benchmarks.pruning.models import encoder
from distill_system import distributed
from distill_system.losses.task import HardLabel
from distill_system.pruning.schedules import Round
from distill_system.pruning.scores.magnitude import Magnitude
from distill_system.pruning.selection import select
from distill_system.pruning.weights import Weights
from distill_system.settings import Training
from distill_system.training.masking import Masking, prepare
from distill_system.training.objective import STUDENT, Objective
from distill_system.training.scoring import Scorer
from distill_system.training.strategy import make_engine

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
LARGE = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}  # 18.9M weights in six layers
FIRST, NEXT = 0.3, 0.9  # sparsity of the round that warms up, and of the one that is measured
REPEATS = 9
THRESHOLD = 2**17  # bytes; what is freed of at least that size goes back to the system


def added(call: Any) -> int:
    """Bytes that the process held at its highest within a call, above those it held before."""
    gc.collect()
    # Else what earlier calls freed is taken again, and a call seems to need nothing.
    ctypes.CDLL(None).malloc_trim(0)
    before = resident()
    reset_peak()
    call()
    return max(0, resident("VmHWM") - before)


def stream_of(scorer: Scorer) -> Iterator[tuple[str, int, Tensor]]:
    """What the phase selects from: this rank's scores, a stretch at a time."""
    for name in scorer.slices:
        for offset, scores_n in scorer.element_scores(name):
            yield name, offset, scores_n


def work(file: Path, quick: bool, timed: bool) -> None:
    """What each rank does; rank 0 writes down the figures of the busiest."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    world = int(os.environ["WORLD_SIZE"])
    if world > 1:
        distributed.start(CPU, threads=1)
    model = encoder(quick, words=None, **({} if quick else LARGE))[0]
    pruner = Weights(Magnitude())
    groups = pruner.groups(model, "pruner")
    prepare(model, groups, None)
    objective = Objective(model, {"hard": HardLabel()}, task="classification")
    engine = make_engine(objective, Training(strategy="zero3" if world > 1 else "single"), CPU)
    surgeon = Masking(pruner, groups, STUDENT, allocation=None, calibrate=lambda engine, watcher: None)
    surgeon.apply(engine, Round(1, 1, FIRST), {})
    scorer = surgeon.scorer(engine)
    sizes = {group.name: group.units for group in groups}
    prune = round(NEXT * sum(sizes.values()))
    choose = functools.partial(select, functools.partial(stream_of, scorer), prune, sizes)
    choose()
    mine = {
        "selection": max(added(choose) for _ in range(3)),
        "round": added(lambda: surgeon.apply(engine, Round(2, 2, NEXT), {})),
    }
    ranks = distributed.everyone(mine) if world > 1 else [mine]
    found: dict[str, float] = {key: max(rank[key] for rank in ranks) for key in mine}
    found |= {"largest": 4 * max(sizes.values()), "weights": sum(sizes.values())}
    if timed:
        found |= times(choose, scorer, prune)
    if world == 1 or distributed.is_main():
        file.write_text(json.dumps(found))
    if world > 1:
        distributed.barrier()
        distributed.stop()
        # Everything is written. A thread of gloo may still be giving tensors back, and aborts the process if the interpreter is taken down meanwhile.
        sys.stderr.flush()
        os._exit(0)


def times(choose: Any, scorer: Scorer, prune: int) -> dict[str, float]:
    """CPU seconds of a selection (the scores computed in each pass), and of `torch.kthvalue` on all scores side by side, which are there already."""
    gathered_n = torch.cat([scores_n.clone() for _, _, scores_n in stream_of(scorer)])
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(REPEATS):
        for name, call in (("ours", choose), ("peer", lambda: gathered_n.kthvalue(prune))):
            began = time.thread_time()
            call()
            seconds[name].append(time.thread_time() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def on_ranks(world: int, quick: bool, timed: bool = False) -> dict[str, float]:
    environment = os.environ | {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(distributed.free_port()),
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    if not timed:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(THRESHOLD)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        code = f"from benchmarks.pruning.memory import *; work(Path({str(file)!r}), {quick}, {timed})"
        ranks = []
        for rank in range(world):
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=own, stdout=sys.stderr))
        try:
            while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
                time.sleep(0.1)
        finally:
            for process in ranks:
                process.kill()
        if any(process.wait() for process in ranks):
            raise SystemExit("a rank failed; its traceback stands above")
        return json.loads(file.read_text())


def measure(quick: bool) -> Figures:
    alone, two, clock = on_ranks(1, quick), on_ranks(2, quick), on_ranks(1, quick, timed=True)

    def bytes_against_largest(found: dict[str, float], key: str) -> dict[str, Any]:
        return figure(found[key] / 1e6, found["largest"] / 1e6, None, "MB a rank")

    return {
        "select_memory": bytes_against_largest(two, "selection"),
        "select_memory_1": bytes_against_largest(alone, "selection"),
        "round_memory": bytes_against_largest(two, "round"),
        "select_time": figure(1000 * clock["ours"], 1000 * clock["peer"], None, "ms of CPU"),
    }
