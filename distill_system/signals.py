"""What a role (teacher, student, assistant, peer) emits for a batch, in one form that every loss reads.

A loss does not know whether a signal is live, sharded, sent by another rank or read from a cache.

Shapes: B samples, T tokens (patches in a picture), D width, H heads, L layers, C classes or words of the vocabulary. `logits` is `[B, C]` in
classification, multi-label classification and regression (C numbers), `[B, T, C]` in language modelling and token classification; `...` stands for
either. Positions in language modelling are already shifted: `logits[b, t]` speaks of `targets[b, t]`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100  # a target nobody knows: padding, a prompt, an unlabelled row; NaN where targets are floating (multi-label, regression)


@dataclass
class Signals:
    """Outputs of one model for one batch. What no loss asks for (`Loss.needs`) is None and was never computed."""

    logits: Tensor  # [..., C]
    hidden: tuple[Tensor, ...] | None = (
        None  # L + 1 of [B, T, D] ([B, D, rows, columns] in a CNN); the first is the embeddings' output
    )
    attention: tuple[Tensor, ...] | None = None  # L of [B, H, T, T], rows sum to 1
    projections: tuple[tuple[Tensor, Tensor, Tensor], ...] | None = (
        None  # L of (queries, keys, values), each [B, T, D]: all heads side by side
    )
    trust: Tensor | None = (
        None  # [...] how much this teacher counts at each position, beside the other teachers; None: 1
    )

    def detached(self) -> "Signals":
        """The same without a gradient: what a peer may see of this role."""

        def cut(value: object) -> object:
            if isinstance(value, Tensor):
                return value.detach()
            return tuple(cut(part) for part in value) if isinstance(value, tuple) else value

        return Signals(**{name: cut(value) for name, value in vars(self).items()})  # type: ignore[arg-type]


@dataclass
class Targets:
    """What the batch itself knows, the same for every role."""

    labels: Tensor  # [...] class or next word, IGNORE where unknown; multi-label [B, C] and regression [B, C] floating, NaN where unknown
    valid: (
        Tensor  # [...] bool ([B] where labels are [B, C]): a real position, labelled or not (no padding, no filler row)
    )
    tokens: Tensor | None = (
        None  # [B, T] bool: real tokens of real rows, for what speaks of inputs (hidden states); None: every token of a row is real
    )
    rows: Tensor | None = None  # [B] bool: real rows; None: `valid` says it
    weight: Tensor | None = (
        None  # like `valid`, floating: factor of each position's loss (a teacher trusted on some rows only); None: 1
    )
    task: str = "classification"

    @property
    def labelled(self) -> Tensor:
        """Positions `[...]` (of multi-label and regression `[B]`: rows with at least one known number)."""
        if self.labels.is_floating_point():
            return self.valid & (~self.labels.isnan()).any(dim=-1)
        return self.valid & (self.labels != IGNORE)

    @property
    def real_rows(self) -> Tensor:
        """`[B]` bool."""
        return (
            self.rows
            if self.rows is not None
            else self.valid.flatten(1).any(dim=1)
            if self.valid.dim() > 1
            else self.valid
        )

    def count(self) -> Tensor:
        """Number of real positions, as a float on the batch's device."""
        return self.valid.sum().to(torch.float32)

    def total(self, loss_X: Tensor) -> Tensor:
        """The sum of a loss over positions, each with its weight; `loss_X` is 0 where a position doesn't count."""
        return loss_X.sum() if self.weight is None else (loss_X * self.weight.to(loss_X.dtype)).sum()

    def total_of_rows(self, loss_B: Tensor) -> Tensor:
        """The same for a loss that speaks of whole rows; a row weighs what its positions weigh on average."""
        if self.weight is None:
            return loss_B.sum()
        weight_B = (
            self.weight
            if self.weight.dim() == 1
            else (self.weight * self.valid).sum(1) / self.valid.sum(1).clamp(min=1)
        )
        return (loss_B * weight_B.to(loss_B.dtype)).sum()


def real_inputs(x: Tensor, keep: Tensor) -> Tensor | None:
    """A module's inputs at real tokens, `[N, I]`.

    Args:
        x: `[B, T, I]`, `[B * T, I]`, or `[B, I]` (one vector a row).
        keep: bool `[B, T]`, or `[B]` or `[B, 1]` of whole rows.

    Returns:
        None where `keep` says nothing of inputs of this shape.
    """
    x_XI = x.reshape(-1, x.shape[-1])
    if keep.numel() == len(x_XI):
        return x_XI[keep.reshape(-1).to(x.device)]
    if len(keep) == len(x) and (keep.numel() == len(keep) or x.dim() == 2):
        rows_B = keep.reshape(len(keep), -1).any(dim=1).to(x.device)
        return x[rows_B].reshape(-1, x.shape[-1])
    return None
