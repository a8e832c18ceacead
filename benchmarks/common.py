"""What the benchmarks share: arguments, medians of interleaved repeats by CPU time, the table and the JSON of figures.

A figure is `{ours, peer, ratio, floor, unit}`: what this system takes, what the one it is compared with takes, ours / peer, the least that is possible
(None where nobody knows it), and the unit. Each benchmark's docstring says what its figures compare, and what they do not.
"""

import argparse
import gc
import os
import statistics
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill_system.files import write_json
from distill_system.tracking.progress import print_rows

KEYS = ("ours", "peer", "ratio", "floor", "unit")
Figures = dict[str, dict[str, Any]]


def arguments(doc: str | None, argv: list[str] | None = None, **options: dict[str, Any]) -> argparse.Namespace:
    """`--quick`, `--json FILE`, and a benchmark's own options (name: keywords of `add_argument`)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes: shows that it runs, its figures are noise"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    for name, keywords in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    return parser.parse_args(argv)


def run_parts(doc: str | None, parts: Mapping[str, Callable[[bool], Figures]], argv: list[str] | None = None) -> None:
    """A benchmark that measures in parts, of which `--only` chooses some: each is told whether to be quick, and gives its figures."""
    import torch  # only here: benchmarks first say how many threads there are

    only = {"nargs": "+", "choices": list(parts), "default": list(parts), "metavar": "PART", "help": ", ".join(parts)}
    chosen = arguments(doc, argv, only=only)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures: Figures = {}
    for name in chosen.only:
        figures |= parts[name](chosen.quick)
    print(machine())
    write_figures(chosen.json, figures)


def figure(ours: float, peer: float | None, floor: float | None, unit: str) -> dict[str, Any]:
    return {"ours": ours, "peer": peer, "ratio": ours / peer if peer else None, "floor": floor, "unit": unit}


def write_figures(path: Path | None, figures: Figures) -> None:
    """Prints the table; writes `{figure: {ours, peer, ratio, floor, unit}}` to `path` where one is given."""
    for name, entry in figures.items():
        assert tuple(entry) == KEYS, (name, entry)
    print_rows([{"figure": name} | {key: _shown(entry[key]) for key in KEYS} for name, entry in figures.items()])
    if path is not None:
        write_json(path, figures)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"


def interleaved(arms: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each arm measured in each round; an arm runs once a round, so that a busy minute of the machine falls on all of them.

    Args:
        arms: each runs its work once and returns its figure (CPU seconds of one thread: wall time means little on a shared machine).
        rounds: repeats; every second round goes through the arms backwards.
    """
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            gc.collect()
            found[name].append(arms[name]())
    return found


def median_difference(one: list[float], other: list[float]) -> float:
    """Median over rounds of one minus other."""
    return statistics.median(a - b for a, b in zip(one, other, strict=True))


def one_thread() -> None:
    """Before torch is imported: CPU time of a process counts its waiting threads as well."""
    os.environ["OMP_NUM_THREADS"] = "1"


def machine() -> str:
    """A line about the machine and how busy it is."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process's memory: `VmRSS` now, `VmHWM` at its highest since `reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
