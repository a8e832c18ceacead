"""A small table, and phases run on it in one process as the pipeline would run them."""

import csv
from pathlib import Path
from typing import Any

import torch

from distill_system.data.table import Table
from distill_system.export.dense import save_model
from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.manifest import Manifest
from distill_system.models.from_config import FromConfig
from distill_system.phases.context import Context, Result
from distill_system.phases.distill import Distill
from distill_system.phases.finetune import Finetune
from distill_system.settings import Training

COLOURS = ["blue", "green", "red"]  # the order of their numbers
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
SMALL |= {"max_position_embeddings": 48}


def write_table(folder: Path, rows: int = 48) -> Path:
    """Each text names its colour; every seventh row has no label."""
    path = folder / "rows.csv"
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "split"])
        for i in range(rows):
            colour = COLOURS[i % 3]
            split = "test" if i % 4 == 1 else "validation" if i % 4 == 2 else "train"
            table.writerow([f"row {i} is {'very ' * (i % 3)}{colour}", colour if i % 7 else "", split])
    return path


def source(folder: Path, **settings: Any) -> Table:
    path = folder / "rows.csv"
    return Table(
        path=str(path if path.is_file() else write_table(folder)), split_column="split", max_length=40, **settings
    )


def recipe(**settings: Any) -> FromConfig:
    return FromConfig("bert", tokenizer="bytes", dropout=0.0, **(SMALL | settings))


def context(folder: Path, name: str, artifacts: dict[str, Path] | None = None, **more: Any) -> Context:
    """What the pipeline would hand over, with the phase's record in the manifest."""
    inputs = more.pop("inputs", {})
    lines: list[dict[str, Any]] = []
    kind = more.pop("kind", "finetune")
    training = Training(
        **{"strategy": "single", "batch_size": 8, "max_epochs": None, "max_steps": 4, "lr": 5e-3, "log_every": 1}
        | more.pop("training", {})
    )
    manifest = Manifest.read(folder, "run")
    manifest.update(name, kind=kind, inputs=inputs, settings={"model": more.pop("settings", {"architecture": "bert"})})
    made = Context(
        run_folder=folder,
        run_name="run",
        name=name,
        identity=name,
        source=more.pop("source", None) or source(folder),
        training=training,
        seed=3,
        device=torch.device("cpu"),
        artifacts=artifacts or {},
        write=lines.extend,
        rewind=lambda step, title=name: rewind(lines, title, step),
        announce=lambda steps, title=name: None,
        stop_asked=more.pop("stop_asked", lambda: False),
        inputs=inputs,
    )
    assert not more, more
    made.lines = lines  # type: ignore[attr-defined]
    return made


def rewind(lines: list[dict[str, Any]], title: str, step: int) -> None:
    """As the journal does it."""
    lines[:] = [line for line in lines if line["phase"] != title or line["step"] <= step]


def finetune(folder: Path, name: str = "teacher", **more: Any) -> tuple[Context, Result]:
    made = context(folder, name, **more)
    return made, Finetune("finetune", recipe(), {"hard": HardLabel()}).run(made)


def distill(folder: Path, teacher: dict[str, Any], name: str = "student", **more: Any) -> tuple[Context, Result]:
    made = context(folder, name, kind="distill", **more)
    losses = {"soft": SoftTarget(2.0), "hard": HardLabel(weight=0.5)}
    return made, Distill("distill", {"main": teacher}, losses, model=recipe()).run(made)


def knowing_teacher(path: Path, labels: list[str] | None = None, seed: int = 5, gain: float = 20.0) -> Path:
    """A folder with a model of other sizes, sure of itself, whose labels have the order given (its opinions don't change with it)."""
    model, tokenizer = recipe(hidden_size=24, num_hidden_layers=2).build(
        task="classification", label_names=COLOURS, seed=seed
    )
    with torch.no_grad():
        model.classifier.weight *= gain
        model.classifier.bias.copy_(torch.tensor([0.0, 2.0, 4.0]))
        if labels is not None:
            order = torch.tensor([COLOURS.index(name.lower()) for name in labels])
            model.classifier.weight.copy_(model.classifier.weight[order])
            model.classifier.bias.copy_(model.classifier.bias[order])
            model.config.id2label = dict(enumerate(labels))
            model.config.label2id = {label: i for i, label in enumerate(labels)}
    save_model(path, model, tokenizer)
    return path


def losses(made: Context) -> list[float]:
    return [line["loss"] for line in made.lines if "loss" in line]  # type: ignore[attr-defined]
