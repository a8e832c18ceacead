"""Trains one objective from wherever its last checkpoint left it to its last step."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from distill_system import distributed
from distill_system.settings import Training
from distill_system.signals import Signals
from distill_system.training import checkpoint
from distill_system.training.emit import Batch
from distill_system.training.engine import Engine, Piece, named_state
from distill_system.training.modifier import Modifier
from distill_system.training.module import Distillation
from distill_system.training.recorder import Recorder
from distill_system.training.strategy import make_trainer


@dataclass
class Progress:
    """State of a phase's training beside the tensors; goes into every checkpoint."""

    step: int = 0
    bad_steps: int = 0
    best: dict[str, float] = field(default_factory=dict)  # of the monitored metric, by role
    best_step: dict[str, int] = field(default_factory=dict)
    without_progress: int = 0  # validations since the best
    resumes: int = 0
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    early_stop: bool = False


@dataclass
class Outcome:
    progress: Progress
    preempted: bool = False
    halted: bool = False  # the model gets another shape here; training goes on with it
    warnings: list[str] = field(default_factory=list)


def steps_of(training: Training, steps_per_epoch: int) -> int:
    """Optimizer steps of a phase: `max_steps`, or what `max_epochs` give, whichever is fewer."""
    by_epochs = math.ceil(training.max_epochs * steps_per_epoch) if training.max_epochs else None
    limits = [limit for limit in (training.max_steps, by_epochs) if limit is not None]
    return min(limits)


class Fit:
    """The life of one training: resume, step, validate, save, stop.

    Args:
        engine: holds the objective.
        teachers: what each teacher says of a batch, or None.
        training: the phase's settings.
        folder: `<run>/<phase>/checkpoints`.
        phase: name.
        identity: digest of all that determines the result; a checkpoint of another identity is not used.
        seed: of the phase.
        total_steps, steps_per_epoch: of the phase.
        loader: called with the first step, gives the items of the remaining steps.
        validate: figures of each role on the validation split (all ranks together), or None where there is none.
        better: whether a first value of the monitored metric is better than a second.
        monitor: that metric.
        write: takes journal lines (rank 0).
        rewind: drops journal lines after a step (rank 0).
        stop_asked: whether this process got a signal.
        announce: told the total of steps, on rank 0, when the journal stands at the step to go on from and before anything is written.
        modifier: changes the model while it trains, or None.
        continued: this process goes on with what it halted itself: no start or resume to tell of.
        loading: how the newest checkpoint becomes this engine's state, where that isn't plain reading.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        teachers: Callable[[Batch], Mapping[str, Signals]] | None,
        training: Training,
        folder: Path,
        phase: str,
        identity: str,
        seed: int,
        total_steps: int,
        steps_per_epoch: int,
        loader: Callable[[int], Any],
        validate: Callable[[], Mapping[str, Mapping[str, float | None]]] | None,
        better: Callable[[float, float], bool],
        monitor: str,
        write: Callable[[list[dict[str, Any]]], None],
        rewind: Callable[[int], None],
        stop_asked: Callable[[], bool],
        announce: Callable[[int], None] = lambda total_steps: None,
        modifier: Modifier | None = None,
        continued: bool = False,
        loading: checkpoint.Loading | None = None,
    ) -> None:
        self.engine, self.teachers, self.training = engine, teachers, training
        self.folder, self.phase, self.identity, self.seed = folder, phase, identity, seed
        self.total_steps, self.loader = total_steps, loader
        self.validate, self.better, self.monitor = validate, better, monitor
        self.write, self.rewind, self.stop_asked, self.announce = write, rewind, stop_asked, announce
        self.modifier, self.continued, self.loading = modifier, continued, loading
        self.eval_every = training.eval_every or steps_per_epoch
        self.save_every = training.checkpoint_every or max(10, math.ceil(total_steps / 10))
        self.outcome = Outcome(Progress())
        self._figures: dict[int, dict[str, Any]] = {}  # of the last validation, by its step

    @property
    def progress(self) -> Progress:
        return self.outcome.progress

    def run(self, device: torch.device) -> Outcome:
        self._resume()
        self._recorder = self._make_recorder()
        self._started = time.perf_counter()
        self._seconds_before = self.progress.seconds
        if self._modify(self.progress.step, last=self._is_last(self.progress.step)):
            self._save(self.progress.step)
        elif self.progress.step < self.total_steps and not self.progress.early_stop:
            self.module = Distillation(
                self.engine,
                teachers=self.teachers,
                recorder=self._recorder,
                after_step=self._after_step,
                stop_asked=self.stop_asked,
                loader=self.loader(self.progress.step),
                first_step=self.progress.step,
                total_steps=self.total_steps,
                schedule={"lr": self.training.lr, "schedule": self.training.schedule, "warmup": self.training.warmup},
                seed=self.seed,
                modifier=self.modifier,
            )
            make_trainer(device).fit(self.module)
        self._settle()
        if not self.outcome.preempted and not self.outcome.halted:
            self._take_best()
        return self.outcome

    def _settle(self) -> None:
        """Eval mode, with the same buffers on all ranks: each has seen other rows, so running statistics of a batch norm differ; rank 0's are handed on."""
        self.engine.objective.eval()
        for _, buffer in named_state(self.engine.objective):
            if not isinstance(buffer, torch.nn.Parameter):
                distributed.from_lead(buffer)

    def _resume(self) -> None:
        store, self.outcome.warnings = checkpoint.newest(self.folder, self.identity)
        if store is None:
            distributed.main_only(lambda: self._rewind_to(-1))  # of a start that was killed before its first checkpoint
            self._event("start", 0, **self._passed_over())
            return
        self.outcome.progress = Progress(**store.state["progress"])
        if self.modifier:
            self.modifier.restore(store.state["modifier"])
        checkpoint.load(store, self.engine, extra=self._extra(), loading=self.loading)
        if self.continued:
            return
        self.progress.resumes += 1
        distributed.main_only(lambda: self._rewind_to(self.progress.step))
        place = {"ranks": distributed.world(), "strategy": self.training.strategy}
        self._event("resume", self.progress.step, **place, **self._passed_over())

    def _extra(self) -> list[Piece]:
        return list(self.modifier.pieces(self.engine)) if self.modifier else []

    def _is_last(self, step: int) -> bool:
        return step == self.total_steps or self.progress.early_stop

    def _modify(self, step: int, *, last: bool) -> bool:
        """Lets the modifier act; answers whether training must halt for a model of another shape."""
        if self.modifier is None:
            return False
        figures = None
        if self.modifier.wants_figures(step, last=last) and self.validate:
            figures = self._figures.get(step) or self._validate(step)
        change = self.modifier.after_step(self.engine, step, figures, last=last)
        if change.fresh:
            self.progress.best, self.progress.best_step, self.progress.without_progress = {}, {}, 0
        self.progress.early_stop |= change.stop
        for line in change.lines:
            self._event(line.pop("event"), step, **line)
        self.outcome.halted = change.halt
        if change.lines or change.fresh:
            self._recorder.restart_clock()
        return change.halt

    def _rewind_to(self, step: int) -> None:
        self.rewind(step)
        self.announce(self.total_steps)

    def _passed_over(self) -> dict[str, str]:
        """Told in the journal at once: warnings reach the report only when the phase ends."""
        return {"passed_over": " | ".join(self.outcome.warnings)} if self.outcome.warnings else {}

    def _make_recorder(self) -> Recorder:
        objective = self.engine.objective
        return Recorder(
            phase=self.phase,
            names=[term.name for term in objective.terms],
            roles=objective.role_names,
            changing=any(distributed.everyone(objective.weights_change)),
            log_every=self.training.log_every,
            flush_every=self.training.flush_every,
            max_bad_steps=self.training.max_bad_steps,
            total_steps=self.total_steps,
            write=self.write,
            bad_steps=self.progress.bad_steps,
        )

    def _after_step(self, step: int, told_to_stop: bool) -> bool:
        """What happens between steps; answers whether to stop. Decisions rest on numbers all ranks share."""
        self.progress.step = step
        last = step == self.total_steps
        if self.validate and (step % self.eval_every == 0 or last):
            self._validate(step)
        halt = self._modify(step, last=self._is_last(step))
        stop = told_to_stop or self.progress.early_stop or halt
        if step % self.save_every == 0 or last or stop:
            self._recorder.flush()
            self._save(step)
            self._recorder.restart_clock()
        if told_to_stop and not last:
            self.outcome.preempted = True
            self._event("preempted", step)
        return stop

    def _validate(self, step: int) -> dict[str, Any]:
        """Figures of the only role, or of each role, on the validation split."""
        assert self.validate is not None
        self._recorder.flush()
        self._settle()
        found = self.validate()
        self.engine.objective.train()
        self._recorder.restart_clock()
        line: dict[str, Any] = {"phase": self.phase, "step": step, "time": time.time()}
        for role, figures in found.items():
            line |= {f"valid/{role}/{k}" if len(found) > 1 else f"valid/{k}": v for k, v in figures.items()}
        distributed.main_only(lambda: self.write([line]))
        told = dict(next(iter(found.values()))) if len(found) == 1 else dict(found)
        self._figures = {step: told}
        if self.modifier and not self.modifier.settled:
            return told
        improved = False
        for role, figures in found.items():
            value = figures[self.monitor]  # None where it isn't finite, or no row has a label
            if value is not None and (role not in self.progress.best or self.better(value, self.progress.best[role])):
                self.progress.best[role], self.progress.best_step[role] = float(value), step
                improved = True
        if improved:
            self.progress.without_progress = 0
            if self.training.keep == "best" and step < self.total_steps:
                checkpoint.save(self._best_folder(step), self.engine, self._state(), weights_only=True)
            return told
        self.progress.without_progress += 1
        if self.training.patience and self.progress.without_progress >= self.training.patience:
            self.progress.early_stop = True
            self._event("early_stop", step)
        return told

    def _state(self) -> dict[str, Any]:
        self.progress.bad_steps = self._recorder.bad_steps
        self.progress.seconds = self._seconds_before + time.perf_counter() - self._started
        own = {"identity": self.identity, "progress": asdict(self.progress), "strategy": self.training.strategy}
        return own | ({"modifier": self.modifier.state()} if self.modifier else {})

    def _save(self, step: int) -> None:
        self.progress.samples += self._recorder.samples
        self.progress.tokens += self._recorder.tokens
        self._recorder.samples = self._recorder.tokens = 0
        checkpoint.save(self.folder / f"step_{step:08d}", self.engine, self._state(), extra=self._extra())
        if distributed.is_main():
            checkpoint.prune(self.folder, self.training.keep_last, step)
            checkpoint.prune_best(self.folder)

    def _best_folder(self, step: int) -> Path:
        return (
            self.folder / f"best_{step:08d}"
        )  # named by its step: a checkpoint that is resumed finds the best of its own past

    def _take_best(self) -> None:
        """Puts the best weights of each role back, where they are not the last."""
        if self.training.keep != "best":
            return
        only = len(self.progress.best_step) == 1
        for role, best_step in self.progress.best_step.items():
            if best_step == self.progress.step:
                continue
            store, fault = checkpoint.opened(self._best_folder(best_step), self.identity)
            if store is None:
                whose = "the" if only else f"{role}'s"
                self.outcome.warnings.append(
                    f"{whose} best weights (step {best_step}) can't be used, the last are handed on: their checkpoint {fault}"
                )
                continue
            checkpoint.load(store, self.engine, weights_only=True, role=None if only else role)

    def _event(self, event: str, step: int, **more: Any) -> None:
        line = {"phase": self.phase, "step": step, "time": time.time(), "event": event, **more}
        distributed.main_only(lambda: self.write([line]))
