"""The optimizer, its parameter groups, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from distill_system.settings import Training


def learning_rate(step: int, total_steps: int, *, lr: float, schedule: str, warmup: float) -> float:
    """Learning rate of optimizer step `step` (0-based): linear warm-up over `warmup` of the steps, then constant, linear or cosine to 0.

    A pure function of the step: there is no scheduler state to save, and a resumed run can't drift.
    """
    warm_steps = math.ceil(warmup * total_steps)
    if step < warm_steps:
        return lr * (step + 1) / warm_steps
    progress = (step - warm_steps) / max(1, total_steps - warm_steps)
    if schedule == "constant":
        return lr
    if schedule == "linear":
        return lr * (1 - progress)
    return lr * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(
    model: nn.Module, weight_decay: float, role_of: Callable[[str], str] = lambda name: ""
) -> list[dict[str, Any]]:
    """Two groups for each role by the usual rule: matrices of linears decay; norms, biases and embeddings do not. Frozen parameters are in none.

    A parameter that isn't a weight (a score of a pruner, a scale of a quantizer) may say otherwise of itself: `decays`, and `lr_scale`, the factor on
    its learning rate, which makes a group of its own.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    groups: dict[tuple[str, bool, float], list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():  # shared parameters come once
        role = role_of(name)
        for by_default in (True, False):
            groups.setdefault((role, by_default, 1.0), [])
        if parameter.requires_grad:
            decays = getattr(parameter, "decays", parameter.dim() >= 2 and id(parameter) not in embeddings)
            groups.setdefault((role, decays, getattr(parameter, "lr_scale", 1.0)), []).append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay if decays else 0.0, "role": role, "lr_scale": scale}
        for (role, decays, scale), params in groups.items()
        if params
    ]


def make_optimizer(groups: Iterable[dict], training: Training) -> torch.optim.AdamW:
    """Fused AdamW (one kernel per group, on CPU and GPU): unfused, the step alone costs ten times as much on a CPU."""
    return torch.optim.AdamW(
        list(groups), lr=training.lr, betas=(training.beta1, training.beta2), eps=training.eps, fused=True
    )


def empty_state(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """AdamW's state of one parameter before its first step, so that a checkpoint has a place to be read into."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state
