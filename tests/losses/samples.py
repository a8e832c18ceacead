"""Losses as conf/losses has them, and small random batches of every task with all that a loss may read of two models."""

from dataclasses import fields, replace
from pathlib import Path

import torch
import yaml

from distill_system.config.instantiate import instantiate
from distill_system.losses.base import Loss
from distill_system.signals import IGNORE, Signals, Targets

ROOT = Path(__file__).parents[2]
YAMLS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "conf" / "losses").glob("*.yaml"))}
BATCH, TOKENS, CLASSES = 6, 5, 4
LAYERS, WIDTH, HEADS = {"student": 2, "teacher": 3}, {"student": 16, "teacher": 32}, {"student": 2, "teacher": 4}


def make(name: str, **settings) -> Loss:
    return instantiate(YAMLS[name] | settings)


def signals(role: str, task: str, generator: torch.Generator, dtype=torch.float64, rows: int = BATCH) -> Signals:
    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(1.5).to(dtype)

    positions = {"causal_lm": (rows, TOKENS - 1), "token_classification": (rows, TOKENS)}.get(task, (rows,))
    layers, width, heads = LAYERS[role], WIDTH[role], HEADS[role]
    return Signals(
        random(*positions, CLASSES),
        hidden=tuple(random(rows, TOKENS, width) for _ in range(layers + 1)),
        attention=tuple(random(rows, heads, TOKENS, TOKENS).softmax(-1) for _ in range(layers)),
        projections=tuple(tuple(random(rows, TOKENS, width) for _ in range(3)) for _ in range(layers)),
    )


def targets(task: str, generator: torch.Generator, rows: int = BATCH) -> Targets:
    """The first row is filler, the second has no label, every row but the third has padding."""
    real = torch.ones(rows, dtype=torch.bool)
    real[0] = False
    length = torch.randint(2, TOKENS, (rows,), generator=generator)
    length[2] = TOKENS
    tokens = (torch.arange(TOKENS) < length[:, None]) & real[:, None]
    if task in ("multi_label", "regression"):
        labels = torch.rand(rows, CLASSES, generator=generator)
        labels = labels.round() if task == "multi_label" else labels * 3
        labels[1] = float("nan")
        labels[3, 1] = float("nan")
        return Targets(labels, real, tokens, real, task=task)
    if task == "classification":
        labels = torch.randint(CLASSES - 1, (rows,), generator=generator)
        labels[1] = IGNORE
        return Targets(labels, real, tokens, real, task=task)
    labels = torch.randint(CLASSES - 1, (rows, TOKENS), generator=generator).masked_fill(~tokens, IGNORE)
    labels[1, 2:] = IGNORE
    if task == "causal_lm":
        return Targets(labels[:, 1:], real[:, None] & (labels[:, 1:] != IGNORE), tokens, real, task=task)
    return Targets(labels, tokens, tokens, real, task=task)


def example(task: str, seed: int = 0, dtype=torch.float64, rows: int = BATCH) -> tuple[Signals, Signals, Targets]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (signals(role, task, generator, dtype, rows) for role in ("student", "teacher"))
    return student, teacher, targets(task, generator, rows)


def bound(loss: Loss, task: str = "classification", dtype=torch.float64) -> Loss:
    """Fitted to the models of the examples."""
    student, teacher, _ = example(task, dtype=dtype)
    loss.bind(student, teacher, key="phases.p.losses.x", seed=3)
    return loss.to(dtype)


def mapped(value, function):
    """Signals with `function(tensor)` in place of each tensor."""
    if isinstance(value, Signals):
        return Signals(**{field.name: mapped(getattr(value, field.name), function) for field in fields(value)})
    if isinstance(value, tuple):
        return tuple(mapped(part, function) for part in value)
    return value if value is None else function(value)


def leaves(value) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    mapped(value, lambda tensor: found.append(tensor) or tensor)
    return found


def tracked(value: Signals) -> Signals:
    return mapped(value, lambda tensor: tensor.detach().clone().requires_grad_())


def taken(batch: Targets, rows) -> Targets:
    """The rows of an index or slice."""
    parts = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "task"}
    return replace(batch, **{name: None if part is None else part[rows] for name, part in parts.items()})


def poisoned(value: Signals, batch: Targets, poison: float) -> Signals:
    """With `poison` wherever a position isn't real."""
    tokens = batch.tokens
    pairs = tokens[:, None, :, None] & tokens[:, None, None, :]

    def at(mask):
        return lambda tensor: tensor.masked_fill(~mask, poison)

    return Signals(
        value.logits.masked_fill(~batch.valid[..., None], poison),
        hidden=mapped(value.hidden, at(tokens[..., None])),
        attention=mapped(value.attention, at(pairs)),
        projections=mapped(value.projections, at(tokens[..., None])),
    )


def gradients(loss: Loss, student: Signals, teacher: Signals, batch: Targets) -> tuple[torch.Tensor, ...]:
    """(sum, count, gradient of each tensor of the student, zeros where there is none, and of each parameter of the loss)."""
    student = tracked(student)
    total, count = loss(student, teacher, batch)
    wanted = leaves(student) + list(loss.parameters())
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    return total, count, *(torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True))
