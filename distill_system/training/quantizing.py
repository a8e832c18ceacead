"""What a quantize phase does between steps: tells the modules where training stands, and keeps what gradients don't train.

Scales that are fitted to the curvature (loss-aware quantization) come from this rank's runs of the weights and of Adam's second moments, and one sum over
ranks: nothing is gathered. The curvature is the diagonal that Adam estimates, d = sqrt(v).

Shapes: G groups of one weight, N weights of a group, n elements of a run.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill_system import distributed
from distill_system.models.grid import Granularity
from distill_system.quantization.activations import STEP, Activations
from distill_system.quantization.base import Moment
from distill_system.quantization.swap import quantized_modules
from distill_system.settings import Mixing
from distill_system.training.engine import MOMENTS, WEIGHT, Engine, Piece, own_run
from distill_system.training.modifier import Change
from distill_system.training.scoring import local

CURVATURE = MOMENTS[1]


@dataclass(frozen=True)
class _Run:
    """This rank's part of one weight, as the forward sees it."""

    module: Any
    offset: int
    weight_n: Tensor
    second_n: Tensor


class Quantizing:
    """The modifier of a quantize phase.

    Args:
        model: with swapped modules.
        role: whose model it is.
        moment: that the modules share.
        mixing: how the forward goes over from full precision.
        total_steps: of the phase.
        activations: of the inputs, or None.
        show: runs the model over the calibration rows, all ranks together.
    """

    def __init__(
        self,
        model: nn.Module,
        role: str,
        moment: Moment,
        mixing: Mixing,
        total_steps: int,
        *,
        activations: Activations | None,
        show: Callable[[Engine], None],
    ) -> None:
        self.prefix, self.moment, self.mixing, self.total_steps = f"roles.{role}.", moment, mixing, total_steps
        self.activations, self.show = activations, show
        self.modules = dict(quantized_modules(model))
        self.fitted = {
            f"{self.prefix}{name}.weight": module
            for name, module in self.modules.items()
            if module.site.quantizer.curvature
        }
        self.memory: dict[str, Any] = {"fitted": 0, "calibrated": False, "levels": self._levels(0.0)}

    def _levels(self, progress: float) -> list[int]:
        return sorted({module.site.quantizer.levels(progress) for module in self.modules.values()})

    @property
    def settled(self) -> bool:
        """Whether the forward is what it will be at the end: all quantized, and with the last number of levels."""
        return self.moment.mixing >= 1 and self._levels(self.moment.progress) == self._levels(1.0)

    @property
    def follows_inputs(self) -> bool:
        return self.activations is not None and not self.activations.learned

    def wants_gradients(self, step: int) -> bool:
        return self.follows_inputs

    def observe(self, engine: Engine) -> None:
        """Moves the running ranges of the inputs, by the largest that any rank saw in this step."""
        assert self.activations is not None
        largest = self._seen()[:, 0].tolist()
        for module, value in zip(self._watched(), largest, strict=True):
            module.input_step.fill_(self.activations.next_step(module.input_step.item(), value))

    def wants_figures(self, step: int, *, last: bool) -> bool:
        return False

    def after_step(self, engine: Engine, step: int, figures: Mapping[str, Any] | None, *, last: bool) -> Change:
        self.moment.step, self.moment.progress = step, step / self.total_steps
        self.moment.mixing = mixed(self.mixing, self.moment.progress)
        change = Change()
        if self.activations is not None and not self.memory["calibrated"]:
            self._calibrate(engine)
        if self.memory["fitted"] < step:
            self._fit(engine)
            self.memory["fitted"] = step
        levels = self._levels(self.moment.progress)
        if levels != self.memory["levels"]:
            change.lines.append({"event": "quantize", "levels": levels})
            change.fresh = True
            self.memory["levels"] = levels
        return change

    def window(self, step: int) -> tuple[int, int]:
        return 0, self.total_steps

    def state(self) -> dict[str, Any]:
        return dict(self.memory)

    def restore(self, state: Mapping[str, Any]) -> None:
        self.memory = dict(state)

    def pieces(self, engine: Engine) -> Iterator[Piece]:
        """All that it keeps is parameters and buffers of the model."""
        yield from ()

    def _watched(self) -> list[Any]:
        return [module for module in self.modules.values() if module.site.activations is not None]

    def _seen(self) -> Tensor:
        """[modules, (largest |x|, sum of |x|, number)] over all ranks, and forgets it."""
        told = []
        for module in self._watched():
            device = module.weight.device
            told.append(torch.zeros(3, device=device) if module.seen is None else module.seen)
            module.seen = None
        seen = torch.stack(told).double()
        ranks = torch.tensor(distributed.data_everyone(seen.tolist()), dtype=torch.float64)
        return torch.cat([ranks[:, :, :1].amax(0), ranks[:, :, 1:].sum(0)], dim=1)

    def _calibrate(self, engine: Engine) -> None:
        """Steps of the inputs from the calibration rows, before the first training step."""
        assert self.activations is not None
        self.activations.watching = True
        self.show(engine)
        self.activations.watching = False
        steps = {}
        seen = self._seen().tolist()
        for name, (largest, total, count) in zip(
            (name for name, module in self.modules.items() if module.site.activations is not None), seen, strict=True
        ):
            steps[f"{self.prefix}{name}.{STEP}"] = self.activations.first_step(largest, total / max(count, 1))
        for piece in list(engine.pieces()):
            if piece.part == WEIGHT and piece.name in steps:
                piece.values.fill_(steps[piece.name])
        engine.restore(engine.scalars())
        self.memory["calibrated"] = True

    @torch.no_grad()
    def _fit(self, engine: Engine) -> None:
        """Fits alpha of each group, alternating with the codes where that takes more than one pass."""
        if not self.fitted:
            return
        runs = list(self._runs(engine))
        modules = list(self.fitted.values())
        sizes = [module.weight_alpha.numel() for module in modules]
        starts = dict(zip(map(id, modules), torch.tensor([0, *sizes]).cumsum(0).tolist(), strict=False))
        for number in range(max(module.site.quantizer.iterations for module in modules)):
            sums = torch.zeros(2, sum(sizes), dtype=torch.float64)
            for run in runs:
                if number < run.module.site.quantizer.iterations:
                    self._add(sums[:, starts[id(run.module)] :], run)
            distributed.sum_over_data_ranks(sums)
            for module, size in zip(modules, sizes, strict=True):
                part = sums[:, starts[id(module)] : starts[id(module)] + size]
                before = module.weight_alpha.double().view(-1).cpu()
                fitted = torch.where(part[1] > 0, part[0] / part[1].clamp(min=1e-300), before)
                module.weight_alpha.copy_(fitted.view_as(module.weight_alpha))

    def _runs(self, engine: Engine) -> Iterator[_Run]:
        weights: dict[str, Piece] = {}
        for piece in engine.pieces():
            if piece.name not in self.fitted or piece.part not in (WEIGHT, CURVATURE):
                continue
            own = own_run(piece.name, piece.values) if piece.replicated else piece
            if piece.part == WEIGHT:
                weights[piece.name] = own
            elif own.values.numel():
                module, weight_n = self.fitted[piece.name], weights[piece.name].values
                mask = module._parameters.get("weight_mask")
                if mask is not None:  # the optimizer's weights below it are no zeros
                    weight_n = weight_n * local(mask, own.offset, weight_n.numel())
                yield _Run(module, own.offset, weight_n, own.values)

    @staticmethod
    def _add(sums: Tensor, run: _Run) -> None:
        """Adds a run's numerators and denominators to those of its weight's groups `[2, G ...]`."""
        site = run.module.site
        shape = tuple(getattr(run.module.weight, "ds_shape", run.module.weight.shape))
        index_n = groups_of(run.offset, run.weight_n.numel(), shape, site.quantizer.granularity, site.input_axis)
        index_n = index_n.to(run.weight_n.device)
        alpha_n = run.module.weight_alpha.view(-1)[index_n]
        weight_n = run.weight_n.float()
        for place, terms_n in enumerate(site.quantizer.terms(weight_n, run.second_n.float().sqrt(), alpha_n)):
            sums[place].index_add_(0, index_n.cpu(), terms_n.double().cpu())


def groups_of(offset: int, count: int, shape: tuple[int, ...], granularity: Granularity, input_axis: int) -> Tensor:
    """The group `[n]` of each element in a run of a stored matrix."""
    if granularity.kind == "tensor":
        return torch.zeros(count, dtype=torch.int64)
    index_n = torch.arange(offset, offset + count)
    size = shape[input_axis] if granularity.kind == "row" else granularity.size
    if input_axis == 1:
        return index_n.div_(size, rounding_mode="floor")
    output_n = index_n.remainder(shape[1])
    group_n = index_n.div_(shape[1], rounding_mode="floor").div_(size, rounding_mode="floor")
    return output_n.mul_(shape[0] // size).add_(group_n)


def mixed(mixing: Mixing, progress: float) -> float:
    """How much of the forward is quantized at a share of the phase: 0 before `begin`, 1 from `until` on, linear between."""
    if progress >= mixing.until:
        return 1.0
    return max(0.0, (progress - mixing.begin) / (mixing.until - mixing.begin))
