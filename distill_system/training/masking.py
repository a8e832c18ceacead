"""Rounds that write masks: over single weights, blocks, or the lines of whole neurons and heads.

Shapes: n elements of a run, U units of a group, O outputs, I inputs.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill_system import distributed
from distill_system.pruning.base import Group
from distill_system.pruning.calibration import Watcher
from distill_system.pruning.masks import MASK, SCORE, add_mask
from distill_system.pruning.schedules import Round
from distill_system.pruning.selection import Selection, n_of_m, select, select_units
from distill_system.training.engine import Engine, Piece
from distill_system.training.scoring import MaskRun, Scorer, local, over, own_part, write_masks
from distill_system.training.surgeon import Applied, Tally, parameters_of


def prepare(model: nn.Module, groups: Iterable[Group], learned: float | None) -> None:
    """Gives every matrix of the groups its mask, before an engine takes the model."""
    for group in groups:
        for part in group.slices:
            shape = (
                part.shape if group.block else tuple(n if axis == part.axis else 1 for axis, n in enumerate(part.shape))
            )
            add_mask(model.get_submodule(part.name.rpartition(".")[0]), shape, learned=learned)


class Masking:
    """The surgeon of weights, blocks, neurons and heads.

    Args:
        pruner: as the config has it.
        groups: of the model, whose matrices have masks already (`prepare`), or were cut.
        role: whose.
        allocation: share of each group's units that goes when the schedule is at its end; None: the schedule's for all.
        calibrate: shows a watcher the calibration rows.
    """

    def __init__(
        self,
        pruner: Any,
        groups: list[Group],
        role: str,
        *,
        allocation: Mapping[str, float] | None,
        calibrate: Callable[[Engine, Watcher], None],
    ) -> None:
        self.pruner, self.kind, self.groups, self.role = pruner, pruner.kind, groups, role
        self.cuts_units = pruner.cuts
        self.watches_gradients = pruner.score.observes
        self.allocation = dict(allocation or {})
        self._calibrate = calibrate
        self._scorer: Scorer | None = None

    def scorer(self, engine: Engine) -> Scorer:
        if self._scorer is None or self._scorer.engine is not engine:
            self._scorer = Scorer(
                engine, self.role, self.groups, self.pruner.score, lambda watcher: self._calibrate(engine, watcher)
            )
        return self._scorer

    def begin(self, engine: Engine, sparsity: float) -> None:
        if self.pruner.score.soft and self.groups[0].block:
            self._set_penalty(engine, sparsity)

    def observe(self, engine: Engine) -> None:
        self.scorer(engine).observe()

    def counts(self, engine: Engine, keep: Mapping[str, Tensor]) -> dict[str, int]:
        return {name: alive for name, (alive, _) in self.scorer(engine).count(keep).items()}

    def count(self, engine: Engine, keep: Mapping[str, Tensor]) -> Tally:
        counts = self.scorer(engine).count(keep)
        alive, present = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
        return Tally(alive, parameters_of(engine, self.role) - present + alive)

    def apply(self, engine: Engine, due: Round, keep: Mapping[str, Tensor]) -> Applied:
        scorer = self.scorer(engine)
        self.pruner.score.round = due.number
        scorer.look()
        if self.groups[0].block is None:
            chosen = self._units(scorer, due.sparsity, keep)
            write_masks(engine, self._line_masks(scorer, chosen))
            return Applied(keep=chosen)
        if self.pruner.score.soft:
            self._set_penalty(engine, due.sparsity)
            masks = {f"{scorer.prefix}{name}{MASK}": self._soft_mask(scorer, name) for name in scorer.slices}
        else:
            masks = self._element_masks(scorer, due.sparsity)
        write_masks(engine, masks)
        return Applied()

    def _soft_mask(self, scorer: Scorer, name: str) -> MaskRun:
        """What a trained score alone says of a matrix, whatever the schedule wants."""
        run = scorer.run_of(name)
        if run is None:
            return 0, torch.zeros(0, dtype=torch.bool)
        score = scorer.model.get_parameter(name + SCORE)
        return run.offset, self.pruner.score.keep_soft(local(score, run.offset, run.values_n.numel()))

    def _set_penalty(self, engine: Engine, sparsity: float) -> None:
        """What pulls trained scores down grows with the schedule."""
        model = engine.objective.roles[self.role]
        total = sum(group.elements for group in self.groups)
        for group in self.groups:
            module: Any = model.get_submodule(group.name.rpartition(".")[0])
            module.penalty = functools.partial(self.pruner.score.penalty_gradient, share=sparsity, total=total)

    def _shares(self, sparsity: float) -> dict[str, float] | None:
        """What goes of each group where an allocation says it, on its way to the end with the schedule."""
        if not self.allocation:
            return None
        final = self.allocation["target"] or 1.0
        return {group.name: min(1.0, self.allocation.get(group.name, 0.0) * sparsity / final) for group in self.groups}

    def _units(self, scorer: Scorer, sparsity: float, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = {group.name: scorer.unit_scores(group) for group in self.groups}
        if not self.pruner.score.revives:
            for name, kept_U in keep.items():
                scores[name] = torch.where(kept_U, scores[name], -torch.inf)
        shares = self._shares(sparsity)
        step = self.pruner.multiple_of
        if self.pruner.uniform or shares is not None:
            counts = {
                group.name: removed(group.units, sparsity if shares is None else shares[group.name], step)
                for group in self.groups
            }
            return select_units(scores, counts)
        total = round(sparsity * sum(group.units for group in self.groups))
        return select_units(scores, total, minimum=1)

    def _line_masks(self, scorer: Scorer, keep: Mapping[str, Tensor]) -> dict[str, MaskRun]:
        """Masks of whole lines; where a matrix has a mask of its own zeros already, the lines go out of that."""
        masks: dict[str, MaskRun] = {}
        for group in self.groups:
            kept_U = keep[group.name].cpu()
            for part in group.slices:
                name = f"roles.{self.role}.{part.name}{MASK}"
                if has_whole_mask(scorer.model, part.name, part.shape):
                    run = scorer.run_of(part.name)
                    if run is None:
                        masks.setdefault(name, (0, torch.zeros(0, dtype=torch.bool)))
                        continue
                    own_n = masks[name][1] if name in masks else scorer.mask_of(run)
                    assert own_n is not None
                    lines_n = over(run, part, group, kept_U, outside=True)
                    masks[name] = (run.offset, own_n & lines_n)
                else:
                    lines = torch.ones(part.shape[part.axis], dtype=torch.bool)
                    lines[part.first : part.first + group.units * part.width] = kept_U.repeat_interleave(part.width)
                    masks[name] = (None, lines & masks[name][1] if name in masks else lines)
        return masks

    def _element_masks(self, scorer: Scorer, sparsity: float) -> dict[str, MaskRun]:
        shares = self._shares(sparsity)
        alone = self.pruner.scope == "layer" or shares is not None
        competing = [[group] for group in self.groups] if alone else [self.groups]
        masks: dict[str, MaskRun] = {}
        for groups in competing:
            share = sparsity if shares is None else shares[groups[0].name]
            prune = min(round(share * sum(group.units for group in groups)), sum(group.units for group in groups) - 1)
            selection = select(
                functools.partial(self._stream, scorer, groups), prune, {group.name: group.units for group in groups}
            )
            for group in groups:
                masks[f"roles.{self.role}.{group.name}{MASK}"] = self._mask_of(scorer, group, selection)
        return masks

    def _stream(self, scorer: Scorer, groups: Iterable[Group]) -> Iterator[tuple[str, int, Tensor]]:
        """(group, offset, scores) of the units that this rank speaks of, disjoint over ranks; the same whenever it is asked."""
        for group in groups:
            if group.block != (1, 1):
                yield (group.name, *own_part(scorer.unit_scores(group)))
                continue
            pattern_n = self._candidates(scorer, group)
            for offset, scores_n in scorer.element_scores(group.name):
                if pattern_n is not None:
                    scores_n = torch.where(
                        pattern_n[offset : offset + scores_n.numel()].to(scores_n.device), torch.inf, scores_n
                    )
                yield group.name, offset, scores_n

    def _candidates(self, scorer: Scorer, group: Group) -> Tensor | None:
        """What an n:m pattern keeps `[O * I]`, one matrix at a time; None without a pattern."""
        pattern = getattr(self.pruner, "pattern", None)
        if pattern is None:
            return None
        (part,) = group.slices
        whole_n = torch.zeros(part.shape[0] * part.shape[1])
        for offset, scores_n in scorer.element_scores(group.name):
            whole_n[offset : offset + scores_n.numel()] = scores_n.clamp(min=torch.finfo(torch.float32).min).cpu()
        distributed.sum_over_data_ranks(whole_n)
        return n_of_m(whole_n.view(part.shape), pattern[0], pattern[1], part.input_axis).flatten()

    def _mask_of(self, scorer: Scorer, group: Group, selection: Selection) -> MaskRun:
        run = scorer.run_of(group.name)
        if group.block == (1, 1):
            kept = [selection.keep(group.name, o, s) for _, o, s in self._stream(scorer, [group])]
            return (run.offset if run else 0), torch.cat(kept) if kept else torch.zeros(0, dtype=torch.bool)
        whole_U = torch.zeros(group.units, dtype=torch.uint8)
        for name, offset, scores_n in self._stream(scorer, [group]):
            whole_U[offset : offset + scores_n.numel()] = selection.keep(name, offset, scores_n).to(torch.uint8)
        distributed.sum_over_data_ranks(whole_U)
        if run is None:
            return 0, torch.zeros(0, dtype=torch.bool)
        return run.offset, over(run, group.slices[0], group, whole_U.bool(), outside=False)

    def pieces(self, engine: Engine, part: str) -> Iterator[Piece]:
        """Allocated as soon as they are asked for, so that a checkpoint has a place to be read into."""
        scorer = self.scorer(engine)
        for name in scorer.slices:
            run = scorer.run_of(name)
            if run is not None:
                seen_n = scorer.seen.setdefault(name, torch.zeros_like(run.values_n, dtype=torch.float32))
                yield Piece(scorer.prefix + name, part, run.offset, seen_n, replicated=False)


def has_whole_mask(model: nn.Module, name: str, shape: tuple[int, int]) -> bool:
    mask = model.get_submodule(name.rpartition(".")[0])._parameters.get(f"weight{MASK}")
    return mask is not None and tuple(getattr(mask, "ds_shape", mask.shape)) == shape


def removed(units: int, sparsity: float, multiple_of: int) -> int:
    """How many of a group's units go: the nearest whole number (halves stay), so that the rest is a multiple of something and at least one."""
    kept = max(1, units - int(sparsity * units + 0.5 - 1e-9))
    return units - min(units, -(-kept // multiple_of) * multiple_of)
