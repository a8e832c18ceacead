"""What a phase hands on: a folder that plain `from_pretrained` loads, with its passport (`compression.json`) and its model card.

The digest covers weights, config and tokenizer, not the passport and the card: the same model made twice has the same digest.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from distill_system.files import TEMPORARY, digest_file, write_atomic, write_json

PASSPORT = "compression.json"
CARD = "README.md"
VERSION = 1
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # a bare name may be a package's
AUTO_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "multi_label": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "causal_lm": "AutoModelForCausalLM",
}
IMAGE_AUTO_CLASS = "AutoModelForImageClassification"  # in place of the first, where the data is pictures
PIPELINE_TAGS = {
    "classification": "text-classification",
    "multi_label": "text-classification",
    "regression": "text-classification",
    "token_classification": "token-classification",
    "causal_lm": "text-generation",
}


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A model folder and what its passport says of it; without a passport only the folder and its digest are known."""

    folder: Path
    digest: str
    task: str | None = None
    lineage: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    passport: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Artifact":
        """Reads the passport of `folder`; a folder without one (a model from elsewhere) is digested here.

        Raises:
            ValueError: the passport is there but is no JSON object.
        """
        path = folder / PASSPORT
        if not path.is_file():
            return cls(folder, digest_artifact(folder))
        try:
            passport = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); run the phase that made it again") from error
        if not isinstance(passport, dict) or "digest" not in passport:
            raise ValueError(f"{path} is no passport of a model: it has no digest; run the phase that made it again")
        known = {
            name: passport[name] for name in ("digest", "task", "lineage", "settings", "metrics") if name in passport
        }
        return cls(folder, passport=passport, **known)

    def is_intact(self) -> bool:
        """Whether the files still are what the passport was written for."""
        return self.folder.is_dir() and digest_artifact(self.folder) == self.digest


def artifact_files(folder: Path) -> list[Path]:
    """Weights, config and tokenizer files of a model folder, sorted by name."""
    found = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    relative = [(path, path.relative_to(folder)) for path in found]
    hidden = {path for path, below in relative if any(part.startswith((".", TEMPORARY)) for part in below.parts)}
    return sorted(path for path, below in relative if path not in hidden and str(below) not in (PASSPORT, CARD))


def digest_artifact(folder: Path) -> str:
    """sha256 over the names and contents of weights, config and tokenizer files, whatever order the disk lists them in."""
    files = artifact_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} holds no model")
    lines = [f"{digest_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_passport(
    folder: Path,
    *,
    task: str,
    lineage: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    base_models: Iterable[str] = (),
    license_note: str | None = None,
    title: str | None = None,
    tags: Iterable[str] = (),
    command: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Artifact:
    """Writes `compression.json` and the model card `README.md` into a finished model folder and returns the artifact.

    Args:
        folder: holds the model already: the digest is taken here.
        task: of the data.
        lineage: one entry a phase, oldest first: `phase`, `kind`, and whatever else tells it (`teachers`, `digest`, ...).
        settings: the phase's resolved settings.
        metrics: the figures on the test split.
        base_models: hub names or packages whose weights went in.
        license_note: what is known of the base model's licence; None says that it has to be looked up.
        title: heading of the card; the folder's name by default.
        tags: added to the card's own.
        command: what produced the model.
        extra: further keys of the passport. The card tells of these, where they are there: `format`; `size` and `latency` as in evaluation.json; `bits`
            (`{"mean", "weights": {bits: number}}`); `calibration` (`{"bins"}`); `teacher` (agreement by name); `exported_from` (a digest).
    """
    passport = {
        "version": VERSION,
        "format": "dense",
        "task": task,
        "digest": digest_artifact(folder),
        "size_bytes": sum(path.stat().st_size for path in artifact_files(folder)),
        "base_models": list(base_models),
        "license_note": license_note,
        "command": command,
        "lineage": [dict(step) for step in lineage],
        "settings": dict(settings),
        "metrics": dict(metrics),
    } | dict(extra or {})
    if takes_pictures(folder):
        passport["inputs"] = "images"
    if code := own_code(folder):
        passport["code"] = code
    write_json(folder / PASSPORT, passport)
    write_atomic(folder / CARD, model_card(passport, title or folder.name, list(tags)))
    return Artifact.read(folder)


def passport_of_copy(
    artifact: Artifact,
    folder: Path,
    form: str,
    *,
    title: str | None = None,
    command: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Artifact:
    """Passport and card of the same model in another form: what the source's passport says, of the files in `folder`.

    Args:
        artifact: the source, whose passport names a task.
        folder: holds the copy already.
        form: of the copy (`packed`, `sparse`, `dense`, `onnx`, `torchao`).
        title: heading of the card.
        command: what made the copy; None: what made the source.
        extra: what was measured of the copy (`size`, `latency`, ...), over what the source's passport says.
    """
    old = artifact.passport
    own = ("version", "digest", "size_bytes", "command", "format", "code", "inputs")
    rest = {name: value for name, value in old.items() if name not in own} | dict(extra or {})
    return write_passport(
        folder,
        task=old["task"],
        lineage=old.get("lineage", []),
        settings=old.get("settings", {}),
        metrics=old.get("metrics", {}),
        base_models=old.get("base_models", []),
        license_note=old.get("license_note"),
        title=title,
        command=command or old.get("command"),
        extra=rest | {"format": form, "exported_from": artifact.digest},
    )


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}  # type: ignore[no-any-return]


def takes_pictures(folder: Path) -> bool:
    """Whether the model in a folder classifies pictures, as its config.json says."""
    return any("ForImageClassification" in name for name in _config_of(folder).get("architectures") or [])


def own_code(folder: Path) -> list[str]:
    """Files of code that `from_pretrained` needs beside the weights, and asks for consent before it runs them."""
    modules = {str(name).partition(".")[0] for name in (_config_of(folder).get("auto_map") or {}).values()}
    return sorted(f"{module}.py" for module in modules if (folder / f"{module}.py").is_file())


def model_card(passport: Mapping[str, Any], title: str, tags: list[str]) -> str:
    """The Hugging Face model card of a passport, as Markdown with its front matter."""
    task = passport["task"]
    pictures = passport.get("inputs") == "images"
    hub_names = [name for name in passport["base_models"] if HUB_NAME.fullmatch(name)]
    front = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'image-classification' if pictures else PIPELINE_TAGS.get(task, task)}",
    ]
    if hub_names:
        front += ["base_model:", *(f"- {json.dumps(name)}" for name in hub_names)]
    front += [
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in dict.fromkeys(["distillation", "distill_system", *tags])),
        "---",
    ]
    lines = [*front, "", f"# {_cell(title)}", ""]
    bases = ", ".join(f"`{name}`" for name in passport["base_models"])
    lines += [f"Made by distill_system{f' from {bases}' if bases else ''}; task: {task.replace('_', ' ')}.", ""]
    lines += [
        "## How to load it",
        "",
        "```python",
        *_loading_code(task, pictures, passport.get("format", "dense"), bool(passport.get("code"))),
        "```",
        "",
    ]
    lines += [
        "## Lineage",
        "",
        *_table(["phase", "kind", "details"], [_lineage_row(step) for step in passport["lineage"]]),
        "",
        f"Digest of this model: `{passport['digest']}`"
        + (f", exported from `{passport['exported_from']}`" if passport.get("exported_from") else "")
        + ".",
        "",
    ]
    metrics = [[name, _figure(value)] for name, value in passport["metrics"].items() if isinstance(value, int | float)]
    split = passport["metrics"].get("split", "test")
    lines += [f"## Figures on the {split} split", "", *_table(["metric", "value"], metrics), ""]
    for heading, head, rows in (
        ("Size and speed", ["", ""], size_rows(passport)),
        ("Calibration", ["confidence", "right", "rows"], calibration_rows(passport)),
        ("Agreement with its teachers", ["teacher", "agreement"], agreement_rows(passport)),
    ):
        lines += [f"## {heading}", "", *_table(head, rows), ""] if rows else []
    if passport.get("command"):
        lines += ["## The command", "", "```", passport["command"], "```", ""]
    unknown = "Not known here: look it up at the model that the weights came from before you pass this one on."
    lines += [
        "## Licence",
        "",
        passport.get("license_note") or (unknown if passport["base_models"] else "Trained from scratch."),
        "",
    ]
    lines += [f"Settings, lineage and digests in full: `{PASSPORT}`.", ""]
    return "\n".join(lines)


def size_rows(passport: Mapping[str, Any]) -> list[list[str]]:
    """What the passport knows of bytes, parameters, bits and milliseconds."""
    size, bits, latency = (_mapping(passport.get(name)) for name in ("size", "bits", "latency"))
    rows = [["bytes of the folder", f"{passport['size_bytes']:,}"]] if _is_number(passport.get("size_bytes")) else []
    names = {"size_bytes": "bytes of the weights", "parameters": "parameters", "nonzeros": "of these not zero"}
    rows += [[words, f"{size[name]:,}"] for name, words in names.items() if _is_number(size.get(name))]
    if _is_number(bits.get("mean")):
        rows.append(["bits of a weight, mean", _figure(float(bits["mean"]))])
    for own, count in _mapping(bits.get("weights")).items():
        rows += [[f"weights of {own} bit{'' if own == '1' else 's'}", f"{count:,}"]] if _is_number(count) else []
    for name, found in latency.items():
        median = _mapping(found).get("p50_ms")
        if _is_number(median):
            rows.append([f"latency, {str(name).replace('_', ' of ')} (median)", f"{_figure(float(median))} ms"])
    return rows


def calibration_rows(passport: Mapping[str, Any]) -> list[list[str]]:
    """How often it is right when it is so sure: a row for each bin of confidences with rows in it."""
    bins = [one for one in _mapping(passport.get("calibration")).get("bins") or [] if _mapping(one).get("count")]
    return [[_figure(one.get("confidence")), _figure(one.get("accuracy")), str(one["count"])] for one in bins]


def agreement_rows(passport: Mapping[str, Any]) -> list[list[str]]:
    """A row for each teacher: share of the same answers, divergence, correlation, as far as they are known."""
    rows = []
    for name, found in _mapping(passport.get("teacher")).items():
        told = [f"{key} {_figure(value)}" for key, value in _mapping(found).items() if _is_number(value)]
        rows += [[str(name), ", ".join(told)]] if told else []
    return rows


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _loading_code(task: str, pictures: bool, form: str, code: bool = False) -> list[str]:
    if form in ("sparse", "packed"):
        return ["import distill_system", "", 'model = distill_system.load("path/to/this/folder")']
    if form == "onnx":
        return ["import onnxruntime", "", 'session = onnxruntime.InferenceSession("path/to/this/folder/model.onnx")']
    if form == "torchao":
        module = "distill_system.export.torchao_export"
        return [f"from {module} import read_torchao", "", 'model = read_torchao("path/to/this/folder")']
    # Layers have other sizes than the config can say, or the architecture is ours; the lines of code for that lie in the folder.
    consent = ", trust_remote_code=True" if form == "cut" or code else ""
    auto = IMAGE_AUTO_CLASS if pictures else AUTO_CLASSES.get(task, "AutoModel")
    name, reader = ("processor", "AutoImageProcessor") if pictures else ("tokenizer", "AutoTokenizer")
    own = ", trust_remote_code=True" if code and form != "cut" else ""  # it asks the config what it belongs to
    return [
        f"from transformers import {auto}, {reader}",
        "",
        f'model = {auto}.from_pretrained("path/to/this/folder"{consent})',
        f'{name} = {reader}.from_pretrained("path/to/this/folder"{own})',
    ]


def _lineage_row(step: Mapping[str, Any]) -> list[str]:
    details = [
        f"{name}: {_figure(value)}"
        for name, value in step.items()
        if name not in ("phase", "kind") and value not in (None, {}, [])
    ]
    return [str(step.get("phase", "")), str(step.get("kind", "")), "; ".join(details)]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return ["None recorded."]
    return [f"| {' | '.join(map(_cell, row))} |" for row in [head, ["---"] * len(head), *rows]]


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\r", " ").replace("\n", " ")
