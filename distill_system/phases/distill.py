"""Trains a student on the signals of a frozen teacher, and on labels where there are any (Hinton et al. 2015, arXiv:1503.02531)."""

import time
from typing import Any, cast

from distill_system.phases import base
from distill_system.phases.finish import finish
from distill_system.phases.teachers import load_teacher, warn_of_poor_teachers
from distill_system.settings import Gate, Teacher


class Distill:
    """A distillation phase.

    Args:
        kind: "distill".
        model: recipe of the student.
        teachers: by name; each an earlier phase or a model from elsewhere.
        losses: by name.
        training: what differs from the run's training settings; read by the pipeline.
        gate: bound that the result must keep; read by the pipeline.
    """

    def __init__(
        self,
        kind: str,
        model: dict[str, Any],
        teachers: dict[str, Teacher],  # as the config has them: mappings of its fields
        losses: dict[str, Any],
        training: dict[str, Any] | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.kind, self.model, self.losses, self.training, self.gate = kind, model, losses, training, gate
        self.teachers = {name: Teacher(**cast(dict, settings)) for name, settings in teachers.items()}

    def run(self, context: base.Context) -> base.Result:
        started = time.perf_counter()
        student, tokenizer = base.build_student(self.model, context)
        stores = base.load_data(context, tokenizer)
        teachers = {
            name: load_teacher(name, settings, context, student, tokenizer) for name, settings in self.teachers.items()
        }
        warn_of_poor_teachers(context, teachers, stores, tokenizer)
        trained = base.train(
            context, student, tokenizer, self.losses, stores=stores, teachers=teachers, started=started
        )
        return finish(context, trained)
