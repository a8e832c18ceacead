"""Trains students on the signals of frozen teachers, and on labels where there are any (Hinton et al. 2015, arXiv:1503.02531)."""

import time
from typing import Any, cast

from distill_system.phases import base
from distill_system.phases.context import Context, Result
from distill_system.phases.disputes import list_disputes
from distill_system.phases.finish import finish
from distill_system.phases.teachers import load_teachers
from distill_system.settings import Ensemble, Gate, Teacher
from distill_system.training.objective import STUDENT


class Distill:
    """A distillation phase: one student, or several of different sizes that hear the same teachers and see the same batches.

    Args:
        kind: "distill".
        model: recipe of the student.
        students: recipes by name, instead of `model`: one teacher forward serves all, one engine trains all, each becomes an artifact.
        teachers: by name; each an earlier phase or a model from elsewhere.
        ensemble: how several teachers teach together.
        losses: by name; each student has its own.
        training: what differs from the run's training settings; read by the pipeline.
        data: what differs from the run's data; read by the pipeline.
        seed_as: phases with the same word see the same batches; read by the pipeline.
        disputes: list the training labels that the first teacher disputes most.
        gate: bound that the result must keep; read by the pipeline.
    """

    def __init__(
        self,
        kind: str,
        teachers: dict[str, Teacher],  # as the config has them: mappings of its fields
        losses: dict[str, Any],
        model: dict[str, Any] | None = None,
        students: dict[str, Any] | None = None,
        ensemble: Ensemble | None = None,
        training: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        seed_as: str | None = None,
        disputes: bool = False,
        gate: Gate | None = None,
    ) -> None:
        self.kind, self.model, self.losses, self.disputes = kind, model, losses, disputes
        self.students = students or {}
        self.teachers = {name: Teacher(**cast(dict, settings)) for name, settings in teachers.items()}
        self.ensemble = Ensemble(**cast(dict, ensemble or {}))

    def run(self, context: Context) -> Result:
        started = time.perf_counter()
        if self.students:
            students, tokenizer = base.build_members(self.students, context, group="students")
        else:
            student, tokenizer = base.build_student(self.model, context)
            students = {STUDENT: student}
        stores = base.load_data(context, tokenizer)
        teachers, weights = load_teachers(self.teachers, context, students, tokenizer, stores, self.ensemble)
        if self.disputes:
            list_disputes(context, teachers, stores, tokenizer)
        trained = base.train(
            context,
            students,
            tokenizer,
            self.losses,
            stores=stores,
            teachers=teachers,
            weights=weights,
            ensemble=self.ensemble,
            started=started,
        )
        return finish(context, trained)
