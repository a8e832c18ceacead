"""Ranks on this machine: started through torch's elastic launcher, watched, and ended together."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from distill_system.hardware import usable_cores
from distill_system.scheduling.failure import Failure, first_failure

POLL_S = 0.1
KILL_AFTER_CRASH_S = 2.0  # ranks that wait in a collective for one that died will never leave by themselves
PREEMPTED = 143


class Signalled:
    """Remembers SIGTERM, SIGUSR1 and Ctrl-C instead of dying of them. A second Ctrl-C means now."""

    def __init__(self) -> None:
        self.count = 0
        self.last: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: Any) -> None:
        self.count, self.last = self.count + 1, number


def launch(folder: Path, *, ranks: int, threads: int | None, shutdown_timeout_s: float) -> int:
    """Runs `distill _rank FOLDER` in `ranks` processes until all have ended; returns the run's exit status.

    One failing rank ends the others; the first failure's story is printed once. SIGTERM or Ctrl-C is passed on as SIGTERM: ranks save and leave, and
    are killed when that takes longer than `shutdown_timeout_s`.
    """
    signalled = Signalled()
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    from distill_system.distributed import free_port

    environment = rank_environment(ranks, threads, free_port())
    with tempfile.TemporaryDirectory(prefix="distill-") as logs:
        arguments = ("-m", "distill_system.cli", "_rank", str(folder))
        context = start_processes(
            name="distill",
            entrypoint=sys.executable,
            args=dict.fromkeys(range(ranks), arguments),
            envs={rank: environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)},
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            status = _watch(context, signalled, ranks, shutdown_timeout_s)
        finally:
            context.close(signal.SIGKILL, timeout=5)
        failure = first_failure([Path(path) for path in context.error_files.values()], context_codes(context))
    if status in (0, 3, PREEMPTED):
        return status
    return _tell(failure, signalled)


def _watch(context: Any, signalled: Signalled, ranks: int, shutdown_timeout_s: float) -> int:
    """Waits for the ranks; 0, 3 or 143 when all of them say so, else 1."""
    passed_on, deadline = 0, float("inf")
    while True:
        codes = context_codes(context)
        ended = [code for code in codes if code is not None]
        if len(ended) == ranks:
            return ended[0] if len(set(ended)) == 1 and ended[0] in (0, 3, PREEMPTED) else 1
        if any(code not in (0, 3, PREEMPTED) for code in ended):
            deadline = min(deadline, time.monotonic() + KILL_AFTER_CRASH_S)
        if signalled.count > passed_on:
            first = passed_on == 0
            passed_on = signalled.count
            if first:
                _signal_all(context, signal.SIGTERM)
                deadline = min(deadline, time.monotonic() + shutdown_timeout_s)
            elif signalled.last == signal.SIGINT:
                deadline = 0
        if time.monotonic() > deadline:
            _signal_all(context, signal.SIGKILL)
            time.sleep(POLL_S)
        time.sleep(POLL_S)


def context_codes(context: Any) -> list[int | None]:
    return [handler.proc.poll() for _, handler in sorted(context.subprocess_handlers.items())]


def _signal_all(context: Any, number: signal.Signals) -> None:
    for handler in context.subprocess_handlers.values():
        if handler.proc.poll() is None:
            os.kill(handler.proc.pid, number)


def _tell(failure: Failure, signalled: Signalled) -> int:
    """Prints the first failure, once, and gives the status for it."""
    if signalled.count and failure.kind == "killed":
        print(
            "The run was stopped before all ranks had saved; the same command goes on from the last checkpoint.",
            file=sys.stderr,
        )
        return 1
    print(failure.text, file=sys.stderr, flush=True)
    return failure.status


def rank_environment(ranks: int, threads: int | None, port: int) -> dict[str, str]:
    """What every rank finds in its environment besides its number."""
    per_rank = threads or max(1, usable_cores() // ranks)
    return {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(per_rank),
        "DISTILL_LAUNCHED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def given_ranks() -> int | None:
    """How many ranks torchrun or srun has started this process among; None where it stands alone."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if (
        "SLURM_PROCID" in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ
    ):  # set by srun, not in the batch script itself
        return int(os.environ["SLURM_STEP_NUM_TASKS"])
    return None
