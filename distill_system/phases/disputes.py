"""Which training labels the first teacher of a phase disputes, measured once before it teaches."""

from collections.abc import Mapping
from typing import Any

from distill_system import distributed
from distill_system.data.tokens import Stores
from distill_system.errors import refuse
from distill_system.evaluation.disputes import write_disputes
from distill_system.evaluation.predict import predict
from distill_system.phases.base import data_module
from distill_system.phases.context import Context
from distill_system.training.teachers import Teacher


def list_disputes(context: Context, teachers: Mapping[str, Teacher], stores: Stores, tokenizer: Any) -> None:
    """disputes.json and disputes.csv in the phase's folder, all ranks together; nothing is done twice when the phase is resumed.

    Raises:
        Refusal: the task has no classes, or the teacher doesn't know all of them.
    """
    key = f"phases.{context.name}.disputes"
    name, teacher = next(iter(teachers.items()))
    if context.task != "classification":
        raise refuse(key, f"is true, but a {context.task} task has no single label to dispute; set it to false")
    if teacher.known is not None:
        raise refuse(key, f"is true, but teacher {name} knows only part of the classes; put another first")
    if distributed.from_main((context.folder / "disputes.csv").is_file()):
        return
    data = data_module(context, stores, tokenizer, start_step=0, total_steps=0)
    predictions = predict(
        teacher,
        data.evaluation_batches("train"),
        context.task,
        context.device,
        modules=[teacher.module],
        samples=len(stores["train"]),
    )
    if distributed.is_main():
        write_disputes(
            context.folder,
            predictions,
            stores["train"],
            context.label_names or [],
            noisy=stores.summary.get("noisy", {}).get("train", 0),
            teacher=name,
        )
    distributed.barrier()
