"""What a kind of pruning does in a round, whether it writes masks or takes layers away."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from distill_system.pruning.base import Group, Surgery
from distill_system.pruning.schedules import Round
from distill_system.training.engine import Engine, Piece


@dataclass(frozen=True)
class Tally:
    """Counts over all ranks, of the weights that the forward uses."""

    alive: int  # weights of the groups that aren't zero
    remaining: int  # parameters of the whole model, without the zeros among those


@dataclass(frozen=True)
class Applied:
    """What a round did.

    Attributes:
        keep: kept units by group, where whole lines are masked.
        surgery: what is to be cut before training goes on.
        tally: counts after that surgery; None: count what is there.
        sentence: for the person at the terminal.
    """

    keep: Mapping[str, Tensor] = field(default_factory=dict)
    surgery: Surgery | None = None
    tally: Tally | None = None
    sentence: str = ""


class Surgeon(Protocol):
    kind: str
    groups: list[Group]  # of the present model
    cuts_units: bool  # whether lines of masks that are final are cut out
    watches_gradients: bool

    def begin(self, engine: Engine, sparsity: float) -> None:
        """An engine is there, at its start or after a resume, and this much should be gone by now."""

    def observe(self, engine: Engine) -> None:
        """Gradients are there."""

    def counts(self, engine: Engine, keep: Mapping[str, Tensor]) -> dict[str, int]:
        """Weights that aren't zero, by group."""

    def count(self, engine: Engine, keep: Mapping[str, Tensor]) -> Tally: ...

    def apply(self, engine: Engine, due: Round, keep: Mapping[str, Tensor]) -> Applied:
        """One round, all ranks together."""

    def pieces(self, engine: Engine, part: str) -> Iterator[Piece]:
        """What it has accumulated, for checkpoints."""


def parameters_of(engine: Engine, role: str) -> int:
    """Parameters of a role's model, each once, without what belongs to the pruning."""
    from distill_system.pruning.masks import is_private

    named = engine.objective.roles[role].named_parameters()
    return sum(getattr(p, "ds_numel", p.numel()) for name, p in named if not is_private(name))
