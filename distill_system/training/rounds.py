"""The rounds of a prune phase: when the schedule says so, score, select and apply; judge each round by its metric; go back to the last good one.

A round writes masks, or, where layers go or the masks of whole neurons and heads are final, asks for a halt: the phase then builds the smaller model and
reads the checkpoint into it, moments and all.

Shapes: U units of a group.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from distill_system import distributed
from distill_system.errors import refuse
from distill_system.files import TEMPORARY
from distill_system.pruning.base import Surgery, from_hex, to_hex
from distill_system.pruning.schedules import Round, rounds_of
from distill_system.settings import Gate, Pruning
from distill_system.training import checkpoint
from distill_system.training.engine import Engine, Piece
from distill_system.training.modifier import Change
from distill_system.training.surgeon import Applied, Surgeon, Tally
from distill_system.verdict import judge

SEEN = "seen"  # the part of a checkpoint that holds what a score has accumulated


class Rounds:
    """The modifier of a prune phase.

    Args:
        surgeon: score and selection of this kind of pruning, on the present engine's model.
        settings: of the schedule.
        total_steps: of the phase.
        gate: bound that the metric must keep after each round's recovery.
        folder: of the phase's checkpoints.
        identity: of the phase.
        whole: weights in the groups of the model before any cut.
        tell: says a sentence to the person at the terminal.
        key: of the phase, for refusals.
    """

    def __init__(
        self,
        surgeon: Surgeon,
        settings: Pruning,
        total_steps: int,
        *,
        gate: Gate,
        folder: Path,
        identity: str,
        monitor: str,
        whole: int,
        tell: Callable[[str], None],
        key: str,
    ) -> None:
        self.surgeon, self.settings, self.gate = surgeon, settings, gate
        self.rounds = rounds_of(settings, total_steps)
        self.total_steps, self.folder, self.identity, self.monitor = total_steps, folder, identity, monitor
        self.tell, self.key = tell, key
        self._begun = False
        self.memory: dict[str, Any] = {
            "done": 0,
            "records": [],
            "surgeries": [],  # that the model of the checkpoint has undergone
            "pending": None,  # that it is to undergo before training goes on
            "keep": {},  # kept units by group, as hexadecimal bits
            "cut": False,
            "ended": False,  # a round failed its gate: nothing more is pruned or trained
            "rolled_back": None,
            "instead": None,  # the folder whose weights are taken in place of this checkpoint's
            "whole": whole,
        }

    @property
    def settled(self) -> bool:
        return self.memory["ended"] or self.memory["done"] == len(self.rounds)

    def wants_gradients(self, step: int) -> bool:
        return self.surgeon.watches_gradients and not self.settled

    def observe(self, engine: Engine) -> None:
        self.surgeon.observe(engine)

    def wants_figures(self, step: int, *, last: bool) -> bool:
        if self.memory["ended"]:
            return False
        judged = [round.step for round in self.rounds if round.number == self.memory["done"] + 1]
        return step in judged or (last and self.settled)

    def window(self, step: int) -> tuple[int, int]:
        if self.settings.rewind == "none":
            return 0, self.total_steps
        edges = sorted({0, *(round.step for round in self.rounds), self.total_steps})
        first = max(edge for edge in edges if edge <= step)
        return first, min((edge for edge in edges if edge > first), default=self.total_steps)

    def after_step(self, engine: Engine, step: int, figures: Mapping[str, Any] | None, *, last: bool) -> Change:
        change = Change()
        if not self._begun:
            self._begun = True
            done = self.memory["done"]
            self.surgeon.begin(engine, self.rounds[done - 1].sparsity if done else 0.0)
        if self.memory["ended"]:
            return self._cut_units(change)
        self._judge(engine, step, figures, change, last)
        if change.halt:
            return change
        for due in self.rounds[self.memory["done"] :]:
            if due.step > step:
                break
            self._prune(engine, due, step, change)
            if change.halt:
                break
        return change

    def _judge(self, engine: Engine, step: int, figures: Mapping[str, Any] | None, change: Change, last: bool) -> None:
        """Closes the round under way where it ends: its metric is known, and it is kept or undone."""
        records, number = self.memory["records"], self.memory["done"]
        over = last if number == len(self.rounds) else step >= self.rounds[number].step
        if not over or (records and records[-1]["round"] == number and records[-1]["metric"] is not None):
            return
        if not records:
            records.append(self._record(0, step, 0.0, self.surgeon.count(engine, self.kept())))
        records[-1]["metric"] = None if figures is None else figures.get(self.monitor)
        verdict = judge(self.gate, dict(figures)) if figures is not None and number > 0 else None
        if verdict and not verdict["passed"]:
            self._roll_back(number, step, figures or {}, change)
        elif self.gate.metric is not None and figures is not None:
            self._keep_good(engine, number)

    def _keep_good(self, engine: Engine, number: int) -> None:
        state = {"identity": self.identity, "modifier": self.state(), "progress": {}}
        checkpoint.save(self._good(number), engine, state, weights_only=True)
        if distributed.is_main():
            for old in self.folder.glob("round_*"):
                if old != self._good(number):
                    shutil.rmtree(old, ignore_errors=True)
            for rest in self.folder.glob(f"{TEMPORARY}round_*"):
                shutil.rmtree(rest, ignore_errors=True)
        distributed.barrier()

    def _good(self, number: int) -> Path:
        return self.folder / f"round_{number:04d}"

    def _roll_back(self, number: int, step: int, figures: Mapping[str, Any], change: Change) -> None:
        store, fault = checkpoint.opened(self._good(number - 1), self.identity)
        if store is None:
            self.tell(
                f"round {number} misses its bound, but the round before can't be brought back: its weights {fault}"
            )
            return
        records = self.memory["records"]
        records[-1]["state"] = "rolled_back"
        bound = bound_in_words(self.gate)
        then = store.state["modifier"]
        story = {
            "round": number,
            "step": step,
            "metric": figures.get(self.gate.metric or ""),
            "bound": bound,
            "sparsity": records[-1]["sparsity"],
            "handed_on": number - 1,
        }
        self.memory |= {"surgeries": then["surgeries"], "keep": then["keep"], "cut": then["cut"], "pending": None}
        self.memory |= {"ended": True, "rolled_back": story, "instead": self._good(number - 1).name}
        self.tell(
            f"round {number} ({records[-1]['sparsity']:.1%} pruned) ends with {self.gate.metric} {story['metric']:.4g}, "
            f"but must keep {bound}: back to round {number - 1}, which is handed on"
        )
        change.lines.append({"event": "rollback", **{key: value for key, value in story.items() if key != "step"}})
        change.fresh = change.halt = change.stop = True

    def _prune(self, engine: Engine, due: Round, step: int, change: Change) -> None:
        if due.number == 1 and self.settings.rewind == "weights":
            state = {"identity": self.identity, "modifier": self.state(), "progress": {}}
            checkpoint.save(self.folder / "rewind_00000000", engine, state)
        applied = self.surgeon.apply(engine, due, self.kept())
        self.memory["done"] = due.number
        self.memory["keep"] |= {name: to_hex(keep_U) for name, keep_U in applied.keep.items()}
        record = self._record(due.number, step, due.sparsity, applied.tally or self.surgeon.count(engine, self.kept()))
        self.memory["records"].append(record)
        self._check_nothing_vanished(engine, applied)
        self.tell(
            f"round {due.number} of {len(self.rounds)}: {record['sparsity']:.1%} pruned, {record['remaining']:,} parameters remain"
            + (f" ({applied.sentence})" if applied.sentence else "")
        )
        change.lines.append(
            {
                "event": "prune",
                "round": due.number,
                "target": due.sparsity,
                "sparsity": record["sparsity"],
                "remaining": record["remaining"],
            }
        )
        change.fresh = True
        if applied.surgery is not None:
            self.memory["pending"] = applied.surgery.as_json()
            change.halt = True
        elif due.number == len(self.rounds):
            self._cut_units(change)
        if self.settings.rewind == "weights" and due.number > 1:
            store, fault = checkpoint.opened(self.folder / "rewind_00000000", self.identity)
            if store is None:
                raise RuntimeError(f"the weights to rewind to {fault}; start the phase anew")
            checkpoint.load(store, engine, only=lambda name: not name.endswith("_mask"))

    def _check_nothing_vanished(self, engine: Engine, applied: Applied) -> None:
        if applied.surgery is not None:
            return
        alive = self.surgeon.counts(engine, self.kept())
        gone = [name for name, count in alive.items() if count == 0]
        layers = {group.layer for group in self.surgeon.groups if alive[group.name] > 0}
        for group in self.surgeon.groups:
            if group.layer not in layers:
                raise refuse(
                    f"{self.key}.schedule.final_sparsity",
                    f"leaves nothing of layer {group.layer} ({group.name}); lower it (or a soft threshold's penalty), or take pruner.scope=layer",
                )
        if gone:
            rest = f" and {len(gone) - 1} other matrices" if len(gone) > 1 else ""
            self.tell(f"nothing is left of {gone[0]}{rest}; pruner.scope=layer would keep some of each")

    def _cut_units(self, change: Change) -> Change:
        """Where masks of whole lines are final, the lines are cut out."""
        if self.surgeon.cuts_units and not self.memory["cut"] and self.memory["keep"]:
            keep = {name: kept_U.nonzero().flatten().tolist() for name, kept_U in self.kept().items()}
            if all(bool(kept_U.all()) for kept_U in self.kept().values()):
                self.memory["cut"] = True  # nothing goes
                return change
            self.memory["pending"] = Surgery(self.surgeon.kind, keep).as_json()
            change.halt = True
        return change

    def _record(self, number: int, step: int, target: float, tally: Tally) -> dict[str, Any]:
        """Sparsity is what is gone of all weights that could go, counted from what the forward uses."""
        return {
            "round": number,
            "step": step,
            "target": target,
            "sparsity": 1 - tally.alive / self.memory["whole"],
            "remaining": tally.remaining,
            "metric": None,
            "state": "kept",
        }

    def kept(self) -> dict[str, Tensor]:
        sizes = {group.name: group.units for group in self.surgeon.groups}
        return {name: from_hex(bits, sizes[name]) for name, bits in self.memory["keep"].items() if name in sizes}

    def sparsity(self, engine: Engine) -> float:
        """Share of the weights that is gone, counted anew."""
        return 1 - self.surgeon.count(engine, self.kept()).alive / self.memory["whole"]

    def alive_of_groups(self, engine: Engine) -> dict[str, int]:
        """Weights that are left, by group."""
        return self.surgeon.counts(engine, self.kept())

    def state(self) -> dict[str, Any]:
        return dict(self.memory)

    def restore(self, state: Mapping[str, Any]) -> None:
        """The model has been built as the checkpoint asks for: what was pending is done."""
        self.memory = dict(state)
        if self.memory["pending"] is not None:
            surgery = Surgery(**self.memory["pending"])
            self.memory["surgeries"] = [*self.memory["surgeries"], surgery.as_json()]
            self.memory |= {"pending": None, "keep": {}, "cut": self.memory["cut"] or surgery.kind != "layers"}
        self.memory["instead"] = None

    def pieces(self, engine: Engine) -> Iterator[Piece]:
        if self.surgeon.watches_gradients and not self.settled:
            yield from self.surgeon.pieces(engine, SEEN)


def bound_in_words(gate: Gate) -> str:
    sides = [("at least", gate.at_least), ("at most", gate.at_most)]
    return f"{gate.metric} " + " and ".join(f"{word} {value:g}" for word, value in sides if value is not None)
