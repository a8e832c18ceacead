"""Prunes one layer at a time to several levels and measures what that does to the output: which layers bear it, and how much of each should go.

Nothing is trained and nothing stays pruned: the phase hands its input on, with `allocation.json` beside it for a prune phase.
"""

import functools
import time
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from distill_system import distributed
from distill_system.data.collate import Batch
from distill_system.errors import refuse
from distill_system.evaluation.predict import evaluation_mode
from distill_system.export.dense import write_model
from distill_system.files import write_json
from distill_system.models.anatomy import UnknownAnatomy
from distill_system.phases import base
from distill_system.phases.calibration import calibration_batches, show
from distill_system.phases.context import Context, Result, Trained
from distill_system.phases.finish import finish
from distill_system.phases.pruned import ALLOCATION
from distill_system.phases.terms import write_script
from distill_system.pruning.allocation import allocate
from distill_system.pruning.base import Group
from distill_system.pruning.schedules import Round
from distill_system.schema import ProperFraction
from distill_system.settings import Calibration, Gate
from distill_system.training.engine import Engine
from distill_system.training.fit import Outcome, Progress
from distill_system.training.masking import Masking, prepare
from distill_system.training.objective import STUDENT, Objective
from distill_system.training.scoring import write_masks
from distill_system.training.shrinking import effect
from distill_system.training.strategy import autocast_of, make_engine


class Sensitivity:
    """A phase that measures.

    Args:
        kind: "sensitivity".
        model: recipe of what is measured.
        losses: by name; the effect on labels is measured by the task's own loss, whatever these are.
        pruner: what would be pruned, and by which score (none that looks at gradients: nothing is trained).
        levels: shares of a layer that are pruned on trial, ascending.
        target: share of all that the suggestion adds up to.
        measure: `kl` from the whole model's output, or the rise of the `loss`.
        calibration: rows that scores look at and effects are measured on.
        training: what differs from the run's training settings; read by the pipeline.
        data: what differs from the run's data; read by the pipeline.
        seed_as: read by the pipeline.
        gate: read by the pipeline.
    """

    def __init__(
        self,
        kind: str,
        model: dict[str, Any],
        losses: dict[str, Any],
        pruner: Any,
        levels: list[ProperFraction] | None = None,
        target: ProperFraction = 0.5,
        measure: Literal["kl", "loss"] = "kl",
        calibration: Calibration | None = None,
        training: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        seed_as: str | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.kind, self.model, self.losses, self.pruner = kind, cast(Any, model), losses, pruner
        self.levels, self.target, self.measure = levels or [0.25, 0.5, 0.75, 0.9], target, measure
        self.calibration = Calibration(**cast(dict, calibration or {}))

    def run(self, context: Context) -> Result:
        started = time.perf_counter()
        model, tokenizer = base.build_student(self.model, context)
        try:
            groups = self.pruner.groups(model, f"phases.{context.name}.pruner")
        except UnknownAnatomy as error:
            raise refuse(f"phases.{context.name}.pruner", f"is {self.pruner.kind}, but the model {error}") from error
        prepare(model, groups, None)
        stores = base.load_data(context, tokenizer)
        script = write_script([STUDENT], self.losses)
        objective = Objective(
            model,
            script.losses,
            task=context.task,
            terms=script.terms,
            autocast=autocast_of(context.training, context.device),
        )
        engine = make_engine(objective, context.training, context.device)
        data = base.data_module(context, stores, tokenizer, start_step=0, total_steps=0)
        batches = list(calibration_batches(context, stores, self.calibration, base.pad_id_of(tokenizer))())
        record = self._measure(context, engine, groups, batches)
        trained = Trained(engine, Outcome(Progress()), data, stores, {}, tokenizer, started, script)
        suggestion = {"kind": self.pruner.kind, "target": self.target, "groups": record.pop("allocation")}
        trained.write = functools.partial(_write, suggestion)
        result = finish(context, trained)
        result.extra["sensitivity"] = record
        return result

    def _measure(self, context: Context, engine: Engine, groups: list[Group], batches: list[Batch]) -> dict[str, Any]:
        layers: dict[str, list[Group]] = {}
        for group in groups:
            layers.setdefault(
                group.name if group.block is None else f"layer {group.layer} {self.pruner.kind}", []
            ).append(group)
        self.pruner.score.seed = context.phase_seed
        rises: dict[str, list[float]] = {}
        distributed.main_only(lambda: context.announce(len(layers)))
        with torch.no_grad(), evaluation_mode([engine.objective]):
            whole = (
                [engine.evaluate(batch, STUDENT).float() for batch in batches] if context.task != "causal_lm" else None
            )
            for name, members in layers.items():
                surgeon = Masking(
                    self.pruner,
                    members,
                    STUDENT,
                    allocation=None,
                    calibrate=lambda engine, watcher: show(engine, watcher, STUDENT, lambda: iter(batches)),
                )
                rises[name] = []
                for number, level in enumerate(self.levels, start=1):
                    self._whole_again(engine, members)
                    unpruned = whole or [engine.evaluate(batch, STUDENT).float() for batch in batches]
                    surgeon.apply(engine, Round(number, 0, level), {})
                    rises[name].append(self._effect(engine, batches, unpruned, context.task))
                self._whole_again(engine, members)
                told = ", ".join(
                    f"{level:.0%} {rise:.4f}" for level, rise in zip(self.levels, rises[name], strict=True)
                )
                context.tell(f"{name}: {self.measure} {told}")
                line = {
                    "phase": context.title,
                    "step": len(rises),
                    "time": time.time(),
                    "event": "measured",
                    "of": name,
                }
                distributed.main_only(functools.partial(context.write, [line | {"rises": rises[name]}]))
        sizes = {name: sum(group.elements for group in members) for name, members in layers.items()}
        shares = allocate(self.levels, rises, sizes, self.target)
        return {
            "kind": self.pruner.kind,
            "metric": self.measure,
            "baseline": 0.0,
            "levels": list(self.levels),
            "target": self.target,
            "groups": [
                {"name": name, "layer": members[0].layer, "values": rises[name], "suggested": shares[name]}
                for name, members in layers.items()
            ],
            "allocation": {group.name: shares[name] for name, members in layers.items() for group in members},
        }

    def _whole_again(self, engine: Engine, groups: list[Group]) -> None:
        """Masks of ones."""
        model = engine.objective.roles[STUDENT]
        masks = {}
        for part in (part for group in groups for part in group.slices):
            module: Any = model.get_submodule(part.name.rpartition(".")[0])
            shape = getattr(module.weight_mask, "ds_shape", module.weight_mask.shape)
            masks[f"roles.{STUDENT}.{part.name}_mask"] = (None, torch.ones(shape, dtype=torch.bool).flatten())
        write_masks(engine, masks)

    def _effect(self, engine: Engine, batches: list[Batch], unpruned: list[Tensor], task: str) -> float:
        """Mean over the real positions of all ranks' calibration rows."""
        total = torch.zeros(2, dtype=torch.float64)
        for batch, before in zip(batches, unpruned, strict=True):
            targets = engine.objective.targets(batch)
            total[0] += effect(before, engine.evaluate(batch, STUDENT).float(), targets, task, self.measure)
            total[1] += float(targets.count())
        distributed.sum_over_data_ranks(total)
        return float(total[0] / total[1].clamp(min=1))


def _write(suggestion: dict[str, Any], folder: Path, **more: Any) -> None:
    write_model(folder, **more)
    write_json(folder / ALLOCATION, suggestion)
