"""What is trained: the student and its losses as one module, so that losses run inside the engine's forward.

Inside it, parameters that ZeRO-3 has scattered are whole; a loss that reads the output head outside would see an empty tensor.

Shapes: B samples, T tokens, C classes or words, L losses.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from distill_system.signals import IGNORE, Signals, Targets

Batch = Mapping[str, Tensor]


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that this model's forward takes (DistilBERT knows no token types, say)."""
    known = _parameters(getattr(model.forward, "__func__", model.forward))
    names = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
    inputs = {name: batch[name] for name in names if name in batch and name in known}
    return inputs | ({"use_cache": False} if "use_cache" in known else {})


@functools.lru_cache(maxsize=64)
def _parameters(forward: Callable) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(forward).parameters


def targets_of(batch: Batch, task: str) -> Targets:
    """Labels and validity of the positions that `logits_of` returns; in language modelling each position speaks of the next token."""
    labels, valid_B = batch["labels"], batch["valid"]
    if task == "causal_lm":
        labels_BT = labels[:, 1:]
        return Targets(labels_BT, valid_B[:, None] & (labels_BT != IGNORE))
    return Targets(labels, valid_B)


def logits_of(model: nn.Module, batch: Batch, task: str) -> Tensor:
    """`[B, C]` in classification, `[B, T-1, C]` in language modelling."""
    logits = model(**model_inputs(model, batch)).logits
    return logits[:, :-1] if task == "causal_lm" else logits


class Objective(nn.Module):
    """Student and losses. `forward` gives the scaled loss to differentiate, or the logits alone when no scale is given.

    Args:
        student: a transformers model.
        losses: by the name they have in the config; each returns (sum, count) and has a `weight`.
        task: "classification" or "causal_lm".
        autocast: (device type, dtype) for mixed precision, or None.
    """

    def __init__(
        self,
        student: nn.Module,
        losses: Mapping[str, nn.Module],
        *,
        task: str,
        autocast: tuple[str, torch.dtype] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.losses = nn.ModuleDict(losses)
        self.task = task
        self._autocast = autocast

    def count(self, batch: Batch) -> Tensor:
        """Counts `[L]` that the losses will divide by, from the batch alone."""
        targets = targets_of(batch, self.task)
        return torch.stack([loss.count(targets) for loss in self.losses.values()])

    def forward(
        self, batch: Batch, teacher: Tensor | None = None, scale_L: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Returns (loss, sums `[L]`): loss is `sum_l scale_l * sum_l`; a scale is weight / global count, so ranks and padding can't change it."""
        mixed = torch.autocast(*self._autocast) if self._autocast else contextlib.nullcontext()
        with mixed:
            logits = logits_of(self.student, batch, self.task)
        if scale_L is None:
            return logits
        targets = targets_of(batch, self.task)
        student_signals = Signals(logits)
        teacher_signals = Signals(teacher) if teacher is not None else None
        sum_L = torch.stack(
            [loss(student_signals, teacher_signals, targets)[0].double() for loss in self.losses.values()]
        )
        return (sum_L * scale_L).sum().float(), sum_L.detach()
