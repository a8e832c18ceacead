"""Prunes a model while it trains, with or without teachers: round by round, judged and undone where a round costs too much, cut where units go whole."""

import functools
import time
from dataclasses import asdict
from typing import Any, Literal, cast

from distill_system.phases import base
from distill_system.phases.calibration import calibration_batches, show
from distill_system.phases.context import Context, Result, Trained
from distill_system.phases.finish import finish
from distill_system.phases.pruned import Stage, before_and_after, stage_of, storage_of
from distill_system.phases.quantized import Quantized, Settings, quantize_model
from distill_system.phases.teachers import load_teachers
from distill_system.pruning.schedules import resolved
from distill_system.schema import snake
from distill_system.settings import Calibration, Ensemble, Gate, Pruning, Teacher
from distill_system.training.masking import Masking
from distill_system.training.modifier import Modifier, Several
from distill_system.training.objective import STUDENT
from distill_system.training.rounds import Rounds
from distill_system.training.scoring import bake
from distill_system.training.shrinking import Shrinking


class Prune:
    """A pruning phase.

    Args:
        kind: "prune".
        model: recipe of what is pruned; the model of an earlier phase, as a rule.
        losses: by name.
        pruner: what is pruned (weights, blocks, neurons, heads, layers) and by which score.
        schedule: when, and how much.
        teachers: by name; the dense model itself, say.
        ensemble: how several teachers teach together.
        calibration: rows that scores look at.
        quantizer: what the linears' weights are quantized by meanwhile, where single weights or blocks are pruned; None: nothing.
        storage: how single weights and blocks that are gone are stored: `auto`: as positions and values where that is smaller.
        training: what differs from the run's training settings; read by the pipeline.
        data: what differs from the run's data; read by the pipeline.
        seed_as: phases with the same word see the same batches; read by the pipeline.
        gate: bound that each round must keep after its recovery; else the phase goes back to the round before.
    """

    def __init__(
        self,
        kind: str,
        model: dict[str, Any],
        losses: dict[str, Any],
        pruner: Any,
        schedule: Pruning | None = None,
        teachers: dict[str, Teacher] | None = None,
        ensemble: Ensemble | None = None,
        calibration: Calibration | None = None,
        quantizer: Any = None,
        storage: Literal["auto", "sparse", "dense"] = "auto",
        training: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        seed_as: str | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.kind, self.model, self.losses, self.pruner, self.storage = kind, cast(Any, model), losses, pruner, storage
        self.schedule = resolved(Pruning(**cast(dict, schedule or {})), pruner.kind)
        self.teachers = {name: Teacher(**cast(dict, settings)) for name, settings in (teachers or {}).items()}
        self.ensemble = Ensemble(**cast(dict, ensemble or {}))
        self.calibration = Calibration(**cast(dict, calibration or {}))
        self.gate = Gate(**cast(dict, gate or {}))
        self.quantization = Settings(quantizer) if quantizer is not None else None

    def run(self, context: Context) -> Result:
        started = time.perf_counter()
        teachers: Any = None
        continued = False
        while True:  # once, and once more for each time that the model gets another shape
            stage = stage_of(context, self.model, self.pruner)
            quantized = quantize_model(stage.model, self.quantization, context) if self.quantization else None
            if not continued:
                context.tell(stage.plan(self.schedule))
            stores = base.load_data(context, stage.tokenizer)
            if teachers is None:
                students = {STUDENT: stage.model}
                teachers = load_teachers(self.teachers, context, students, stage.tokenizer, stores, self.ensemble)
            made: list[Rounds] = []

            make = functools.partial(self._modifier, context, stage, quantized, stores, made)
            trained = base.train(
                context,
                stage.model,
                stage.tokenizer,
                stage.follow(self.losses),
                stores=stores,
                teachers=teachers[0],
                weights=teachers[1],
                ensemble=self.ensemble,
                started=started,
                modifier=make,
                continued=continued,
                loading=stage.loading,
            )
            if trained.outcome.preempted:
                return Result(None, trained.outcome)
            if not trained.outcome.halted:
                return self._finish(context, trained, stage, made[0], quantized)
            continued = True

    def _modifier(
        self,
        context: Context,
        stage: Stage,
        quantized: Quantized | None,
        stores: Any,
        made: list[Rounds],
        total_steps: int,
    ) -> Modifier:
        rounds = self._rounds(context, stage, stores, made, total_steps)
        if quantized is None:
            return rounds
        pad_id = base.pad_id_of(stage.tokenizer)
        return Several([rounds, quantized.modifier(context, stores, self.calibration, pad_id, total_steps)])

    def _rounds(self, context: Context, stage: Stage, stores: Any, made: list[Rounds], total_steps: int) -> Rounds:
        batches = calibration_batches(context, stores, self.calibration, base.pad_id_of(stage.tokenizer))
        surgeon: Any
        if self.pruner.kind == "layers":
            surgeon = Shrinking(
                self.pruner,
                stage.model,
                STUDENT,
                remaining=stage.remaining,
                original=stage.original,
                batches=batches,
            )
        else:
            self.pruner.score.seed = context.phase_seed
            surgeon = Masking(
                self.pruner,
                stage.groups,
                STUDENT,
                allocation=stage.allocation,
                calibrate=lambda engine, watcher: show(engine, watcher, STUDENT, batches),
            )
        rounds = Rounds(
            surgeon,
            self.schedule,
            total_steps,
            gate=self.gate,
            folder=context.folder / "checkpoints",
            identity=context.identity,
            monitor=self.gate.metric or context.training.monitor or base.DEFAULT_METRIC[context.task],
            whole=stage.whole,
            tell=context.tell,
            key=f"phases.{context.name}",
        )
        made.append(rounds)
        return rounds

    def _finish(
        self, context: Context, trained: Trained, stage: Stage, rounds: Rounds, quantized: Quantized | None
    ) -> Result:
        record = {
            "kind": self.pruner.kind,
            "score": snake(type(self.pruner.score)) if self.pruner.kind != "layers" else self.pruner.by,
            "schedule": asdict(self.schedule),
            "monitor": rounds.monitor,
            "rounds": rounds.memory["records"],
            "rolled_back": rounds.memory["rolled_back"],
            **stage.described(trained.engine, rounds),
        }
        sparsity = rounds.sparsity(trained.engine)
        bake(trained.engine, stage.masks(trained.engine))
        if quantized is None:
            trained.write = storage_of(self.storage, self.pruner, stage, trained, sparsity)
        else:
            trained.conversion = quantized.conversion()
        if self.pruner.kind in ("weights", "blocks"):
            record["loads_plainly"] = trained.write is None
            config: Any = stage.model.config
            # Later phases keep the zeros, and the form in which they are stored.
            config.pruned = "sparse" if trained.write else "dense"
        result = finish(context, trained)
        if result.evaluation:  # on rank 0
            figures = before_and_after(context, self.model, result)
            result.extra["pruning"] = record | figures
            if quantized is not None:
                result.extra["quantization"] = quantized.record(context, trained, result) | figures
        return result
