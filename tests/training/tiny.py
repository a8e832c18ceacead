"""A network of a few hundred parameters with all that a checkpoint must keep, and trainings on it that take milliseconds a step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.settings import Training
from distill_system.signals import Signals
from distill_system.training.engine import PlainEngine
from distill_system.training.fit import Fit, Outcome
from distill_system.training.objective import Objective

CPU = torch.device("cpu")
WORDS, CLASSES = 13, 3


class Net(nn.Module):
    """Embedding, dropout, norm, a frozen layer, a buffer that every forward in train mode changes, and a head."""

    def __init__(self, seed: int = 0, dropout: float = 0.2) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(WORDS, 6)
            self.frozen = nn.Linear(6, 6)
            self.norm = nn.LayerNorm(6)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(6, CLASSES)
        self.frozen.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        if self.training:
            self.seen += 1
        hidden = self.dropout(self.norm(self.frozen(self.embedding(input_ids))))
        mask = attention_mask.unsqueeze(-1)
        return SimpleNamespace(logits=self.head((hidden * mask).sum(1) / mask.sum(1)))


def teacher_logits(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a teacher might say: a function of the batch alone."""
    ids = batch["input_ids"].double()
    return torch.stack([(ids * k).sin().mean(1) for k in (1.0, 2.0, 3.0)], dim=-1).float() * 3


def heard(batch: dict[str, torch.Tensor]) -> dict[str, Signals]:
    return {"main": Signals(teacher_logits(batch))}


def batch(step: int, rows: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    labels[step % rows] = -100  # a row that only the teacher knows
    return {
        "input_ids": torch.randint(0, WORDS, (rows, 5), generator=generator),
        "attention_mask": torch.ones(rows, 5, dtype=torch.long),
        "labels": labels,
        "valid": torch.ones(rows, dtype=torch.bool),
        "index": torch.arange(rows) + step * rows,
    }


def training(**settings: Any) -> Training:
    return Training(**{"strategy": "single", "lr": 0.02, "log_every": 1, "warmup": 0.0, "batch_size": 8} | settings)


def engine(seed: int = 0, losses: Any = None, autocast: Any = None, **settings: Any) -> PlainEngine:
    chosen = losses or {"soft": SoftTarget(2.0), "hard": HardLabel(0.1, weight=0.5)}
    net = Net(seed, settings.pop("dropout", 0.2))
    return PlainEngine(Objective(net, chosen, task="classification", autocast=autocast), training(**settings), CPU)


def train_step(one: PlainEngine, number: int, lr: float = 0.02, micro: int = 1) -> tuple[float, float]:
    """One optimizer step as the module makes it; (loss, gradient norm)."""
    torch.manual_seed(number)
    one.objective.train()
    whole = batch(number)
    weight_L = torch.tensor([float(loss.weight) for loss in one.objective.losses.values()])
    scale_L = weight_L / one.objective.count(whole).clamp(min=1)
    total = 0.0
    rows = len(whole["index"]) // micro
    for i in range(micro):
        part = {name: tensor[i * rows : (i + 1) * rows] for name, tensor in whole.items()}
        loss, _ = one.forward(part, heard(part), scale_L, last=i == micro - 1)
        one.backward(loss, last=i == micro - 1)
        total += float(loss.detach())
    return total, float(one.step(lr)[0])


def state(one: PlainEngine) -> dict[str, torch.Tensor]:
    """Every number that belongs to the state, copied."""
    found = {f"{piece.name}|{piece.part}": piece.values.clone() for piece in one.pieces()}
    return found | {name: torch.tensor(value) for name, value in one.scalars().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Bench:
    """One training in one folder, run as often as a test wants; what it wrote, and how often it stepped."""

    def __init__(self, folder: Path, total_steps: int = 9, validate: Any = None, better: Any = None, **settings: Any):
        self.folder, self.total_steps = folder, total_steps
        self.settings = {"eval_every": 3, "checkpoint_every": 4} | settings
        self.validate, self.better = validate, better or (lambda a, b: a > b)
        self.teacher: Any = heard
        self.lines: list[dict[str, Any]] = []
        self.stepped: list[int] = []
        self.engine: PlainEngine

    def run(self, stop_at: int | None = None, crash_at: int | None = None, **more: Any) -> Outcome:
        """Trains on from where the folder is; `stop_at`: told to leave in that step; `crash_at`: dies in it."""
        self.engine = engine(**(self.settings | more.pop("settings", {})))

        def items(first: int) -> Any:
            for step in range(first, self.total_steps):
                if step + 1 == crash_at:
                    raise KeyError("the power went")
                self.stepped.append(step + 1)
                yield [batch(step)]

        class Loader:
            def __init__(self, first: int, length: int) -> None:
                self.first, self.length = first, length

            def __len__(self) -> int:
                return self.length

            def __iter__(self) -> Any:
                return items(self.first)

        self.fit = fit = Fit(
            self.engine,
            teachers=self.teacher,
            training=self.engine.training,
            folder=self.folder / "checkpoints",
            phase="student",
            identity=more.pop("identity", "mine"),
            seed=7,
            total_steps=self.total_steps,
            steps_per_epoch=3,
            loader=lambda first: Loader(first, self.total_steps - first),
            validate=(lambda: {"student": self.validate(self.engine)}) if self.validate else None,
            better=self.better,
            monitor="accuracy",
            write=self.lines.extend,
            rewind=self._rewind,
            stop_asked=more.pop("stop_asked", lambda: stop_at is not None and fit.module.step + 1 >= stop_at),
        )
        return fit.run(CPU)

    def _rewind(self, step: int) -> None:
        self.lines[:] = [line for line in self.lines if line["step"] <= step]

    def figures(self) -> list[dict[str, Any]]:
        """Lines without what a clock decides, and without events of resuming."""
        dropped = {"time", "samples_per_s", "tokens_per_s"}
        events = {"start", "resume", "preempted"}
        return [{k: v for k, v in x.items() if k not in dropped} for x in self.lines if x.get("event") not in events]

    def events(self) -> list[tuple[str, int]]:
        return [(line["event"], line["step"]) for line in self.lines if "event" in line]

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.engine.whole_weights()}
