"""The one LightningModule: an optimizer step of a student on its losses, with or without a teacher, whatever the engine.

Shapes: L losses.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from distill_system import distributed
from distill_system.signals import Signals
from distill_system.training.emit import Batch
from distill_system.training.engine import Engine
from distill_system.training.modifier import Modifier
from distill_system.training.optim import learning_rate
from distill_system.training.recorder import Recorder

STEP_SEEDS = 1_000_003  # a prime: seeds of (phase seed, step, rank) don't collide in practice


class Distillation(L.LightningModule):
    """Steps an engine through micro-batches.

    Args:
        engine: trains the objective (student and losses).
        teachers: what each teacher says of a batch, aligned to the student; None where no loss asks.
        recorder: takes each step's figures as tensors.
        after_step: called with the number of finished steps; validates, saves, and answers whether to stop.
        stop_asked: whether this process was told to leave (a signal); all ranks agree before any of them acts.
        modifier: looks at gradients, and may let the learning rate run anew.
        seed: of the phase; dropout of a step is a function of (seed, step, rank), so there is no RNG state to restore.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        teachers: Callable[[Batch], Mapping[str, Signals]] | None,
        recorder: Recorder,
        after_step: Callable[[int, bool], bool],
        stop_asked: Callable[[], bool],
        loader: Iterable[list[Batch]],
        first_step: int,
        total_steps: int,
        schedule: dict[str, Any],
        seed: int,
        modifier: Modifier | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        # Plain attributes: Lightning must not move, count, save or switch the modules inside.
        self.__dict__.update(engine=engine, teachers=teachers)
        self.recorder = recorder
        self.after_step = after_step
        self.stop_asked = stop_asked
        self.loader = loader
        self.step = first_step
        self.total_steps = total_steps
        self.schedule = schedule
        self.seed = seed
        self.modifier = modifier
        self.stopped = False
        self.weights = engine.objective.weights(0.0)
        self.weight_L = torch.tensor(self.weights)

    def configure_optimizers(self) -> Any:
        optimizer = getattr(self.engine, "base", self.engine.optimizer)
        return optimizer

    def train_dataloader(self) -> Iterable[list[Batch]]:
        return self.loader

    def on_train_start(self) -> None:
        self.weight_L = self.weight_L.to(self.device)
        self.engine.objective.train()

    def training_step(self, dataloader_iter: Iterator[tuple[list[Batch], int, int]]) -> None:
        """One optimizer step. Given the iterator (Lightning goes by the argument's name), it fetches and moves its batches itself; Lightning's
        way from a loader to a step goes through a dozen hooks, whose signatures it inspects in every step.
        """
        micro_batches = self._moved(next(dataloader_iter)[0])
        seed_everything(self.seed, self.step, self.device)
        count_L, told_to_stop = self._agree(micro_batches)
        count_L = count_L.clamp(min=1)
        self._follow_schedules()
        scale_L = self.weight_L / count_L * distributed.data_world()  # engines average gradients over ranks
        sum_L = torch.zeros_like(count_L, dtype=torch.float64)
        for number, batch in enumerate(micro_batches, start=1):
            heard = self.teachers(batch) if self.teachers else None
            last = number == len(micro_batches)
            loss, sums = self.engine.forward(batch, heard, scale_L, last=last)
            self.engine.backward(loss, last=last)
            sum_L += sums
        if self.modifier and self.modifier.wants_gradients(self.step):
            self.modifier.observe(self.engine)
        first, end = self.modifier.window(self.step) if self.modifier else (0, self.total_steps)
        lr = learning_rate(self.step - first, end - first, **self.schedule)
        norm_R = self.engine.step(lr)
        self.recorder.add(self.step + 1, sum_L / count_L, norm_R, lr, micro_batches, self.weights)
        self.step += 1
        self.stopped = self.after_step(self.step, told_to_stop)
        if self.stopped:
            self.trainer.should_stop = True

    def _follow_schedules(self) -> None:
        """Weights and temperatures of this step: pure functions of how much of the phase is done."""
        objective = self.engine.objective
        progress = self.step / self.total_steps
        objective.set_progress(progress)
        if objective.weights_change:
            self.weights = objective.weights(progress)
            self.weight_L = torch.tensor(self.weights, device=self.device)

    def _moved(self, micro_batches: list[Batch]) -> list[Batch]:
        if self.device.type == "cpu":
            return micro_batches
        return [{name: x.to(self.device, non_blocking=True) for name, x in batch.items()} for batch in micro_batches]

    def _agree(self, micro_batches: list[Batch]) -> tuple[Tensor, bool]:
        """Counts `[L]` over all ranks and micro-batches, and whether any rank was told to stop, in one reduction.

        Where a cohort's members live apart, each rank counts its own member's terms only: the sum over all ranks is right for every term.
        """
        objective = self.engine.objective
        count_L = objective.count(micro_batches[0])
        for batch in micro_batches[1:]:
            count_L = count_L + objective.count(batch)
        if distributed.world() == 1:
            return count_L, self.stop_asked()
        told = torch.cat([count_L, count_L.new_tensor([float(self.stop_asked())])])
        distributed.sum_over_ranks(told)
        return told[:-1], self._read(told[-1])

    def _read(self, flag: Tensor) -> bool:
        """The flag without making the host wait for a GPU's present step: there, the flag of the step before is read."""
        if flag.device.type == "cpu":
            return bool(flag > 0)
        before = getattr(self, "_flag_before", None)
        pinned = torch.empty((), pin_memory=True).copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._flag_before = (pinned, event)
        if before is None:
            return False
        before[1].synchronize()
        return bool(before[0] > 0)


def seed_everything(seed: int, step: int, device: torch.device) -> None:
    """Seeds dropout for one step on this rank."""
    value = (seed * STEP_SEEDS + step) * 4099 + distributed.rank()
    torch.default_generator.manual_seed(value % 2**63)
    if device.type == "cuda":
        torch.cuda.manual_seed(value % 2**63)
