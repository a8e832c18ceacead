"""What a role (teacher, student, later assistant and peer) emits for a batch, in one form that every loss reads.

A loss does not know whether a signal is live, sharded or read from a cache.

Shapes: B samples, T tokens, C classes or words of the vocabulary. `logits` is `[B, C]` in classification and `[B, T, C]` in language modelling;
`...` stands for either. Positions in language modelling are already shifted: `logits[b, t]` speaks of `targets[b, t]`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100  # a target nobody knows: padding, a prompt, an unlabelled row


@dataclass
class Signals:
    """Outputs of one model for one batch."""

    logits: Tensor  # [..., C]


@dataclass
class Targets:
    """What the batch itself knows, the same for every role."""

    labels: Tensor  # [...] class or next word; IGNORE where unknown
    valid: Tensor  # [...] bool: a real position, labelled or not (no padding, no filler row)

    @property
    def labelled(self) -> Tensor:
        return self.valid & (self.labels != IGNORE)

    def count(self) -> Tensor:
        """Number of real positions, as a float on the batch's device."""
        return self.valid.sum().to(torch.float32)
