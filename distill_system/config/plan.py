"""What a run will do with what lies in its folder: skip, continue or refuse; decided before any process starts."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

from distill_system.config.graph import references
from distill_system.config.instantiate import instantiate, training_of
from distill_system.config.recipes import data_node, recipes_of
from distill_system.errors import Problem
from distill_system.files import read_json
from distill_system.manifest import Manifest, determining, differences
from distill_system.models.pretrained import Pretrained

LOCK = ".lock"  # in a run folder: who works on it


def run_folder(config: dict[str, Any]) -> Path:
    return Path(config["run"]["dir"]).expanduser().resolve() / config["run"]["name"]


def settings_of(config: dict[str, Any], phase: str) -> dict[str, Any]:
    """What the result of a phase depends on, as it is compared and recorded."""
    node = data_node(config, phase)
    data = instantiate(node).fingerprint()
    settings = determining(config, phase, dataclasses.asdict(training_of(config, phase)), data)
    settings |= {"data": node}
    for place, recipe in recipes_of(config["phases"][phase]).items():
        settings |= {f"{place}_content": instantiate(recipe).fingerprint()}
    # A teacher from a folder of this machine is told by its content: other weights under the same path are another teacher.
    teachers = config["phases"][phase].get("teachers") or {}
    outside = {
        name: Pretrained(name=values["model"]).fingerprint() for name, values in teachers.items() if values.get("model")
    }
    return settings | ({"teacher_content": outside} if outside else {})


def compare(config: dict[str, Any], manifest: Manifest) -> list[Problem]:
    """Problems where the folder holds phases that were made, or begun, with other settings or other inputs."""
    problems = []
    for name, phase in config["phases"].items():
        record = manifest.phases.get(name)
        if record is None or "settings" not in record:
            continue
        changed = differences(record["settings"], settings_of(config, name))
        for key, other in references(phase).items():
            known, present = record["inputs"].get(key, {}).get("digest"), manifest.digest(other)
            if known and present and known != present:
                changed.append(f"{key} (the model of phase {other}): {known[:12]} -> {present[:12]}")
        if changed:
            state = "is finished" if manifest.finished(name) else "was begun"
            listed = "\n    ".join(changed[:12])
            message = f"{state} in {manifest.folder.name}, but with other settings:\n    {listed}\n  choose another run.name, or run.overwrite=true"
            problems.append(Problem(f"phases.{name}", message))
    return problems


def is_finished(config: dict[str, Any], manifest: Manifest) -> bool:
    return all(manifest.finished(name) for name in config["phases"])


def check_folder(config: dict[str, Any]) -> list[Problem]:
    """Whether the run folder can be made, and isn't a folder of something else."""
    folder, settings = run_folder(config), config["run"]
    above = folder
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        key = "run.name" if above == folder else "run.dir"
        return [Problem(key, f"is '{settings[key[4:]]}', but {above} is a file; choose another")]
    if not os.access(above, os.W_OK | os.X_OK):
        return [Problem("run.dir", f"is '{settings['dir']}', but {above} can't be written to; choose another")]
    if above == folder and not is_run(folder) and any(not path.name.startswith(".") for path in folder.iterdir()):
        text = (
            f"is '{settings['name']}', but {folder} holds something else than a run; choose another run.name or run.dir"
        )
        return [Problem("run.name", text)]
    return []


def is_run(folder: Path) -> bool:
    """Whether a run was begun in the folder: its lock or its manifest lies there."""
    if (folder / LOCK).is_file():
        return True
    try:
        return "phases" in read_json(folder / "manifest.json")
    except (OSError, ValueError, TypeError):
        return False


def start_afresh(folder: Path) -> None:
    """Removes an earlier run; never a folder that isn't one."""
    if (folder / "manifest.json").is_file() and is_run(folder):
        for path in folder.iterdir():
            if path.name == LOCK:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
