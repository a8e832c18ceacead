"""Runs the seeds that are missing, each as `distill run` in a process of its own, and keeps what they found."""

import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence import outcomes
from benchmarks.evidence.plan import Plan, Setup
from distill_system.files import write_json
from distill_system.packages import cache_folder, locked

ROOT = Path(__file__).resolve().parents[2]
TAIL = 12  # lines of a failed run that are shown


@dataclass(frozen=True)
class Job:
    """One seed of one set-up."""

    plan: Plan
    setup: Setup
    seed: int
    digest: str
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Other settings are another run: nothing of an earlier set-up is taken for this one's."""
        return f"{self.plan.name}-{self.setup.name}-seed{self.seed}-{self.digest[:8]}"


@dataclass(frozen=True)
class Machine:
    """How a run is placed: ranks and threads change its seconds, not its result beyond rounding."""

    ranks: int = 1
    threads: int = 1
    keep_runs: bool = False


Runner = Callable[[Job, Machine, Path], dict[str, Any]]


def settings_of(setup: Setup, seed: int) -> list[str]:
    return [f"experiment={setup.experiment}", *setup.overrides, f"seed={seed}"]


def resolved(setup: Setup, seed: int) -> dict[str, Any]:
    """The config of one seed, checked. Raises Refusal with every problem."""
    from distill_system.config.check import refuse_if_any
    from distill_system.scheduling.run import composed

    config, problems = composed([*settings_of(setup, seed), f"run.name={setup.name}", "tracking=none"], None)
    refuse_if_any(problems)
    return config


def runs_folder() -> Path:
    return cache_folder() / "evidence"


def command(job: Job, machine: Machine, folder: Path) -> list[str]:
    placed = [f"training.devices={machine.ranks}", f"training.threads={machine.threads}", "tracking=none"]
    words = [*settings_of(job.setup, job.seed), *placed, f"run.name={job.name}", f"run.dir={folder}"]
    return [sys.executable, "-m", "distill_system.cli", "run", *words]


class Stopped(Exception):
    """The command was told to end; runs that were under way saved and left."""


class Processes:
    """Starts runs, and can tell all of them to save and leave."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen] = []
        self.stopping = False
        self._lock = threading.Lock()

    def __call__(self, job: Job, machine: Machine, folder: Path) -> dict[str, Any]:
        """Runs one seed to its end, or on from where an earlier start left it; returns its arms."""
        words = command(job, machine, folder)
        with self._lock:
            if self.stopping:
                raise Stopped
            process = subprocess.Popen(
                words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
            self.started.append(process)
        output, _ = process.communicate()
        if self.stopping:
            raise Stopped
        if process.returncode != 0:
            shown = "\n    ".join(output.strip().splitlines()[-TAIL:])
            raise RuntimeError(f"{shlex.join(words[2:])}\n  ended with status {process.returncode}:\n    {shown}")
        arms = outcomes.extract(folder / job.name, job.setup)
        for arm, correction in job.setup.corrections.items():
            from benchmarks.evidence.correction import corrected_arm

            model = folder / job.name / Path(*correction["phase"].split(".")) / "model"
            same = {"parameters": arms[correction["phase"]]["parameters"]}
            arms[arm] = corrected_arm(model, job.config["data"], correction["label"]) | same
        return arms

    def stop(self) -> None:
        with self._lock:
            self.stopping = True
            for process in self.started:
                if process.poll() is None:
                    process.terminate()


def pending(plan: Plan, path: Path, changed: str, count: int | None) -> list[Job]:
    """The seeds that have no outcome of the present settings; settles what becomes of outcomes of other settings, and writes that down."""
    results, jobs = outcomes.read_results(path, plan), []
    for name, setup in plan.setups.items():
        configs = {seed: resolved(setup, seed) for seed in setup.seeds[:count]}
        digests = {seed: outcomes.digest_of(config) for seed, config in configs.items()}
        outcomes.settle_change(results, name, digests, next(iter(configs.values())), changed)
        missing = outcomes.missing_seeds(results["setups"][name], digests)
        jobs += [Job(plan, setup, seed, digests[seed], configs[seed]) for seed in missing]
    write_json(path, results)
    return jobs


def run_jobs(jobs: list[Job], machine: Machine, path: Path, *, at_once: int, runner: Runner | None = None) -> list[str]:
    """Runs the jobs, `at_once` at a time, and writes each outcome down as soon as it is there; returns what went wrong.

    A kill loses nothing: outcomes are in `path`, and a run that was under way goes on from its last checkpoint when it is started again.
    """
    processes = Processes()
    folder, code, problems = runs_folder(), code_version(), []
    run = runner or processes

    def work(job: Job) -> None:
        arms = run(job, machine, folder)
        entry = outcomes.outcome_of(arms, digest=job.digest, code=code, ranks=machine.ranks, threads=machine.threads)
        with locked(folder / f"{job.plan.name}.lock"):
            outcomes.record(path, job.plan, job.setup.name, job.seed, entry)
        if not machine.keep_runs:
            shutil.rmtree(folder / job.name, ignore_errors=True)

    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                job, error = futures[future], future.exception()
                if isinstance(error, Stopped):
                    continue
                if error is not None:
                    problems.append(f"{job.name}: {error}")
                print(f"{job.name}: {'failed' if error else 'done'}", flush=True)
        except BaseException:
            for future in futures:
                future.cancel()
            processes.stop()
            raise
    return problems


def code_version() -> str:
    """`git describe` of the checkout."""
    words = ["git", "describe", "--always", "--dirty", "--tags"]
    try:
        ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except OSError:
        return "unknown"
    return ended.stdout.strip() or "unknown"


def threads_each(at_once: int, ranks: int) -> int:
    return max(1, (os.cpu_count() or 1) // (at_once * ranks))
