"""Runs a function on several gloo ranks and hands back what rank 0 returned; one launch per test file, since starting ranks takes seconds.

results = run_ranks("tests.distributed.strategies:main", world=2, folder=tmp_path)
"""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distill_system.distributed import free_port

ROOT = Path(__file__).parents[2]


def run_ranks(
    target: str,
    *,
    world: int,
    folder: Path,
    timeout_s: float = 280,
    arguments: dict[str, Any] | None = None,
    device: str = "cpu",
) -> Any:
    """Calls `module:function(folder, **arguments)` on every rank. A rank that fails fails the test with its output, and ends the others."""
    environment = os.environ | {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu" if device == "cpu" else "cuda",
        "DISTILL_TEST_DEVICE": device,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    result = folder / f"result-{world}.json"
    command = [
        sys.executable,
        "-m",
        "tests.distributed.launch",
        target,
        str(folder),
        str(result),
        json.dumps(arguments or {}),
    ]
    ranks = []
    for rank in range(world):
        log = open(folder / f"rank-{world}-{rank}.log", "w")  # noqa: SIM115 (closed by the garbage of a test)
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=subprocess.STDOUT))
    deadline = time.monotonic() + timeout_s
    try:
        while any(rank.poll() is None for rank in ranks):
            failed = [i for i, rank in enumerate(ranks) if rank.poll() not in (None, 0)]
            if failed or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        for rank in ranks:
            if rank.poll() is None and (any(r.poll() not in (None, 0) for r in ranks) or time.monotonic() > deadline):
                rank.kill()
            rank.wait()
    codes = [rank.returncode for rank in ranks]
    if any(codes):
        first = (
            next(i for i, code in enumerate(codes) if code not in (0, -9))
            if any(c not in (0, -9) for c in codes)
            else 0
        )
        text = (folder / f"rank-{world}-{first}.log").read_text()
        raise AssertionError(f"ranks ended with {codes}; rank {first} said:\n{text[-4000:]}")
    return json.loads(result.read_text())


def _child(target: str, folder: str, result: str, arguments: str) -> None:
    from distill_system import distributed

    module, _, name = target.partition(":")
    distributed.start(distributed.device_of(os.environ["DISTILL_TEST_DEVICE"]), threads=1, timeout_s=120)
    value = getattr(importlib.import_module(module), name)(Path(folder), **json.loads(arguments))
    if distributed.is_main():
        Path(result).write_text(json.dumps(value))
    distributed.barrier()
    distributed.stop()


if __name__ == "__main__":
    _child(*sys.argv[1:])
