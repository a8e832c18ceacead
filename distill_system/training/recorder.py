"""Figures of the steps: kept as tensors on the device, fetched together every n steps, so that no step waits for the host.

Shapes: L losses, S steps in the buffer.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distill_system import distributed
from distill_system.training.objective import Batch

EARLY = {1, 2, 5, 10}  # steps that are fetched at once, so that a user soon sees numbers


class TooManyBadSteps(RuntimeError):
    """The loss was NaN or infinite more often than `training.max_bad_steps` allows."""


class Recorder:
    """Collects each step's figures and hands lines to `write` on rank 0.

    Args:
        phase: its name.
        names: of the losses, in the objective's order.
        weights: of the losses.
        log_every: steps between two lines.
        flush_every: steps between two fetches.
        max_bad_steps: bad steps that are borne.
        total_steps: of the phase; its last step is always logged.
        write: takes finished lines (called on rank 0 only).
        bad_steps: as counted before a resume.
    """

    def __init__(
        self,
        *,
        phase: str,
        names: Sequence[str],
        weights: Sequence[float],
        log_every: int,
        flush_every: int,
        max_bad_steps: int,
        total_steps: int,
        write: Callable[[list[dict[str, Any]]], None],
        bad_steps: int = 0,
    ) -> None:
        self.phase, self.names, self.weights = phase, list(names), list(weights)
        self.log_every, self.flush_every, self.total_steps = log_every, flush_every, total_steps
        self.max_bad_steps, self.bad_steps = max_bad_steps, bad_steps
        self.write = write
        self.samples = self.tokens = 0
        self._rows: list[tuple[int, float, list[Tensor]]] = []
        self._figures: list[tuple[Tensor, Tensor]] = []
        self._size = [0, 0]
        self._since = time.perf_counter()

    def add(self, step: int, mean_L: Tensor, norm: Tensor, lr: float, micro_batches: list[Batch]) -> None:
        self._figures.append((mean_L, norm.detach()))
        self._rows.append((step, lr, [batch["index"] for batch in micro_batches]))
        for batch in micro_batches:
            shape = batch["index"].shape[0], batch["labels"].numel() if batch["labels"].dim() > 1 else _positions(batch)
            self._size[0] += shape[0]
            self._size[1] += shape[1]
        if step in EARLY or step % self.flush_every == 0 or step == self.total_steps:
            self.flush()

    def flush(self) -> None:
        """Fetches what is buffered (all ranks together), writes the lines that are due, and counts bad steps.

        Raises:
            TooManyBadSteps: on every rank.
        """
        if not self._rows:
            return
        means_SL = torch.stack([mean_L for mean_L, _ in self._figures]).double()
        norm_S = torch.stack([norm for _, norm in self._figures])
        size = torch.tensor(self._size, dtype=torch.float64, device=means_SL.device)
        packed = torch.cat([means_SL.flatten(), size])
        values = distributed.sum_over_ranks(packed).tolist()  # the one place where the host waits
        samples, tokens = values[-2:]
        norms, width = norm_S.tolist(), means_SL.shape[1]
        seconds = max(time.perf_counter() - self._since, 1e-9)
        self.samples, self.tokens = self.samples + int(samples), self.tokens + int(tokens)
        rates = {"samples_per_s": round(samples / seconds, 1), "tokens_per_s": round(tokens / seconds, 1)}
        lines, bad = [], []
        for row, ((step, lr, index), norm) in enumerate(zip(self._rows, norms, strict=True)):
            means = values[row * width : (row + 1) * width]
            total = sum(weight * mean for weight, mean in zip(self.weights, means, strict=True))
            finite = math.isfinite(norm) and math.isfinite(total)
            if not finite:
                bad.append((step, index))
                lines.append({"phase": self.phase, "step": step, "time": time.time(), "event": "bad_step"})
            if step % self.log_every == 0 or step == self.total_steps:
                parts = {f"loss/{name}": mean for name, mean in zip(self.names, means, strict=True)}
                line = {
                    "phase": self.phase,
                    "step": step,
                    "time": time.time(),
                    "loss": total,
                    **parts,
                    "lr": lr,
                    "grad_norm": norm,
                }
                lines.append({**line, **rates})
        if lines and distributed.is_main():
            self.write(lines)
        self._rows, self._figures, self._size, self._since = [], [], [0, 0], time.perf_counter()
        self._count_bad(bad)

    def _count_bad(self, bad: list[tuple[int, list[Tensor]]]) -> None:
        self.bad_steps += len(bad)
        if self.bad_steps > self.max_bad_steps:
            step, index = bad[-1]
            own = [i for tensor in index for i in tensor.tolist() if i >= 0]
            samples = sorted(i for part in distributed.everyone(own) for i in part)
            raise TooManyBadSteps(
                f"the loss was NaN or infinite in {self.bad_steps} steps (training.max_bad_steps is {self.max_bad_steps}); "
                f"the last was step {step} with training samples {', '.join(map(str, samples))}"
            )

    def restart_clock(self) -> None:
        """Time spent on validation and saving is not training time."""
        self._since = time.perf_counter()


def _positions(batch: Batch) -> int:
    return batch["input_ids"].numel() if "input_ids" in batch else 0
