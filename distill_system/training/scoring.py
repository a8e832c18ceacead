"""Scores, masks and counts of a model that an engine may have scattered: each rank works on its own runs of the weights, and nothing is gathered whole.

Shapes: n elements of a run, U units of a group, O outputs, I inputs.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill_system import distributed
from distill_system.pruning.base import Group, Run, Slice
from distill_system.pruning.calibration import Watcher
from distill_system.pruning.masks import MASK, SCORE
from distill_system.pruning.scores.base import Score
from distill_system.pruning.scores.units import unit_numbers, units_of
from distill_system.training.engine import WEIGHT, Engine, own_run

MaskRun = tuple[int | None, Tensor]  # (offset, bool [n]) of this rank's run of a mask, or (None, all of it)


class Scorer:
    """What a score says of the groups of one role.

    Args:
        engine: holds the model.
        role: whose.
        groups: of the model as it is now.
        score: of elements or of units.
        calibrate: shows a watcher the calibration rows, pass by pass, all ranks together.
    """

    def __init__(
        self, engine: Engine, role: str, groups: list[Group], score: Score, calibrate: Callable[[Watcher], None]
    ) -> None:
        self.engine, self.groups, self.score = engine, groups, score
        self.prefix = f"roles.{role}."
        self.model: nn.Module = engine.objective.roles[role]
        self.calibrate = calibrate
        self.slices = {part.name: part for group in groups for part in group.slices}
        self.seen: dict[str, Tensor] = {}  # what was watched: by parameter (this rank's run), or by module
        self._watcher: Watcher | None = None

    @property
    def names(self) -> list[str]:
        """The matrices, by their names in the objective."""
        return [self.prefix + name for name in self.slices]

    def run_of(self, name: str) -> Run | None:
        """This rank's run of a matrix; None where it holds nothing of it."""
        part = self.slices[name]
        for piece in self.engine.shares([self.prefix + name]):
            if piece.values.numel():
                return Run(name, part.shape, part.input_axis, piece.offset, piece.values)
        return None

    def observe(self) -> None:
        """Adds this step's gradients to what was seen."""
        for piece in self.engine.gradients(self.names):
            name = piece.name.removeprefix(self.prefix)
            run = self.run_of(name)
            if run is None:
                continue
            assert (run.offset, run.values_n.numel()) == (piece.offset, piece.values.numel()), name
            seen_n = self.seen.setdefault(name, torch.zeros_like(run.values_n, dtype=torch.float32))
            finite = torch.isfinite(piece.values)  # of a step that will be skipped
            self.score.accumulate(seen_n, run.values_n.float(), torch.where(finite, piece.values.float(), 0.0))

    def look(self) -> None:
        """Watches the calibration rows, where the score asks for it."""
        if self.score.watches not in ("inputs", "activations"):
            return
        if self.score.watches == "inputs":
            names = [name.rpartition(".")[0] for name in self.slices]
        else:
            names = [group.watched for group in self.groups]
        self._watcher = self.score.watcher({name: self.model.get_submodule(name) for name in names})
        self.calibrate(self._watcher)

    def _seen_of(self, run: Run) -> Tensor | None:
        if self.score.learned:
            score = self.model.get_parameter(run.name + SCORE)
            return local(score, run.offset, run.values_n.numel()).float()
        if self.score.watches == "gradients":
            return self.seen[run.name] if run.name in self.seen else torch.zeros_like(run.values_n, dtype=torch.float32)
        if self.score.watches == "inputs":
            assert self._watcher is not None, "look comes first"
            return self._watcher.result(run.name.rpartition(".")[0])
        return None

    def element_scores(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(offset, scores `[n]`) of this rank's elements, a stretch at a time; what is masked already comes last, unless it may come back."""
        run = self.run_of(name)
        if run is None:
            return
        for part, scores_n in self.score.chunks(run, self._seen_of(run)):
            if not self.score.revives and (kept_n := self.mask_of(part)) is not None:
                scores_n = torch.where(kept_n, scores_n, -torch.inf)
            yield part.offset, scores_n

    def mask_of(self, run: Run) -> Tensor | None:
        """The part of a whole-weight mask `[n]` that lies over a run; None where there is none of that form."""
        module = self.model.get_submodule(run.name.rpartition(".")[0])
        mask = module._parameters.get(f"weight{MASK}")
        if mask is None or tuple(getattr(mask, "ds_shape", mask.shape)) != run.shape:
            return None
        return local(mask, run.offset, run.values_n.numel())

    def unit_scores(self, group: Group) -> Tensor:
        """`[U]` float32, the same on every rank: the mean over a unit's elements."""
        if self.score.watches == "activations":
            assert self._watcher is not None, "look comes first"
            features = self._watcher.result(group.watched).double()
            return self.score.of_units(features.view(group.units, -1).mean(1)).float()
        total_U = torch.zeros(group.units, dtype=torch.float64)
        alive_U = torch.zeros_like(total_U)
        if self.score.learned and group.block is None:
            total_U += self._learned(group)
        else:
            for part in group.slices:
                run = self.run_of(part.name)
                if run is not None:
                    total_U += units_of(group, [(run, self._seen_of(run))], self.score)
                    alive_U += self._alive(group, part, run)
        told = distributed.sum_over_data_ranks(torch.stack([total_U, alive_U]))
        scores_U = (told[0] / (group.elements / group.units)).float()
        if group.block is not None and not self.score.revives:
            scores_U[told[1] == 0] = -torch.inf  # blocks that are masked already come first
        return scores_U

    def _alive(self, group: Group, part: Slice, run: Run) -> Tensor:
        """Weights of each block `[U]` that aren't masked, as far as they lie in a run; of lines, which `keep` tells of, none are counted."""
        alive_U = torch.zeros(group.units + 1, dtype=torch.float64)
        mask_n = self.mask_of(run) if group.block is not None else None
        if mask_n is not None:
            alive_U.index_add_(0, unit_numbers(group, part, run).cpu(), mask_n.cpu().double())
        return alive_U[:-1]

    def _learned(self, group: Group) -> Tensor:
        """Sums `[U]` of this rank's part of the scores that were trained, one for each line of each matrix."""
        total_U = torch.zeros(group.units, dtype=torch.float64)
        for part in group.slices:
            for piece in self.engine.shares([self.prefix + part.name + SCORE]):
                lines_n = torch.arange(piece.offset, piece.offset + piece.values.numel()) - part.first
                unit_n = lines_n.div(part.width, rounding_mode="floor")
                inside = (lines_n >= 0) & (unit_n < group.units)
                total_U.index_add_(0, unit_n[inside], piece.values.double().cpu()[inside])
        return total_U

    def count(self, keep: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
        """(weights that aren't zero in the forward, all weights) of each group, over all ranks.

        Args:
            keep: kept units `[U]` by group, where the masks are of whole lines.
        """
        counts = torch.zeros(len(self.groups), dtype=torch.int64)
        for number, group in enumerate(self.groups):
            for part in group.slices:
                run = self.run_of(part.name)
                if run is None:
                    continue
                alive_n = run.values_n != 0
                mask_n = self.mask_of(run)
                if mask_n is not None:
                    alive_n &= mask_n
                elif group.name in keep:
                    alive_n &= over(run, part, group, keep[group.name], outside=True)
                if group.block is None:
                    alive_n &= over(run, part, group, torch.ones(group.units, dtype=torch.bool), outside=False)
                counts[number] += int(alive_n.sum())
        distributed.sum_over_data_ranks(counts)
        return {group.name: (int(count), group.elements) for group, count in zip(self.groups, counts, strict=True)}


def over(run: Run, part: Slice, group: Group, keep_U: Tensor, *, outside: bool) -> Tensor:
    """Which elements `[n]` of a run belong to a kept unit; `outside`: what is said of elements that belong to none."""
    keep_U = torch.cat([keep_U, torch.tensor([outside], device=keep_U.device)]).to(run.values_n.device)
    return keep_U[unit_numbers(group, part, run)]


def local(mask: Any, offset: int, count: int) -> Tensor:
    """Elements of a flattened mask that lie over a run that this rank holds; under ZeRO-3 mask and weight are scattered alike."""
    if hasattr(mask, "ds_tensor"):
        offset -= distributed.data_rank() * mask.ds_tensor.ds_numel
        return mask.ds_tensor.detach().view(-1)[offset : offset + count]
    return mask.detach().view(-1)[offset : offset + count]


def write_masks(engine: Engine, masks: Mapping[str, MaskRun]) -> None:
    """Writes masks, all ranks together.

    Args:
        engine: takes them.
        masks: by name in the objective: (offset, bool `[n]`) of this rank's run of it, or (None, all of it); every rank names the same masks, in the
            same form.
    """
    for piece in list(engine.pieces()):
        if piece.part != WEIGHT or piece.name not in masks:
            continue
        offset, keep_n = masks[piece.name]
        size = piece.values.numel()
        if offset is None:
            piece.values.copy_(keep_n[piece.offset : piece.offset + size])
        elif piece.replicated:
            whole_n = torch.zeros(size, dtype=torch.uint8, device=piece.values.device)
            whole_n[offset : offset + keep_n.numel()] = keep_n.to(torch.uint8)
            distributed.sum_over_data_ranks(whole_n)
            piece.values.copy_(whole_n.bool())
        else:
            assert (piece.offset, size) == (offset, keep_n.numel()), piece.name  # scattered like its weight
            piece.values.copy_(keep_n)
    engine.spread_frozen()


def bake(engine: Engine, masks: Mapping[str, Any]) -> None:
    """Sets masked weights to zero for good, master weights too.

    Args:
        engine: holds them.
        masks: by the weight's name in the objective: its mask.
    """
    for piece in list(engine.pieces()):
        if piece.part == WEIGHT and piece.name in masks:
            kept_n = local(masks[piece.name], piece.offset, piece.values.numel())
            piece.values.masked_fill_(~kept_n, 0.0)  # times 0, a negative one would be -0.0, which is stored as a value
    engine.restore(engine.scalars())


def own_part(values_U: Tensor) -> tuple[int, Tensor]:
    """This rank's share of a vector that every rank holds."""
    piece = own_run("", values_U)
    return piece.offset, piece.values
