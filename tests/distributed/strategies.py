"""What the ranks of test_strategies.py do: one small distillation under every strategy, stopped, resumed and compared."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill_system import distributed
from distill_system.data.table import Table
from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.manifest import Manifest
from distill_system.models.from_config import FromConfig
from distill_system.phases import base
from distill_system.phases.context import Context
from distill_system.phases.teachers import load_teacher
from distill_system.settings import Teacher, Training

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
STEPS = 7
STOP = 4
# Sizes that divide by neither 2 nor 4 ranks, so that shards are padded and some ranks hold nothing of a small tensor.
STUDENT = {
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 41,
}
TEACHER = STUDENT | {"hidden_size": 44, "num_attention_heads": 4, "num_hidden_layers": 3}


def write_data(folder: Path) -> Path:
    """50 rows of three classes, some unlabelled: counts differ from rank to rank and from loss to loss."""
    path = folder / "rows.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "split"])
        for i in range(64):
            label = ["red", "green", "blue"][i % 3] if i % 7 else ""
            rows.writerow(
                [
                    f"row {i} is {'very ' * (i % 5)}{['red', 'green', 'blue'][i % 3]}",
                    label,
                    "validation" if i > 55 and i % 7 else "train",
                ]
            )
    return path


class Work:
    """One folder's data and teacher, and trainings on it."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.device = folder, distributed.device_of(device)
        self.source = Table(path=str(folder / "rows.csv"), split_column="split", max_length=40)
        self.recipe = FromConfig(
            architecture="bert", tokenizer="bytes", dropout=0.0, frozen=["*word_embeddings*"], **STUDENT
        )

    def prepare(self) -> None:
        write_data(self.folder)
        teacher, tokenizer = FromConfig(architecture="bert", tokenizer="bytes", dropout=0.0, **TEACHER).build(
            task="classification", label_names=["blue", "green", "red"], artifacts={}, seed=5
        )
        with torch.no_grad():
            teacher.classifier.weight *= 20  # so that there is something to learn
        teacher.save_pretrained(self.folder / "teacher")
        tokenizer.save_pretrained(self.folder / "teacher")

    def context(
        self,
        folder: str,
        identity: str,
        write: Callable[[list[dict[str, Any]]], None],
        stop_at: int | None,
        settings: dict[str, Any],
    ) -> Context:
        """Of a whole phase in `<folder>/<folder>`, which the last rank is told to leave after `stop_at` steps."""
        # A large eps: where a gradient is rounding noise, plain AdamW would make a whole step of it.
        given = {"batch_size": 16, "max_epochs": None, "lr": 3e-3, "clip": 0.05, "eps": 1e-4}
        run_folder = self.folder / folder
        if distributed.is_main():
            run_folder.mkdir(exist_ok=True)
            Manifest.read(run_folder, folder).update("phase", kind=identity, inputs={}, settings={})
        distributed.barrier()
        steps = {"done": 0}

        def stop() -> bool:
            steps["done"] += 1
            return stop_at is not None and steps["done"] >= stop_at and distributed.rank() == distributed.world() - 1

        return Context(
            run_folder=run_folder,
            run_name=folder,
            name="phase",
            identity=identity,
            source=self.source,
            training=Training(**{**given, "log_every": 1, "flush_every": 1, **settings}),
            seed=3,
            device=self.device,
            artifacts={},
            write=write,
            rewind=lambda *_: None,
            announce=lambda *_: None,
            stop_asked=stop,
        )

    def train(
        self,
        name: str,
        *,
        stop_at: int | None = None,
        placement: str = "replicated",
        losses: Any = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Trains in `<folder>/<name>`; returns journal lines, the weights' digest as numbers, and what else a test may ask."""
        training = Training(
            **{
                "batch_size": 16,
                "max_epochs": None,
                "max_steps": STEPS,
                "lr": 3e-3,
                "clip": 0.5,
                "log_every": 1,
                **settings,
            }
        )
        lines: list[dict[str, Any]] = []
        seen = {"step": 0}

        def write(new: list[dict[str, Any]]) -> None:
            lines.extend(new)

        context = Context(
            run_folder=self.folder / name,
            run_name=name,
            name="student",
            identity="same",
            source=self.source,
            training=training,
            seed=3,
            device=self.device,
            artifacts={},
            write=write,
            rewind=lambda step: None,
            announce=lambda steps: None,
            stop_asked=lambda: (
                stop_at is not None and seen["step"] >= stop_at - 1 and distributed.rank() == distributed.world() - 1
            ),
        )
        student, tokenizer = base.build_student(self.recipe, context)
        stores = base.load_data(context, tokenizer)
        teacher = load_teacher(
            "main", Teacher(model=str(self.folder / "teacher"), placement=placement), context, student, tokenizer
        )
        chosen = losses or {"soft": SoftTarget(2.0), "hard": HardLabel(0.1, weight=0.5)}
        original = teacher.__class__.signals

        def counted(self: Any, batch: Any, *more: Any) -> Any:
            seen["step"] += 1 / training.accumulation
            return original(self, batch, *more)

        teacher.__class__.signals = counted  # type: ignore[method-assign]
        try:
            trained = base.train(
                context, student, tokenizer, chosen, stores=stores, teachers={"main": teacher}, started=0.0
            )
        finally:
            teacher.__class__.signals = original  # type: ignore[method-assign]
        weights = {
            key: tensor.double().flatten().tolist() for key, tensor in trained.engine.whole_weights() if tensor.numel()
        }
        loss = {
            line["step"]: {k: v for k, v in line.items() if k.startswith("loss") or k == "grad_norm"}
            for line in lines
            if "loss" in line
        }
        held, whole = teacher.resident()
        return {
            "loss": loss,
            "valid": [line for line in lines if "valid/nll" in line],
            "events": [(line["event"], line["step"]) for line in lines if "event" in line],
            "weights": weights,
            "resident": held / whole,
            "preempted": trained.outcome.preempted,
            "progress": vars(trained.outcome.progress),
            "scalars": trained.engine.scalars(),
            "warnings": context.warnings,
        }


class Poisoned(HardLabel):
    """A loss that is NaN at one step, as a broken batch would make it."""

    def __init__(self, at: set[int]) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, student: Any, teacher: Any, targets: Any) -> Any:
        total, count = super().forward(student, teacher, targets)
        if self.training:
            self.calls += 1
            if self.calls in self.at:
                total = total * float("nan")
        return total, count


def first(folder: Path) -> dict[str, Any]:
    """Two ranks: every strategy straight; stopped at a step; each checkpoint resumed by every strategy; placements; accumulation; bad steps."""
    work = Work(folder)
    if distributed.is_main():
        work.prepare()
    distributed.barrier()
    found: dict[str, Any] = {"straight": {}, "stopped": {}, "resumed": {}, "bad": {}}
    for strategy in STRATEGIES:
        found["straight"][strategy] = work.train(f"straight-{strategy}", strategy=strategy)
        found["stopped"][strategy] = work.train(f"stopped-{strategy}", strategy=strategy, stop_at=STOP)
    for source in STRATEGIES:
        for target in STRATEGIES:
            name = f"from-{source}-to-{target}"
            if distributed.is_main():
                shutil.copytree(folder / f"stopped-{source}", folder / name)
            distributed.barrier()
            found["resumed"][f"{source}>{target}"] = work.train(name, strategy=target)
    for strategy in ("ddp", "zero3"):
        found["bad"][strategy] = work.train(
            f"bad-{strategy}", strategy=strategy, losses={"hard": Poisoned({3})}, max_bad_steps=1
        )
    found["sharded"] = work.train("sharded", strategy="zero2", placement="zero3")
    found["sharded3"] = work.train("sharded3", strategy="zero3", placement="zero3")
    found["accumulated"] = {s: work.train(f"accumulated-{s}", strategy=s, accumulation=2) for s in STRATEGIES}
    found["recomputed"] = {
        s: work.train(f"recomputed-{s}", strategy=s, activation_checkpointing=True) for s in ("ddp", "zero3")
    }
    found["bf16"] = {}
    for strategy in ("ddp", "zero1", "zero3"):
        whole = work.train(f"bf16-{strategy}", strategy=strategy, precision="bf16")
        work.train(f"bf16-stopped-{strategy}", strategy=strategy, precision="bf16", stop_at=STOP)
        found["bf16"][strategy] = [whole, work.train(f"bf16-stopped-{strategy}", strategy=strategy, precision="bf16")]
    found["offload"] = work.train("offload", strategy="zero3_offload")
    try:
        work.train("too-bad", strategy="ddp", losses={"hard": Poisoned({2, 3})}, max_bad_steps=1)
    except RuntimeError as error:
        found["too_bad"] = str(error)
    return found


def again(folder: Path) -> dict[str, Any]:
    """Another number of ranks: straight, and from each of the two-rank checkpoints."""
    work = Work(folder)
    world = distributed.world()
    found: dict[str, Any] = {"straight": {}, "resumed": {}}
    for strategy in ("ddp", "zero3") if world > 1 else ("single", "zero2", "zero3"):
        found["straight"][strategy] = work.train(f"w{world}-{strategy}", strategy=strategy)
    for source in STRATEGIES:
        for target in ("ddp", "zero1", "zero3") if world > 1 else ("single", "zero2", "zero3"):
            name = f"w{world}-from-{source}-to-{target}"
            if distributed.is_main():
                shutil.copytree(folder / f"stopped-{source}", folder / name)
            distributed.barrier()
            found["resumed"][f"{source}>{target}"] = work.train(name, strategy=target)
    return found


def straight(folder: Path) -> dict[str, Any]:
    """What GPUs are held against."""
    work = Work(folder)
    work.prepare()
    return work.train("straight", strategy="single")


def on_gpus(folder: Path) -> dict[str, Any]:
    """The same trainings on this machine's GPUs."""
    work = Work(folder, "gpu")
    if distributed.is_main():
        work.prepare()
    distributed.barrier()
    found = {strategy: work.train(f"gpu-{strategy}", strategy=strategy) for strategy in STRATEGIES}
    found["sharded"] = work.train("gpu-sharded", strategy="zero3", placement="zero3")
    found["bf16"] = work.train("gpu-bf16", strategy="zero2", precision="bf16")
    found["fp16"] = work.train("gpu-fp16", strategy="ddp", precision="fp16")
    return found
