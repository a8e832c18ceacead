"""What every loss is: a pure function with the paper's equation, and a thin module around it that the config names.

A loss returns `(sum, count)`, never a mean: the trainer divides by the count of the *global* batch, so ranks, accumulation and padding can't change
it. Masked positions are replaced before any arithmetic, so a NaN in padding reaches neither the sum nor the gradient.

Shapes: C classes or words of the vocabulary, X any leading dimensions (B samples; or B samples, T tokens).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from distill_system.schema import NonNegative
from distill_system.signals import Signals, Targets

FEW_CLASSES = 1024


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
        weight: factor of this loss in the total; applied by the trainer, not here.
    """

    # Restated by each loss: the config check reads it from the class's own source, without importing this module.
    needs_teacher: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("classification", "causal_lm")  # where it has a meaning

    def __init__(self, weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def count(self, targets: Targets) -> Tensor:
        """Positions that `forward` sums over; known before it, so that accumulated micro-batches can share one divisor."""
        return targets.count()

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        """(sum over positions, `count(targets)`)."""
        raise NotImplementedError
