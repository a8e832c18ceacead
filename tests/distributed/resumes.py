"""Kinds of phases, each run whole under several strategies, stopped, resumed, and gone on with elsewhere: what ranks of several test files do."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill_system import distributed
from tests.distributed.methods import quick_latency
from tests.distributed.strategies import Work


def straight_and_stopped(
    make: Callable[[Path], Any], folder: Path, chosen: list[str], every: bool, stop: int
) -> dict[str, Any]:
    """Two ranks: each kind straight (under `every` strategy, or ddp and one other), and stopped and resumed.

    Args:
        make: the `Work` of a folder; its `run(kind, folder, ...)` runs a phase on from where it is.
        folder: of all runs.
        chosen: kinds.
        every: all strategies.
        stop: step after which a run is told to leave.
    """
    quick_latency()
    work: Work | Any = make(folder)
    if distributed.is_main():
        work.prepare()
    distributed.barrier()
    found: dict[str, Any] = {"straight": {}, "resumed": {}}
    for number, kind in enumerate(chosen):
        for strategy in strategies(number, every):
            found["straight"][f"{kind}-{strategy}"] = work.run(kind, f"{kind}-{strategy}", strategy=strategy)
    for number, kind in enumerate(chosen):
        for strategy in strategies(number, every) if every else strategies(number, every)[-1:]:
            name = f"stopped-{kind}-{strategy}"
            stopped = work.run(kind, name, stop_at=stop, strategy=strategy)
            if distributed.is_main() and strategy == strategies(number, every)[-1]:
                shutil.copytree(folder / name, folder / f"stopped-{kind}-elsewhere")
            distributed.barrier()
            found["resumed"][f"{kind}-{strategy}"] = [stopped, work.run(kind, name, strategy=strategy)]
    return found


def strategies(number: int, every: bool) -> tuple[str, ...]:
    """Those that a kind, by its number, is run under."""
    return ("ddp", "zero1", "zero2", "zero3") if every else ("ddp", ("zero3", "zero2")[number % 2])


def straight_and_on_from_elsewhere(make: Callable[[Path], Any], folder: Path, chosen: list[str]) -> dict[str, Any]:
    """Another number of ranks: each kind straight, and on from what two ranks left under another strategy."""
    quick_latency()
    work = make(folder)
    world = distributed.world()
    strategy = {1: "zero1", 4: "zero3"}[world]
    found: dict[str, Any] = {"straight": {}, "resumed": {}}
    for kind in chosen:
        found["straight"][kind] = work.run(kind, f"{kind}-{strategy}-{world}", strategy=strategy)
        name = f"stopped-{kind}-elsewhere"
        if distributed.is_main():
            shutil.copytree(folder / name, folder / f"{name}-{world}")
        distributed.barrier()
        found["resumed"][kind] = work.run(kind, f"{name}-{world}", strategy=strategy)
    return found
