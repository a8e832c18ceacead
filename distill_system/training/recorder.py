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
from distill_system.training.emit import Batch

EARLY = {1, 2, 5, 10}  # steps that are fetched at once, so that a user soon sees numbers


class TooManyBadSteps(RuntimeError):
    """The loss was NaN or infinite more often than `training.max_bad_steps` allows."""


class Recorder:
    """Collects each step's figures and hands lines to `write` on rank 0.

    Args:
        phase: its name.
        names: of the terms, in the objective's order.
        roles: that are trained.
        changing: whether weights follow a schedule, and are to be logged.
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
        roles: Sequence[str] = ("student",),
        changing: bool = False,
        log_every: int,
        flush_every: int,
        max_bad_steps: int,
        total_steps: int,
        write: Callable[[list[dict[str, Any]]], None],
        bad_steps: int = 0,
    ) -> None:
        self.phase, self.names, self.roles, self.changing = phase, list(names), list(roles), changing
        self.log_every, self.flush_every, self.total_steps = log_every, flush_every, total_steps
        self.max_bad_steps, self.bad_steps = max_bad_steps, bad_steps
        self.write = write
        self.samples = self.tokens = 0
        self._rows: list[tuple[int, float, list[Tensor], list[float]]] = []
        self._figures: list[tuple[Tensor, Tensor]] = []
        self._size = [0, 0]
        self._since = time.perf_counter()

    def add(
        self, step: int, mean_L: Tensor, norm_R: Tensor, lr: float, micro_batches: list[Batch], weights: list[float]
    ) -> None:
        """Takes a step.

        Args:
            step: its number, from 1.
            mean_L: this rank's share of the terms' means over the global batch, before their weights.
            norm_R: gradient norms of the roles, the same on all ranks that train a role; 0 for a role trained elsewhere.
            lr: learning rate.
            micro_batches: what this rank saw.
            weights: of the terms; 0 for terms computed elsewhere.
        """
        self._figures.append((mean_L, norm_R.detach()))
        self._rows.append((step, lr, [batch["index"] for batch in micro_batches], weights))
        for batch in micro_batches:
            self._size[0] += batch["index"].shape[0]
            self._size[1] += batch["input_ids"].numel() if "input_ids" in batch else 0
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
        weights_SL = torch.tensor([weights for *_, weights in self._rows], dtype=torch.float64, device=means_SL.device)
        norms_SR = torch.stack([norm_R for _, norm_R in self._figures]).double() / distributed.data_world()
        size = torch.tensor(self._size, dtype=torch.float64, device=means_SL.device) / distributed.parts()
        # A sum over ranks joins what ranks of one part share, and puts beside each other what different parts have.
        shared_SL = weights_SL / distributed.data_world()
        packed = torch.cat([means_SL, means_SL * weights_SL, shared_SL, norms_SR.to(means_SL.device)], dim=1)
        values = distributed.sum_over_ranks(
            torch.cat([packed.flatten(), size])
        ).tolist()  # the one place where the host waits
        samples, tokens = values[-2:]
        width = packed.shape[1]
        seconds = max(time.perf_counter() - self._since, 1e-9)
        self.samples, self.tokens = self.samples + round(samples), self.tokens + round(tokens)
        rates = {"samples_per_s": round(samples / seconds, 1), "tokens_per_s": round(tokens / seconds, 1)}
        lines, bad = [], []
        for row, (step, lr, index, _) in enumerate(self._rows):
            own = values[row * width : (row + 1) * width]
            means, weighted, weights = (own[i * len(self.names) : (i + 1) * len(self.names)] for i in range(3))
            line = {"phase": self.phase, "step": step, "time": time.time()}
            figures = self._line(means, weighted, weights, own[3 * len(self.names) :]) | {"lr": lr}
            if not (math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"])):
                bad.append((step, index))
                lines.append(line | {"event": "bad_step"})
            if step % self.log_every == 0 or step == self.total_steps:
                lines.append(line | figures | rates)
        if lines and distributed.is_main():
            self.write(lines)
        self._rows, self._figures, self._size, self._since = [], [], [0, 0], time.perf_counter()
        self._count_bad(bad)

    def _line(
        self, means: list[float], weighted: list[float], weights: list[float], norms: list[float]
    ) -> dict[str, float]:
        figures = {"loss": sum(weighted)} | {f"loss/{name}": mean for name, mean in zip(self.names, means, strict=True)}
        if self.changing:
            figures |= {f"weight/{name}": weight for name, weight in zip(self.names, weights, strict=True)}
        figures["grad_norm"] = norms[0] if len(norms) == 1 else math.sqrt(sum(norm**2 for norm in norms))
        if len(self.roles) > 1:
            figures |= {f"grad_norm/{role}": norm for role, norm in zip(self.roles, norms, strict=True)}
            for role in self.roles:
                parts = [value for name, value in zip(self.names, weighted, strict=True) if name.startswith(f"{role}/")]
                figures[f"loss/{role}"] = sum(parts)
        return figures

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
