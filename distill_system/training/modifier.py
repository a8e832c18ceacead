"""What changes a model while it trains: a pruner today. The loop calls it at fixed places and keeps its state with the rest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from distill_system.training.engine import Engine, Piece


@dataclass
class Change:
    """What a modifier did between two steps.

    Attributes:
        fresh: the model is another than before: what was best until now is none to hand on.
        stop: nothing more is to be trained, whatever steps are left.
        halt: training must stop here, with a checkpoint, because the model gets another shape.
        lines: for the journal, without phase, step and time.
    """

    fresh: bool = False
    stop: bool = False
    halt: bool = False
    lines: list[dict[str, Any]] = field(default_factory=list)


class Modifier(Protocol):
    """Acts on the engine's model between steps. All decisions rest on numbers that all ranks share."""

    @property
    def settled(self) -> bool:
        """Nothing more will change: from here on the best weights count."""

    def wants_gradients(self, step: int) -> bool:
        """Whether `observe` is to be called in this step (counted by finished steps)."""

    def observe(self, engine: Engine) -> None:
        """Gradients are complete, weights not yet changed."""

    def wants_figures(self, step: int, *, last: bool) -> bool:
        """Whether validation figures are wanted after `step` finished steps; `last`: no more will come."""

    def after_step(self, engine: Engine, step: int, figures: Mapping[str, Any] | None, *, last: bool) -> Change:
        """Called after each step, and once before the first of this process; the same step may come twice."""

    def window(self, step: int) -> tuple[int, int]:
        """The steps [first, end) over which the learning rate's schedule runs once."""

    def state(self) -> dict[str, Any]:
        """What JSON can hold of it, for the checkpoint."""

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def pieces(self, engine: Engine) -> Iterator[Piece]:
        """Tensors of its state by parameter name, to write and to read."""
