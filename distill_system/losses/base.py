"""What every loss is: a pure function with the paper's equation, and a thin module around it that the config names.

A loss returns `(sum, count)`, never a mean: the trainer divides by the count of the *global* batch, so ranks, accumulation and padding can't change
it. Masked positions are replaced before any arithmetic, so a NaN in padding reaches neither the sum nor the gradient.

Shapes: C classes or words of the vocabulary, X any leading dimensions (B samples; or B samples, T tokens).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill_system.schedules import value_at
from distill_system.schema import NonNegative
from distill_system.settings import Schedule
from distill_system.signals import Signals, Targets

FEW_CLASSES = 1024
ALL_TASKS = ("classification", "multi_label", "regression", "token_classification", "causal_lm")


def at_positions(logits_XC: Tensor, keep_X: Tensor) -> Tensor:
    """Logits in float64 for a few classes and at least float32 for many, zero where a position isn't kept: whatever stood there, its gradient is zero.

    A student close to its teacher differs in digits that float32 rounds away: a KL of 1e-4 nats of two classes would keep only three of its own. With
    few classes exact arithmetic costs nothing beside the model; with a vocabulary it would cost memory, and KLs are larger.

    `where` and not a boolean index: an index of unknown length makes the host wait for the device.
    """
    wide = torch.float64 if logits_XC.shape[-1] <= FEW_CLASSES else torch.float32
    logits_XC = logits_XC.to(torch.promote_types(logits_XC.dtype, wide))
    return torch.where(keep_X.unsqueeze(-1), logits_XC, 0.0)


class Loss(nn.Module):
    """Base of all losses; what a subclass adds is a constructor with its own settings and `forward`.

    Args:
        weight: factor of this loss in the total, a number or a schedule; applied by the trainer, not here.
    """

    # Restated by each loss: the config check reads them from the class's own source, without importing this module.
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False  # whether an unlabelled row teaches nothing
    needs: ClassVar[tuple[str, ...]] = ("logits",)  # what it reads of both roles: fields of Signals
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS  # where it has a meaning
    weighs_rows: ClassVar[bool] = False  # whether it honours `Targets.weight`

    def __init__(self, weight: NonNegative | Schedule = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.progress = 0.0  # share of the phase's steps that are done; set before each step
        # Of a student that has lost layers: the numbers of those that are left, and how many there were.
        self.survivors: tuple[tuple[int, ...], int] | None = None

    def weight_at(self, progress: float) -> float:
        return value_at(self.weight, progress)

    def current(self, setting: float | Schedule) -> float:
        """What a setting that may follow a schedule (a temperature) stands for in this step."""
        return value_at(setting, self.progress)

    def bind(self, student: Signals, teacher: Signals, *, key: str, seed: int) -> dict[str, Any]:
        """Fits the loss to the two models, given what each emits for a tiny batch: chooses layers, makes projectors.

        Called once for each pair of student and teacher, on a copy of the loss of their own, before the engine is made; anew whenever a model changed.

        Args:
            student: of a few rows; carries no gradient.
            teacher: of the same rows.
            key: of this loss in the config, for refusals.
            seed: of fresh weights; equal on all ranks.

        Returns:
            What the report tells of it, e.g. {"pairs": [[1, 2], [2, 5]]}; empty where there is nothing to tell.

        Raises:
            Refusal: the two don't fit.
        """
        return {}

    def count(self, targets: Targets) -> Tensor:
        """Positions that `forward` sums over; known before it, so that accumulated micro-batches can share one divisor."""
        return targets.count()

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        """(sum over positions, `count(targets)`)."""
        raise NotImplementedError
