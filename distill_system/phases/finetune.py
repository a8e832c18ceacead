"""Trains a model on labels alone: the teacher of later phases, or the baseline that a student is held against."""

import time
from typing import Any

from distill_system.phases import base
from distill_system.phases.context import Context, Result
from distill_system.phases.finish import finish
from distill_system.settings import Gate


class Finetune:
    """A supervised phase.

    Args:
        kind: "finetune".
        model: recipe of the model.
        losses: by name.
        training: what differs from the run's training settings; read by the pipeline.
        data: what differs from the run's data; read by the pipeline.
        seed_as: phases with the same word see the same batches; read by the pipeline.
        gate: bound that the result must keep; read by the pipeline.
    """

    def __init__(
        self,
        kind: str,
        model: dict[str, Any],
        losses: dict[str, Any],
        training: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        seed_as: str | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.kind, self.model, self.losses = kind, model, losses

    def run(self, context: Context) -> Result:
        started = time.perf_counter()
        student, tokenizer = base.build_student(self.model, context)
        stores = base.load_data(context, tokenizer)
        trained = base.train(context, student, tokenizer, self.losses, stores=stores, teachers={}, started=started)
        return finish(context, trained)
