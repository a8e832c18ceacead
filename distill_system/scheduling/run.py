"""`distill run`: from a command line to a run folder with a resolved config in it, and to the ranks that work on it."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_system.config.check import check, refuse_if_any
from distill_system.config.compose import compose, import_beside
from distill_system.config.plan import check_folder, compare, is_finished, run_folder, start_afresh
from distill_system.errors import Problem, Refusal, refuse
from distill_system.files import write_atomic
from distill_system.manifest import Manifest
from distill_system.scheduling.exporting import export_last
from distill_system.scheduling.local import given_ranks, launch
from distill_system.scheduling.lock import locked
from distill_system.settings import Run, Training
from distill_system.verdict import first_failed_gate, judge_anew

SETTLE_S = 1.0  # in which rank 0 has removed what an earlier start left


def composed(overrides: Sequence[str], config_dir: str | None) -> tuple[dict[str, Any], list[Problem]]:
    """The config and all its problems; what was left out of it is told on stderr."""
    import_beside(config_dir)
    composition = compose(overrides, config_dir)
    config, settings = composition.config, composition.config.get("run")
    if isinstance(settings, dict):
        name = settings.get("name")
        default = composition.experiment and composition.experiment.replace("/", "-")  # evidence/hints: one folder
        settings["name"] = default if name is None else str(name) if type(name) is int else name
    if os.environ.get("RANK", "0") == "0":
        for note in composition.notes:
            print(note, file=sys.stderr)
    found = check(config)
    if any(problem.key == "experiment" for problem in composition.problems):  # nothing else can be judged without it
        found = [p for p in found if p.key.partition(".")[0] not in ("phases", "data") and p.key != "run.name"]
    return config, composition.problems + [p for p in found if p.key not in {q.key for q in composition.problems}]


def run_or_sweep(overrides: list[str], *, config_dir: str | None, sweep: bool, command: str) -> int:
    ranks = given_ranks()
    if sweep and ranks is not None:
        raise refuse("-m", "starts its members itself, one after another; run it outside of torchrun and srun")
    if sweep:
        from distill_system.scheduling.sweep import run_sweep

        return run_sweep(overrides, config_dir=config_dir, command=command)
    if ranks is not None:
        return run_as_rank(overrides, config_dir, ranks, command)
    config, problems = composed(overrides, config_dir)
    refuse_if_any(problems)
    return run_here(config, command)


def run_here(config: dict[str, Any], command: str, prepare: Any = None) -> int:
    """Runs a checked config in this machine's processes; finished phases are skipped, a finished run only shows its table."""
    training, settings = Training(**config["training"]), Run(**config["run"])
    folder = run_folder(config)
    refuse_if_any(check_folder(config) + check_nodes(config))
    with locked(folder):
        manifest = prepare_folder(folder, config, command)
        if prepare is not None:
            prepare(manifest)
        if is_finished(config, manifest) or first_failed_gate(config, manifest):
            return show_finished(folder, config, manifest)
        status = launch(
            folder, ranks=training.devices, threads=training.threads, shutdown_timeout_s=settings.shutdown_timeout_s
        )
        if status == 0:
            export_last(folder, config)
        return status


def check_nodes(config: dict[str, Any]) -> list[Problem]:
    """Several nodes can't be started from here; a run of several nodes that is finished can still be shown."""
    nodes = config["training"]["nodes"]
    if nodes == 1 or is_finished(config, read_manifest(config)):
        return []
    text = f"is {nodes}: several nodes are started by srun or torchrun, not from here; set training.nodes=1"
    return [Problem("training.nodes", text)]


def read_manifest(config: dict[str, Any]) -> Manifest:
    try:
        return Manifest.read(run_folder(config), config["run"]["name"])
    except ValueError as error:
        raise Refusal([Problem("run.name", str(error))]) from error


def prepare_folder(folder: Path, config: dict[str, Any], command: str) -> Manifest:
    """Refuses what doesn't belong to this config, then writes the resolved config and the manifest."""
    import yaml

    if config["run"]["overwrite"]:
        start_afresh(folder)
    manifest = read_manifest(config)
    refuse_if_any(compare(config, manifest))
    stored = config | {"run": config["run"] | {"overwrite": False}}
    write_atomic(folder / "config.yaml", yaml.safe_dump(stored, sort_keys=False))
    manifest.command = manifest.command or command
    judged = judge_anew(config, manifest)
    manifest.write()
    if judged:
        from distill_system.tracking.report import write_report

        write_report(folder)
    return manifest


def show_finished(folder: Path, config: dict[str, Any], manifest: Manifest) -> int:
    """A run with nothing left to do: its table and its report, no process started."""
    from distill_system.tracking.progress import summary_table
    from distill_system.tracking.report import write_report

    report = folder / "report" / "index.html"
    failed = first_failed_gate(config, manifest)
    summary_table(
        {"run": manifest.run, "phases": manifest.phases}, report if report.is_file() else write_report(folder)
    )
    if failed:
        print(failed)
        return 3
    print("Nothing to do: every phase of this run is finished.")
    export_last(folder, config)
    return 0


def run_as_rank(overrides: list[str], config_dir: str | None, ranks: int, command: str) -> int:
    """Inside torchrun or srun: rank 0 composes, checks and writes; the others wait for what it wrote."""
    from distill_system.scheduling.rank import main as rank_main

    adopt_slurm_environment()
    rank = int(os.environ["RANK"])
    config, problems = composed(overrides, config_dir)
    if not problems:
        wanted = config["training"]["devices"] * config["training"]["nodes"]
        if wanted != ranks:
            message = f"x training.nodes is {wanted}, but {ranks} ranks were started; set training.devices={ranks} (or start {wanted})"
            problems = [Problem("training.devices", message)]
    if problems:  # every rank finds the same ones; one tells
        if rank == 0:
            raise Refusal(problems)
        return 2
    folder = run_folder(config)
    problems = check_folder(config)
    if problems and rank == 0:
        raise Refusal(problems)
    if rank != 0:
        return _wait_and_run(folder, rank_main)
    with locked(folder):
        ticket = _ticket(folder)
        ticket.unlink(missing_ok=True)  # of an earlier start under the same names
        try:
            manifest = prepare_folder(folder, config, command)
        except BaseException:
            write_atomic(ticket, "refused")
            raise
        if is_finished(config, manifest):
            write_atomic(ticket, "finished")
            return show_finished(folder, config, manifest)
        write_atomic(ticket, "start")
        status = rank_main(folder)
        if status == 0:
            export_last(folder, config)
        return status


def _ticket(folder: Path) -> Path:
    """A file by which rank 0 tells the other ranks of this very start how it went; its name belongs to the start, not to the run."""
    start = "-".join(
        os.environ.get(name, "")
        for name in (
            "TORCHELASTIC_RUN_ID",
            "SLURM_JOB_ID",
            "SLURM_STEP_ID",
            "MASTER_PORT",
            "TORCHELASTIC_RESTART_COUNT",
        )
    )
    return folder / f".start-{start.strip('-').replace('/', '_')}"


def _wait_and_run(folder: Path, rank_main: Any) -> int:
    ticket = _ticket(folder)
    began = time.time()
    time.sleep(SETTLE_S)
    while not (ticket.is_file() and ticket.stat().st_mtime > began - 60):
        if time.time() - began > 300:
            print(f"rank 0 prepared nothing in {folder} for 300 s", file=sys.stderr)
            return 1
        time.sleep(0.1)
    answer = ticket.read_text()
    return rank_main(folder) if answer == "start" else (0 if answer == "finished" else 2)


def adopt_slurm_environment() -> None:
    """srun names ranks in its own way; torch wants RANK, WORLD_SIZE, LOCAL_RANK and a meeting point."""
    if "RANK" in os.environ or "SLURM_PROCID" not in os.environ:
        return
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    os.environ.update({torch_name: os.environ[slurm_name] for torch_name, slurm_name in names.items()})
    nodes = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
    os.environ.setdefault("MASTER_ADDR", first_host(nodes))
    job = int(os.environ.get("SLURM_JOB_ID", 0))
    os.environ.setdefault("MASTER_PORT", str(20000 + job % 20000))


def first_host(nodes: str) -> str:
    """The first name of a Slurm node list: `gpu[003-005,9]` -> `gpu003`."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return nodes.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]
