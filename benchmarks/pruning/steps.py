"""A masked training step against the dense one, by the engine that phases train with: forward, losses, backward, clipping, AdamW."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import Figures, figure, interleaved
from benchmarks.pruning.models import batch, encoder
from distill_system.losses.task import HardLabel
from distill_system.pruning.base import Slice
from distill_system.pruning.masks import MASK, add_mask
from distill_system.pruning.scores.movement import Movement
from distill_system.pruning.weights import element_groups
from distill_system.settings import Training
from distill_system.training.engine import PlainEngine
from distill_system.training.objective import STUDENT, Objective
from distill_system.training.scoring import Scorer

WARM = 2  # steps before the clock counts: the optimizer's state is made in the first


def whole(part: Slice) -> tuple[int, int]:
    return part.shape


def outputs(part: Slice) -> tuple[int, int]:
    return (part.shape[0], 1)


def engine_of(model: Any, mask: Callable[[Slice], tuple[int, int]] | None) -> PlainEngine:
    """An engine around the model, half of each matrix (of its elements, or its lines) masked; None: nothing is."""
    generator = torch.Generator().manual_seed(0)
    for group in element_groups(model, (1, 1)) if mask else ():
        (part,) = group.slices
        assert mask is not None
        add_mask(model.get_submodule(part.name.rpartition(".")[0]), mask(part))
        keep = model.get_parameter(part.name + MASK).data
        keep.copy_(torch.rand(keep.shape, generator=generator) < 0.5)
    objective = Objective(model, {"hard": HardLabel()}, task="classification")
    return PlainEngine(objective.train(), Training(strategy="single"), torch.device("cpu"))


def step(engine: PlainEngine, data: dict[str, torch.Tensor], scorer: Scorer | None) -> float:
    """CPU seconds of one step."""
    began = time.thread_time()
    loss, _ = engine.forward(data, None, torch.tensor([1.0 / len(data["labels"])], dtype=torch.float64), last=True)
    engine.backward(loss, last=True)
    if scorer:
        scorer.observe()
    engine.step(1e-4)
    return time.thread_time() - began


def measure(quick: bool) -> Figures:
    rows, rounds = (4, 1) if quick else (32, 15)
    data = batch(rows)
    masks = {"dense": None, "whole": whole, "lines": outputs, "movement": whole}
    engines = {name: engine_of(encoder(quick)[0], mask) for name, mask in masks.items()}
    groups = element_groups(engines["movement"].objective.roles[STUDENT], (1, 1))
    scorers = {"movement": Scorer(engines["movement"], STUDENT, groups, Movement(), lambda watcher: None)}
    arms = {
        name: lambda name=name, engine=engine: step(engine, data, scorers.get(name)) for name, engine in engines.items()
    }
    interleaved(arms, WARM)
    seconds = interleaved(arms, rounds)
    dense = statistics.median(seconds["dense"])

    def against_dense(name: str) -> dict[str, Any]:
        # Of each round's ratio, so that a machine that becomes slower over the rounds falls on both.
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["dense"], strict=True))
        return figure(1000 * dense * ratio, 1000 * dense, 1000 * dense, "ms of CPU a step")

    return {
        "mask_step": against_dense("whole"),
        "mask_step_lines": against_dense("lines"),
        "mask_step_movement": against_dense("movement"),
    }
