"""Whether a method helps, shown with seeds: runs what is missing of an experiment, and rewrites its part of docs/evidence.md.

    python -m benchmarks.evidence NAME...        run what is missing, then rewrite; NAME may be `all`
    python -m benchmarks.evidence --list         what there is and how far it is
    python -m benchmarks.evidence NAME --seeds 3     only the first three seeds of each set-up (its verdict stays UNFINISHED)
    python -m benchmarks.evidence NAME --render      only rewrite table and picture from docs/evidence/NAME.json

`conf/experiment/evidence/NAME.yaml` is an ordinary experiment, whose phases are the arms of one seed; `benchmarks/evidence/NAME.yaml` says what is compared. Each seed
is one `distill run`. A seed whose outcome stands in docs/evidence/NAME.json under the same settings isn't run again; a run that was stopped goes on where it was.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.evidence import plan as plans
from benchmarks.evidence.outcomes import read_results
from benchmarks.evidence.picture import draw
from benchmarks.evidence.render import curves_of, rows_of, write_page
from benchmarks.evidence.running import ROOT, Machine, pending, run_jobs, threads_each
from distill_system.errors import Refusal
from distill_system.files import write_atomic
from distill_system.packages import cache_folder, locked

PAGE = ROOT / "docs" / "evidence.md"
FOLDER = ROOT / "docs" / "evidence"


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    names = plans.names() if options.names == ["all"] else options.names
    before = signal.signal(signal.SIGTERM, _leave)
    status = 0
    try:
        if options.list or not names:
            show_list()
        for name in () if options.list else names:
            try:
                problems = one(plans.read_plan(name), options)
            except Refusal as refusal:  # of this one: the others are run
                print(f"{name} is refused:\n{refusal}", file=sys.stderr)
                status = 2
                continue
            for problem in problems:
                print(problem, file=sys.stderr)
            status = status or (1 if problems else 0)
    except KeyboardInterrupt:
        print("stopped; what was under way goes on from its last checkpoint at the next start", file=sys.stderr)
        return 143
    finally:
        signal.signal(signal.SIGTERM, before)
    return status


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of conf/experiment/evidence, or all")
    parser.add_argument("--list", action="store_true", help="what there is and how far it is")
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument("--seeds", type=int, metavar="N", help="only the first N seeds of each set-up")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="seeds at once")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="ranks of a run")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of a rank; default: cores / (jobs x devices)")
    parser.add_argument("--keep-runs", action="store_true", help="leave the run folders in the cache")
    parser.add_argument(
        "--changed",
        choices=("refuse", "archive", "keep", "discard"),
        default="refuse",
        help="what becomes of results of other settings: a row of their own, the results of the present ones, or nothing",
    )
    return parser.parse_args(argv)


def one(plan: plans.Plan, options: argparse.Namespace) -> list[str]:
    """Runs what is missing of one NAME and rewrites its part, also after a failure: what is there is shown."""
    path = FOLDER / f"{plan.name}.json"
    problems = []
    if not options.render:
        jobs = pending(plan, path, options.changed, options.seeds)
        threads = options.threads or threads_each(options.jobs, options.devices)
        machine = Machine(options.devices, threads, options.keep_runs)
        print(f"{plan.name}: {len(jobs)} seed(s) to run", flush=True)
        try:
            problems = run_jobs(jobs, machine, path, at_once=options.jobs)
        except KeyboardInterrupt:
            render(plan, path)
            raise
    render(plan, path)
    return problems


def render(plan: plans.Plan, path: Path) -> None:
    results = read_results(path, plan)
    rows = rows_of(results)
    if any(row.found for row in rows):
        write_atomic(FOLDER / f"{plan.name}.png", draw(rows, curves_of(results)))
    with locked(cache_folder() / "evidence" / "page.lock"):  # several NAMEs may be run beside each other
        write_page(PAGE, plan.name, results, all_results())
    for row in rows:
        words = f"{row.found.difference:+.4f} [{row.found.low:+.4f}, {row.found.high:+.4f}]" if row.found else "-"
        print(f"{plan.name}: {row.setup}: {row.name}: {words} {row.verdict}")


def all_results() -> list[dict[str, Any]]:
    return [read_results(FOLDER / f"{name}.json", plans.read_plan(name)) for name in plans.names()]


def show_list() -> None:
    for results in all_results():
        done = ", ".join(
            f"{name} {len(entry['outcomes'])}/{len(entry['about']['seeds'])}"
            for name, entry in results["setups"].items()
        )
        verdicts = ", ".join(f"{row.name}: {row.verdict}" for row in rows_of(results) if row.found)
        print(f"{results['name']:16} seeds {done}{'; ' + verdicts if verdicts else ''}")


def _leave(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
