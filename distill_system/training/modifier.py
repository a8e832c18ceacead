"""What changes a model while it trains: a pruner today. The loop calls it at fixed places and keeps its state with the rest."""

from collections.abc import Iterator, Mapping, Sequence
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


class Several:
    """Modifiers that act one after another in each step (pruning a model that is quantized meanwhile); the first one rules the learning rate, and its state is told as if it were alone."""

    def __init__(self, modifiers: Sequence[Modifier]) -> None:
        self.modifiers = list(modifiers)
        self._wanting: list[Modifier] = []

    @property
    def settled(self) -> bool:
        return all(modifier.settled for modifier in self.modifiers)

    def wants_gradients(self, step: int) -> bool:
        self._wanting = [modifier for modifier in self.modifiers if modifier.wants_gradients(step)]
        return bool(self._wanting)

    def observe(self, engine: Engine) -> None:
        for modifier in self._wanting:
            modifier.observe(engine)

    def wants_figures(self, step: int, *, last: bool) -> bool:
        return any(modifier.wants_figures(step, last=last) for modifier in self.modifiers)

    def after_step(self, engine: Engine, step: int, figures: Mapping[str, Any] | None, *, last: bool) -> Change:
        whole = Change()
        for modifier in self.modifiers:
            change = modifier.after_step(engine, step, figures, last=last)
            whole.fresh |= change.fresh
            whole.stop |= change.stop
            whole.halt |= change.halt
            whole.lines += change.lines
        return whole

    def window(self, step: int) -> tuple[int, int]:
        return self.modifiers[0].window(step)

    def state(self) -> dict[str, Any]:
        first, *others = self.modifiers
        return {**first.state(), "beside": [modifier.state() for modifier in others]}

    def restore(self, state: Mapping[str, Any]) -> None:
        states = [{name: value for name, value in state.items() if name != "beside"}, *state["beside"]]
        for modifier, own in zip(self.modifiers, states, strict=True):
            modifier.restore(own)

    def pieces(self, engine: Engine) -> Iterator[Piece]:
        for modifier in self.modifiers:
            yield from modifier.pieces(engine)
