"""What every score is: the worth of each weight of a run, or of each unit from the activations that a calibration saw. Higher stays.

A score never sees a whole model: it is asked for the elements that this rank holds, a chunk at a time, and its answer hangs on nothing else, so that
the same weights get the same scores however they are dealt out to ranks.

Shapes: n elements of a run, I inputs of a matrix, U units of a group.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor, nn

from distill_system.pruning.base import Run
from distill_system.pruning.calibration import Watcher

CHUNK = 1 << 17  # elements that are scored at once: what they need meanwhile stays below the size of a small matrix


class Score:
    """Base of all scores; what a subclass adds is a constructor with its own settings and `of_elements` or a watcher."""

    # Restated by each score: the config check reads them from the class's own source, without importing this module.
    suits: ClassVar[tuple[str, ...]] = ("weights", "blocks", "neurons", "heads")  # kinds of units it can value
    # What must be seen first: "" nothing; "gradients" of the loss, in every step (`accumulate`); "inputs" of each matrix or "activations" of the
    # units themselves, on calibration rows (`watcher`).
    watches: ClassVar[str] = ""

    seed = 0  # of the run; set before scores are asked for, as is the next
    round = 0  # of pruning

    @property
    def learned(self) -> bool:
        """Whether scores are trained: parameters beside the masks, whose values come as `seen`."""
        return False

    @property
    def observes(self) -> bool:
        """Whether it adds up what the gradients of training steps say (`accumulate`)."""
        return self.watches == "gradients" and not self.learned

    @property
    def soft(self) -> bool:
        """Whether learned scores say alone which weights stay, whatever the schedule wants."""
        return False

    @property
    def revives(self) -> bool:
        """Whether a weight that is masked is scored on, and may come back; else it stays out."""
        return False

    def of_elements(self, run: Run, seen: Tensor | None) -> Tensor:
        """The worth `[n]` (float32) of a run's elements.

        Args:
            run: the elements.
            seen: `[n]` what `accumulate` or training made of them; where inputs are watched `[I]`, the matrix's result of the watcher; else None.
        """
        raise NotImplementedError

    def accumulate(self, seen_n: Tensor, values_n: Tensor, gradient_n: Tensor) -> None:
        """Adds one step's gradients to what was seen, in place.

        Args:
            seen_n: float32, zeros at first.
            values_n: weights before the optimizer's step, unmasked.
            gradient_n: of the loss by the weights, as if none was masked.
        """
        raise NotImplementedError

    def watcher(self, modules: Mapping[str, nn.Module]) -> Watcher:
        """What looks at the inputs of these modules on calibration rows."""
        raise NotImplementedError

    def of_units(self, seen_U: Tensor) -> Tensor:
        """The worth `[U]` of a group's units, from the mean over each unit's activations of what the watcher found."""
        return seen_U

    def chunks(self, run: Run, seen: Tensor | None) -> Iterator[tuple[Run, Tensor]]:
        """The parts of a run with their scores `[n]`, one after another, so that scores are never held all together.

        Args:
            run: the elements.
            seen: of all of them, as `of_elements` takes it.
        """
        for start in range(0, run.values_n.numel(), CHUNK):
            part = run.part(start, start + CHUNK)
            along = seen if seen is None or self.watches == "inputs" else seen[start : start + CHUNK]
            yield part, self.of_elements(part, along)
