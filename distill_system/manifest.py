"""`manifest.json`: the only record of what a run has finished, from what, and with which settings."""

import dataclasses
import datetime
import os
import shutil
from pathlib import Path
from typing import Any

from distill_system.files import TEMPORARY, digest_value, link_or_copy, read_json, write_json

VERSION = 1
# Settings that may differ between a phase and its resumption: they say where and how often, not what is computed.
PLACEMENT = [
    "strategy",
    "accelerator",
    "devices",
    "nodes",
    "threads",
    "accumulation",
    "eval_batch_size",
    "log_every",
    "flush_every",
    "checkpoint_every",
    "keep_last",
    "activation_checkpointing",
]


@dataclasses.dataclass
class Manifest:
    """The manifest of one run folder.

    Attributes:
        folder: of the run.
        phases: by name, as in `manifest.json`.
    """

    folder: Path
    run: str
    command: str = ""
    created: str = ""
    phases: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, run: str) -> "Manifest":
        """What stands in the folder, or a new one. Raises ValueError when the file is there but can't be understood."""
        path = folder / "manifest.json"
        if not path.is_file():
            return cls(folder, run, created=now())
        try:
            content = read_json(path)
            if content["version"] != VERSION:
                raise ValueError(f"version {content['version']}, this program reads {VERSION}")
            return cls(folder, content["run"], content["command"], content["created"], content["phases"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} can't be read ({error}); run.overwrite=true starts afresh") from error

    def write(self) -> None:
        content = {
            "version": VERSION,
            "run": self.run,
            "command": self.command,
            "created": self.created,
            "phases": self.phases,
        }
        write_json(self.folder / "manifest.json", content)

    def update(self, phase: str, **values: Any) -> None:
        self.phases[phase] = self.phases.get(phase, {}) | values
        self.write()

    def finished(self, phase: str) -> bool:
        return (
            self.phases.get(phase, {}).get("state") in ("finished", "gated")
            and (self.folder / phase / "model").is_dir()
        )

    def model(self, phase: str) -> Path:
        return self.folder / phase / "model"

    def models(self) -> dict[str, Path]:
        """Folders of the models of all finished phases, and of their members (`phase.member`)."""
        found = {}
        for name in filter(self.finished, self.phases):
            found[name] = self.model(name)
            for member in self.phases[name].get("members", {}):
                folder = self.folder / name / member / "model"
                found |= {f"{name}.{member}": folder} if folder.is_dir() else {}
        return found

    def digest(self, model: str) -> str | None:
        """Of the model of a phase, or of a member (`phase.member`)."""
        if model in self.phases:
            return self.phases[model].get("digest")
        phase, _, member = model.rpartition(".")
        return self.phases.get(phase, {}).get("members", {}).get(member, {}).get("digest")


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def determining(config: dict[str, Any], phase: str, training: dict[str, Any], data: Any) -> dict[str, Any]:
    """The settings that a phase's result depends on: what a finished phase is compared by.

    Args:
        config: of the whole run.
        phase: name.
        training: effective settings of the phase.
        data: fingerprint of the data's content.
    """
    judged = config["phases"][phase].get("kind") == "prune"  # a round that misses the gate is undone
    apart = ("training",) if judged else ("training", "gate")
    own = {key: value for key, value in config["phases"][phase].items() if key not in apart}
    own = own | {"teachers": _without_placement(own["teachers"])} if own.get("teachers") else own
    if own.get("cohort"):
        own = own | {
            "cohort": {
                key: value for key, value in own["cohort"].items() if key not in ("placement", "batched", "compile")
            }
        }
    computed = {key: value for key, value in training.items() if key not in PLACEMENT}
    return {"seed": config["seed"], "data": config["data"], "data_content": data, "training": computed, **own}


def _without_placement(teachers: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in teacher.items() if key != "placement"} for name, teacher in teachers.items()
    }


def identity(settings: dict[str, Any], inputs: dict[str, Any]) -> str:
    return digest_value([settings, inputs])


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """`key: old -> new` for every leaf in which two settings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        found = [differences(old.get(name), new.get(name), f"{key}.{name}" if key else name) for name in names]
        return [line for part in found for line in part]
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]


def adopt(target: Manifest, source: Manifest, phase: str) -> None:
    """Takes over a finished phase of another run: its files are linked where the disk allows it, else copied."""
    destination, temporary = target.folder / phase, target.folder / f"{TEMPORARY}{phase}"
    shutil.rmtree(temporary, ignore_errors=True)
    target.folder.mkdir(parents=True, exist_ok=True)
    skip = shutil.ignore_patterns("checkpoints")
    shutil.copytree(source.folder / phase, temporary, copy_function=link_or_copy, ignore=skip)
    shutil.rmtree(destination, ignore_errors=True)
    os.replace(temporary, destination)
    target.update(phase, **source.phases[phase], adopted_from=source.run)
