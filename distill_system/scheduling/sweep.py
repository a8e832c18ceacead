"""`distill run -m`: the members of a sweep one after another, finished phases shared between them, a table and a plot at the end."""

import re
import sys
from pathlib import Path
from typing import Any

from distill_system.config.check import refuse_if_any
from distill_system.config.compose import expand_sweep
from distill_system.config.graph import references
from distill_system.config.plan import is_run, run_folder, settings_of
from distill_system.errors import Problem, Refusal, refuse
from distill_system.files import digest_value
from distill_system.manifest import Manifest, adopt, differences
from distill_system.scheduling.failure import REFUSED, refusal_text
from distill_system.scheduling.run import composed, run_here


def run_sweep(overrides: list[str], *, config_dir: str | None, command: str) -> int:
    """Checks every member before the first starts; returns the first status that isn't 0, after all have had their turn.

    A member's folder is `<run.dir>/<run.name>/<its own values>`. A refused or failed member doesn't keep the others from running; a sweep that is
    stopped by a signal stops whole.
    """
    members = expand_sweep(overrides)
    varying = [i for i in range(len(overrides)) if len({member[i] for member in members}) > 1]
    configs, problems = [], []
    for member in members:
        config, found = composed(member, config_dir)
        own = [member[i] for i in varying]
        problems += [Problem(p.key, p.message) for p in found]
        if not found:
            sweep_name = config["run"]["name"]
            config["run"] |= {"dir": str(Path(config["run"]["dir"]) / sweep_name), "name": folder_name(own)}
        configs.append((own, config))
    refuse_if_any(list(dict.fromkeys(problems)))
    distinct_names(configs)
    if is_run(run_folder(configs[0][1]).parent):
        name = run_folder(configs[0][1]).parent.name
        raise refuse("run.name", f"is '{name}', a run of its own already; choose another run.name for the sweep")
    statuses: list[int] = []
    for own, config in configs:
        print(f"\n== {len(statuses) + 1} of {len(configs)}: {' '.join(own) or 'the only member'}", flush=True)
        others = [run_folder(other) for _, other in configs if other is not config]
        try:
            status = run_here(
                config, command, prepare=lambda manifest, config=config, others=others: share(config, manifest, others)
            )
        except Refusal as refusal:
            print(refusal_text(refusal), file=sys.stderr)
            status = REFUSED
        statuses.append(status)
        if status == 143:
            return status
    _report(run_folder(configs[0][1]).parent, configs, command)
    return next((status for status in statuses if status), 0)


def folder_name(values: list[str]) -> str:
    """`phases.student.losses.soft.temperature=4` -> `temperature=4`; several are joined by commas."""
    short = [
        f"{key.rpartition('.')[2].rpartition('@')[2]}={value}"
        for key, _, value in (text.partition("=") for text in values)
    ]
    return re.sub(r"[^A-Za-z0-9_.,=+-]", "_", ",".join(short)).lstrip("_.,=+-")[:140] or "member"


def distinct_names(configs: list[tuple[list[str], dict[str, Any]]]) -> None:
    """Members whose values look alike as folder names get a digest of the values behind them."""
    names = [config["run"]["name"] for _, config in configs]
    for own, config in configs:
        if names.count(config["run"]["name"]) > 1:
            config["run"]["name"] += f"-{digest_value(own)[:6]}"


def share(config: dict[str, Any], manifest: Manifest, others: list[Path]) -> None:
    """Takes over phases that another member has finished with the same settings and the same inputs."""
    for name, phase in config["phases"].items():
        if manifest.phases.get(name):
            continue
        inputs = {key: manifest.phases.get(other, {}).get("digest") for key, other in references(phase).items()}
        if None in inputs.values():
            return
        for folder in others:
            if not (folder / "manifest.json").is_file():
                continue
            other = Manifest.read(folder, folder.name)
            record = other.phases.get(name, {})
            same_inputs = {
                key: value.get("digest") for key, value in record.get("inputs", {}).items() if key in inputs
            } == inputs
            if other.finished(name) and same_inputs and not differences(record["settings"], settings_of(config, name)):
                adopt(manifest, other, name)
                print(f"phase {name} is taken over from {folder.name}: same settings, same inputs")
                break


def _report(folder: Path, configs: list[tuple[list[str], dict[str, Any]]], command: str) -> None:
    from distill_system.tracking.progress import print_rows
    from distill_system.tracking.sweep import sweep_rows, table_rows, write_sweep

    members = [{"overrides": own, "run_folder": run_folder(config)} for own, config in configs]
    path = write_sweep(folder, members, command)
    print_rows(table_rows(sweep_rows(members)), title=folder.name)
    print(f"report: {path}")
