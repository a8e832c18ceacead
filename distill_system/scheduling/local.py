"""Ranks on this machine: started through torch's elastic launcher, watched, and ended together."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_system.hardware import usable_cores
from distill_system.scheduling.failure import Failure, first_failure

POLL_S = 0.1
KILL_AFTER_CRASH_S = 2.0  # ranks that wait in a collective for one that died will never leave by themselves
PREEMPTED = 143
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Signalled:
    """Remembers SIGTERM, SIGUSR1 and Ctrl-C inside a `with` block instead of dying of them. A second Ctrl-C means now."""

    def __init__(self) -> None:
        self.count = 0
        self.interrupts = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signalled":
        self.before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._set)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: Any) -> None:
        self.count += 1
        self.interrupts += number == signal.SIGINT

    @property
    def impatient(self) -> bool:
        return self.count > 1 and self.interrupts > 0


def launch(
    folder: Path, *, ranks: int, threads: int | None, shutdown_timeout_s: float, command: Sequence[str] | None = None
) -> int:
    """Runs `distill _rank FOLDER` in `ranks` processes until all have ended; returns the run's exit status.

    One failing rank ends the others; the first failure's story is printed once. SIGTERM or Ctrl-C is passed on as SIGTERM: ranks save and leave, and
    are killed when that takes longer than `shutdown_timeout_s`.

    Args:
        folder: of the run.
        ranks: how many.
        threads: of each; None: an equal share of the cores.
        shutdown_timeout_s: how long they may take to save and leave.
        command: what Python runs as a rank instead (for tests).

    Raises:
        KeyboardInterrupt: the run was stopped by a signal before anything was saved.
    """
    with Signalled() as signalled:
        arguments = tuple(command or ("-m", "distill_system.cli", "_rank", str(folder)))
        status, failure = _run_ranks(arguments, signalled, ranks, threads, shutdown_timeout_s)
    if status in (0, 3, PREEMPTED):
        return status
    return _tell(failure, signalled, folder)


def _run_ranks(
    arguments: tuple[str, ...], signalled: Signalled, ranks: int, threads: int | None, shutdown_timeout_s: float
) -> tuple[int, Failure]:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes

    from distill_system.distributed import free_port

    environment = rank_environment(ranks, threads, free_port())
    with tempfile.TemporaryDirectory(prefix="distill-") as logs:
        try:
            context = start_processes(
                name="distill",
                entrypoint=sys.executable,
                args=dict.fromkeys(range(ranks), arguments),
                envs={rank: environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)},
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
        except SignalException as error:  # ranks that were started already die with this process
            raise KeyboardInterrupt from error
        signalled.listen()  # the launcher has put handlers of its own in place, which would end the ranks unsaved
        try:
            status, first = _watch(context, signalled, ranks, shutdown_timeout_s)
        finally:
            context.close(signal.SIGKILL, timeout=5)
        failure = first_failure([Path(path) for path in context.error_files.values()], first.codes, first.moment)
    return status, failure


@dataclass
class FirstEnd:
    """Which ranks had ended, and how, when it was first seen that one had ended badly."""

    codes: list[int | None]
    moment: float


def _watch(context: Any, signalled: Signalled, ranks: int, shutdown_timeout_s: float) -> tuple[int, FirstEnd]:
    """Waits for the ranks; 0, 3 or 143 when all of them say so, else 1."""
    passed_on, deadline = False, float("inf")
    first: FirstEnd | None = None
    while True:
        codes = context_codes(context)
        ended = [code for code in codes if code is not None]
        bad = any(code not in (0, 3, PREEMPTED) for code in ended)
        if bad and first is None:
            first = FirstEnd(codes, time.time())
        if len(ended) == ranks:
            status = ended[0] if len(set(ended)) == 1 and not bad else 1
            return status, first or FirstEnd(codes, time.time())
        if bad:
            deadline = min(deadline, time.monotonic() + KILL_AFTER_CRASH_S)
        if signalled.count and not passed_on:
            passed_on = True
            _signal_all(context, signal.SIGTERM)
            deadline = min(deadline, time.monotonic() + shutdown_timeout_s)
        if signalled.impatient:
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


def _tell(failure: Failure, signalled: Signalled, folder: Path) -> int:
    """Prints the first failure, once, and gives the status for it."""
    if signalled.count and failure.kind == "killed":
        saved = any(folder.glob("*/checkpoints/step_*"))
        where = "the last checkpoint" if saved else "the beginning: there is no checkpoint yet"
        print(f"The run was stopped between two saves; the same command goes on from {where}.", file=sys.stderr)
        if saved:
            return PREEMPTED
        raise KeyboardInterrupt
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
        "DISTILL_LAUNCHED": str(os.getpid()),
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
