"""Equal losses of several roles at once: a cohort of K members has K (K - 1) terms between peers, each a dozen small operations.

Shapes: B samples, C classes or words, G terms; `...` is B or B, T.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distill_system.losses.base import Loss
from distill_system.signals import Signals, Targets

OF_ANY_MODULE = frozenset(vars(nn.Module())) | {"progress", "weight"}  # the trainer applies the weight
T = TypeVar("T")


def alike(entries: Sequence[T], told: Callable[[T], tuple[Loss, Any]]) -> list[list[T]]:
    """Entries in groups that one call of a loss can answer: losses of one class and equal settings that read logits alone and learn nothing.

    Args:
        entries: what stands for a loss.
        told: its loss, and whatever else must be equal in a group.
    """
    groups: list[list[T]] = []
    for entry in entries:
        loss, more = told(entry)
        for group in groups:
            first, other = told(group[0])
            if more == other and interchangeable(first, loss):
                group.append(entry)
                break
        else:
            groups.append([entry])
    return groups


def interchangeable(one: Loss, other: Loss) -> bool:
    if type(one) is not type(other) or tuple(one.needs) != ("logits",):
        return False
    if any(True for loss in (one, other) for _ in (*loss.parameters(), *loss.buffers(), *loss.children())):
        return False
    return settings_of(one) == settings_of(other)


def settings_of(loss: Loss) -> dict[str, Any]:
    return {key: value for key, value in vars(loss).items() if key not in OF_ANY_MODULE}


def sums_at_once(loss: Loss, students: Sequence[Tensor], teachers: Sequence[Tensor] | None, targets: Targets) -> Tensor:
    """Sums `[G]` of one loss between logits `[..., C]` of students and of what each hears."""
    if teachers is None:
        return torch.vmap(lambda student: loss(Signals(student), None, targets)[0])(torch.stack(list(students)))
    return torch.vmap(lambda student, teacher: loss(Signals(student), Signals(teacher), targets)[0])(
        torch.stack(list(students)), torch.stack(list(teachers))
    )
