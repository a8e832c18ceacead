"""The tiny distillation whose curve is golden: everything in it is fixed, and it takes about a second on one thread of a CPU."""

import csv
import os
import tempfile
from pathlib import Path
from typing import Any

STEPS = 10
FIGURES = ("loss", "loss/soft", "loss/hard", "lr", "grad_norm")
SIZES = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 40}


def write_rows(folder: Path) -> Path:
    """44 rows of three classes, some without a label: the last batch of an epoch is not full."""
    path = folder / "rows.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "split"])
        for i in range(44):
            colour = ["red", "green", "blue"][i % 3]
            label = colour if i % 6 else ""
            rows.writerow([f"{i} is {'very ' * (i % 4)}{colour}", label, "validation" if i % 11 == 3 else "train"])
    return path


def curve() -> dict[str, Any]:
    """Figures of each step and of the validation in the middle and at the end, by step."""
    import torch

    threads, cache = torch.get_num_threads(), os.environ.get("DISTILL_CACHE")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.environ["DISTILL_CACHE"] = str(Path(name) / "cache")
        try:
            lines = _train(Path(name))
        finally:
            torch.set_num_threads(threads)
            os.environ.pop("DISTILL_CACHE")
            if cache is not None:
                os.environ["DISTILL_CACHE"] = cache
    steps = {str(line["step"]): {key: line[key] for key in FIGURES} for line in lines if "loss" in line}
    kept = ("valid/nll", "valid/accuracy")
    valid = {str(line["step"]): {key: line[key] for key in kept} for line in lines if "valid/nll" in line}
    return {"steps": steps, "validation": valid}


def _train(folder: Path) -> list[dict[str, Any]]:
    import torch

    from distill_system.data.table import Table
    from distill_system.losses.logits import SoftTarget
    from distill_system.losses.task import HardLabel
    from distill_system.models.from_config import FromConfig
    from distill_system.phases import base
    from distill_system.phases.context import Context
    from distill_system.phases.teachers import load_teacher
    from distill_system.settings import Teacher, Training

    training = Training(
        strategy="single",
        accelerator="cpu",
        batch_size=12,
        accumulation=2,
        max_epochs=None,
        max_steps=STEPS,
        eval_every=5,
        lr=3e-3,
        warmup=0.2,
        clip=0.3,
        log_every=1,
    )
    lines: list[dict[str, Any]] = []
    context = Context(
        run_folder=folder,
        run_name="golden",
        name="student",
        identity="golden",
        source=Table(path=str(write_rows(folder)), split_column="split", max_length=32),
        training=training,
        seed=11,
        device=torch.device("cpu"),
        artifacts={},
        write=lines.extend,
        rewind=lambda step: None,
        announce=lambda steps: None,
        stop_asked=lambda: False,
    )
    names = context.source.label_names()
    teacher = FromConfig("bert", tokenizer="bytes", dropout=0.0, num_hidden_layers=2, **SIZES)
    model, tokenizer = teacher.build(task="classification", label_names=names, seed=1)
    with torch.no_grad():
        model.classifier.weight *= 100  # sure of itself: small losses would have few digits that all CPUs share
    model.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    recipe = FromConfig("bert", tokenizer="bytes", dropout=0.1, num_hidden_layers=1, frozen=["*position*"], **SIZES)
    student, tokenizer = base.build_student(recipe, context)
    stores = base.load_data(context, tokenizer)
    loaded = load_teacher("main", Teacher(model=str(folder / "teacher")), context, student, tokenizer)
    losses = {"soft": SoftTarget(2.0), "hard": HardLabel(0.1, weight=0.5)}
    base.train(context, student, tokenizer, losses, stores=stores, teachers={"main": loaded}, started=0.0)
    return lines
