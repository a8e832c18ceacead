"""What the framework costs in each optimizer step beside the step itself.

    python -m benchmarks.step [--quick] [--json FILE]

One tiny student (a step of well under a millisecond), the same three losses against the same teacher, the same batches in memory, clipping and fused AdamW, trained by
  plain     a loop of a dozen lines of PyTorch that logs nothing;
  ours      training.module.Distillation under make_trainer, one rank: counts, seeds, learning rate, skipping of bad steps, and eight figures of every step
            (loss, three parts, learning rate, gradient norm, samples/s, tokens/s) written to a metrics.jsonl, fetched every 20 steps as in a real run;
  self_log  stock Lightning with automatic optimization and four `self.log` calls in each step, to no logger: it writes nothing anywhere;
  bare      stock Lightning with manual optimization, logging nothing: what its Trainer costs, hence the floor of ours.

overhead_ms  CPU milliseconds a step takes more than the plain one: ours, and self_log as peer. Goal: <= 0.50.
vs_self_log  our overhead as a share of self_log's. Goal: <= 0.25.
step_ms      the whole step, ours, and plain as peer.

Figures of several students, members and hints: see benchmarks/cohort.py.

The plain loop uses our loss functions: what is compared is the framework around them, and not their float64 arithmetic. Not compared: reading and collating
data, GPUs, several ranks (one more small all-reduce in each of our steps), validation and checkpoints (not done in each step). Numbers are CPU time of a
single thread, from a step in which everything is warm, median of interleaved rounds.
"""

from benchmarks.common import arguments, figure, interleaved, machine, median_difference, one_thread, write_figures

one_thread()

import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from benchmarks import cohort
from distill_system.losses.logits import LogitRegression, SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.settings import Training
from distill_system.signals import Signals, Targets
from distill_system.tracking.journal import Journal
from distill_system.training.emit import Batch
from distill_system.training.engine import PlainEngine
from distill_system.training.module import Distillation
from distill_system.training.objective import Objective
from distill_system.training.recorder import Recorder
from distill_system.training.strategy import make_trainer

ROWS, WIDTH, CLASSES = 16, 32, 4
WARM = 30  # steps before the clock starts
TRAINING = Training(strategy="single", lr=1e-3, log_every=1, flush_every=20, batch_size=ROWS, weight_decay=0.01)
SCHEDULE = {"lr": TRAINING.lr, "schedule": TRAINING.schedule, "warmup": TRAINING.warmup}


class Net(nn.Module):
    """Answers as a transformers model does."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, CLASSES))

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.body(pixel_values))


def losses() -> dict[str, nn.Module]:
    return {"soft": SoftTarget(2.0), "hard": HardLabel(weight=0.5), "regression": LogitRegression(weight=0.1)}


def teachers(batch: Batch) -> dict[str, Signals]:
    return {"main": Signals(batch["teacher"])}


class Clocked:
    """A loader of `steps` items that notes this thread's CPU time when item WARM and the last one are asked for."""

    def __init__(self, items: list[Any], steps: int) -> None:
        self.items, self.steps = items, steps
        self.marks: list[float] = []

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.steps):
            if number in (WARM, self.steps - 1):
                self.marks.append(time.thread_time())
            yield self.items[number % len(self.items)]

    def per_step(self) -> float:
        start, end = self.marks
        return (end - start) / (self.steps - 1 - WARM)


def batches(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "pixel_values": torch.randn(ROWS, WIDTH, generator=generator),
            "teacher": torch.randn(ROWS, CLASSES, generator=generator),
            "labels": torch.randint(0, CLASSES, (ROWS,), generator=generator),
            "valid": torch.ones(ROWS, dtype=torch.bool),
            "index": torch.arange(ROWS) + number * ROWS,
        }
        for number in range(count)
    ]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=TRAINING.lr, weight_decay=TRAINING.weight_decay, fused=True)


def loss_parts(model: nn.Module, parts: dict[str, nn.Module], batch: Batch) -> list[Tensor]:
    """What the plain loop and stock Lightning differentiate, weighted: each loss's mean over the batch."""
    student, teaching = Signals(model(batch["pixel_values"]).logits), teachers(batch)["main"]
    targets = Targets(batch["labels"], batch["valid"])
    found = []
    for loss in parts.values():
        total, count = loss(student, teaching, targets)
        found.append(loss.weight * total / count)
    return found


def plain(data: list[dict[str, Tensor]], steps: int) -> float:
    model, parts = Net(0).train(), losses()
    optimizer = adamw(model)
    loader = Clocked(data, steps)
    for batch in loader:
        soft, hard, regression = loss_parts(model, parts, batch)
        (soft + hard + regression).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAINING.clip)
        optimizer.step()
        optimizer.zero_grad()
    return loader.per_step()


def ours(data: list[dict[str, Tensor]], steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        loader = Clocked([[batch] for batch in data], steps)
        fit_ours(loader, Path(folder))
        return loader.per_step()


def fit_ours(loader: Clocked, folder: Path) -> None:
    parts, steps = losses(), loader.steps
    recorder = Recorder(
        phase="student",
        names=list(parts),
        log_every=TRAINING.log_every,
        flush_every=TRAINING.flush_every,
        max_bad_steps=0,
        total_steps=steps,
        write=Journal(folder / "metrics.jsonl").append,
    )
    engine = PlainEngine(Objective(Net(0), parts, task="classification"), TRAINING, torch.device("cpu"))
    module = Distillation(
        engine,
        teachers=teachers,
        recorder=recorder,
        after_step=lambda step, told: told,
        stop_asked=lambda: False,
        loader=loader,
        first_step=0,
        total_steps=steps,
        schedule=SCHEDULE,
        seed=0,
    )
    make_trainer(torch.device("cpu")).fit(module)


class Stock(L.LightningModule):
    """What a person writes who follows Lightning's documentation."""

    def __init__(self, logs: bool) -> None:
        super().__init__()
        self.model, self.parts, self.logs = Net(0), losses(), logs
        self.automatic_optimization = logs

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.model)

    def training_step(self, batch: Batch, _: int) -> Tensor | None:
        soft, hard, regression = loss_parts(self.model, self.parts, batch)
        loss = soft + hard + regression
        if self.logs:
            self.log("loss", loss)
            self.log("loss/soft", soft)
            self.log("loss/hard", hard)
            self.log("loss/regression", regression)
            return loss
        optimizer: Any = self.optimizers()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, TRAINING.clip, "norm")
        optimizer.step()
        optimizer.zero_grad()
        return None


def stock(data: list[dict[str, Tensor]], steps: int, *, logs: bool) -> float:
    loader = Clocked(data, steps)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=TRAINING.clip if logs else None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Stock(logs), loader)
    return loader.per_step()


def measure(steps: int, rounds: int) -> dict[str, dict[str, Any]]:
    data = batches(64)
    arms = {
        "plain": lambda: plain(data, steps),
        "ours": lambda: ours(data, steps),
        "self_log": lambda: stock(data, steps, logs=True),
        "bare": lambda: stock(data, steps, logs=False),
    }
    seconds = interleaved(arms, rounds)
    base = seconds.pop("plain")
    over = {name: 1000 * median_difference(values, base) for name, values in seconds.items()}
    step = {name: 1000 * statistics.median(values) for name, values in {**seconds, "plain": base}.items()}
    print(f"{machine()}; {rounds} rounds of {steps} steps")
    share = over["ours"] / over["self_log"]
    return {
        "overhead_ms": figure(over["ours"], over["self_log"], over["bare"], "ms of CPU a step"),
        "vs_self_log": figure(share, 1.0, over["bare"] / over["self_log"], "of the overhead of 4 self.log"),
        "step_ms": figure(step["ours"], step["plain"], step["plain"], "ms of CPU a step"),
    }


def main(argv: list[str] | None = None) -> None:
    chosen = arguments(__doc__, argv)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    steps, rounds = (100, 1) if chosen.quick else (231, 21)
    several = cohort.measure(2 if chosen.quick else 15, compiled=not chosen.quick)
    write_figures(chosen.json, measure(steps, rounds) | several)


if __name__ == "__main__":
    main()
