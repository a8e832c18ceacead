"""Trains a model at low precision, with or without teachers, and leaves it twice: plain, with weights on their grids, and packed into as few bytes as the bits promise."""

import functools
import time
from dataclasses import asdict
from typing import Any, cast

from distill_system.phases import base
from distill_system.phases.context import Context, Result
from distill_system.phases.finish import finish
from distill_system.phases.pruned import before_and_after
from distill_system.phases.quantized import Settings, quantize_model
from distill_system.phases.teachers import load_teachers
from distill_system.settings import Calibration, Embeddings, Ensemble, Gate, Inputs, Mixing, Teacher
from distill_system.training.objective import STUDENT


class Quantize:
    """A quantization-aware phase.

    Args:
        kind: "quantize".
        model: recipe of what is quantized; the model of an earlier phase, as a rule.
        losses: by name.
        quantizer: of the linears' weights.
        embeddings: how tables are stored.
        activations: how inputs of the linears are rounded.
        mixing: how the forward goes over from full precision.
        include: patterns of parameter names among all linears; empty: those of the body.
        exclude: patterns of parameter names that stay as they are.
        teachers: by name; the full-precision model itself, say.
        ensemble: how several teachers teach together.
        calibration: rows that the steps of the inputs begin with.
        training: what differs from the run's training settings; read by the pipeline.
        data: what differs from the run's data; read by the pipeline.
        seed_as: phases with the same word see the same batches; read by the pipeline.
        gate: bound of the result; read by the pipeline.
    """

    def __init__(
        self,
        kind: str,
        model: dict[str, Any],
        losses: dict[str, Any],
        quantizer: Any,
        embeddings: Embeddings | None = None,
        activations: Inputs | None = None,
        mixing: Mixing | None = None,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        teachers: dict[str, Teacher] | None = None,
        ensemble: Ensemble | None = None,
        calibration: Calibration | None = None,
        training: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        seed_as: str | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.kind, self.model, self.losses = kind, cast(Any, model), losses
        self.settings = Settings(
            quantizer,
            Embeddings(**cast(dict, embeddings or {})),
            Inputs(**cast(dict, activations or {})),
            Mixing(**cast(dict, mixing or {})),
            include or [],
            exclude or [],
        )
        self.teachers = {name: Teacher(**cast(dict, settings)) for name, settings in (teachers or {}).items()}
        self.ensemble = Ensemble(**cast(dict, ensemble or {}))
        self.calibration = Calibration(**cast(dict, calibration or {}))

    def run(self, context: Context) -> Result:
        started = time.perf_counter()
        model, tokenizer = base.build_student(self.model, context)
        quantized = quantize_model(model, self.settings, context)
        context.tell(quantized.plan())
        stores = base.load_data(context, tokenizer)
        teachers, weights = load_teachers(self.teachers, context, {STUDENT: model}, tokenizer, stores, self.ensemble)[
            :2
        ]
        trained = base.train(
            context,
            model,
            tokenizer,
            self.losses,
            stores=stores,
            teachers=teachers,
            weights=weights,
            ensemble=self.ensemble,
            started=started,
            modifier=functools.partial(
                quantized.modifier, context, stores, self.calibration, base.pad_id_of(tokenizer)
            ),
        )
        if trained.outcome.preempted:
            return Result(None, trained.outcome)
        trained.conversion = quantized.conversion()
        result = finish(context, trained)
        if result.evaluation:  # on rank 0
            result.extra["quantization"] = {
                **quantized.record(context, trained, result),
                "calibration": asdict(self.calibration) if quantized.activations else None,
                **before_and_after(context, self.model, result),
            }
        return result
