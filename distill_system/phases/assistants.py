"""A chain from a large teacher to a small student over assistants in between (Mirzadeh et al. 2020, https://arxiv.org/abs/1902.03393).

Each step is a distillation of its own, which is resumed, and skipped once it is finished. With `densely_guided` a step hears all those before it (Son et
al. 2021, https://arxiv.org/abs/2009.08825; differs from the paper in that no teacher is left out at random). Born-again generations are steps of one
size (Furlanello et al. 2018, https://arxiv.org/abs/1805.04770; differs from the paper in that the losses are those of the config).
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from distill_system import distributed
from distill_system.artifacts import Artifact
from distill_system.files import digest_value
from distill_system.phases import base, sizes, steps
from distill_system.phases.context import Context, Result
from distill_system.phases.finish import finish, hand_on, monitor_of, read_member
from distill_system.phases.generations import ensemble_of
from distill_system.phases.teachers import find, load_teachers
from distill_system.schema import Index
from distill_system.settings import BornAgain, Ensemble, Gate, Teacher
from distill_system.training.fit import Outcome, Progress
from distill_system.training.objective import STUDENT


@dataclass(frozen=True)
class Step:
    """What one step trains, and where its recipe stands in the config, below the phase."""

    recipe: Any
    key: str
    seed: int  # of fresh weights


class Assistants:
    """A phase in steps. Its artifact is the last one's: the student, or the last generation.

    Args:
        kind: "assistants".
        model: recipe of the student.
        teachers: one, by any name; an earlier phase or a model from elsewhere.
        losses: by name; each step has its own.
        assistants: recipes by name, from the largest to the smallest.
        count: how many are planned where none is given.
        compare_direct: trains the student straight from the teacher too, for as many optimizer steps as the whole chain.
        densely_guided: each step hears the teacher and all assistants before it.
        ensemble: how these teach together; each assistant weighs 1, the teacher what it is given.
        born_again: steps of the student's size, each with fresh weights, instead of assistants.
        training: what differs from the run's training settings, in each step; read by the pipeline.
        data: what differs from the run's data; read by the pipeline.
        seed_as: phases with the same word see the same batches (all steps do); read by the pipeline.
        gate: bound that the result must keep; read by the pipeline.
    """

    def __init__(
        self,
        kind: str,
        model: dict[str, Any],
        teachers: dict[str, Teacher],  # as the config has them: mappings of its fields
        losses: dict[str, Any],
        assistants: dict[str, Any] | None = None,
        count: Index = 1,
        compare_direct: bool = False,
        densely_guided: bool = False,
        ensemble: Ensemble | None = None,
        born_again: BornAgain | None = None,
        training: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        seed_as: str | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.kind, self.model, self.losses = kind, model, losses
        self.teachers = {name: Teacher(**cast(dict, settings)) for name, settings in teachers.items()}
        self.assistants, self.count = assistants or {}, count
        self.compare_direct, self.densely_guided = compare_direct, densely_guided
        self.ensemble = Ensemble(**cast(dict, ensemble or {}))
        self.born_again = BornAgain(**cast(dict, born_again or {}))

    def run(self, context: Context) -> Result:
        ((teacher_name, teacher),) = self.teachers.items()
        folder = distributed.main_first(lambda: find(teacher, context))
        if teacher.model:  # converted once, for all steps
            teacher = replace(teacher, model=str(folder))
        chain, extra = self.lay_out(context, folder)
        first = heard = {teacher_name: teacher}
        notes: dict[str, steps.Note] = {}
        for name, step in chain.items():
            note = self.take(context, name, step, heard, notes)
            if isinstance(note, Outcome):
                return Result(None, note)
            notes[name] = note
            said = {name: Teacher(phase=f"{context.name}.{name}", placement=teacher.placement)}
            heard = heard | said if self.densely_guided else said
        last, total = name, sum(note.steps for note in notes.values())
        if self.compare_direct:
            own = replace(context, training=replace(context.training, max_steps=total, max_epochs=None))
            note = self.take(own, steps.DIRECT, chain[last], first, {})
            if isinstance(note, Outcome):
                return Result(None, note)
            notes[steps.DIRECT] = note
        return self.conclude(context, notes, last, extra)

    def lay_out(self, context: Context, teacher: Path) -> tuple[dict[str, Step], dict[str, Any]]:
        """The steps from the first to the student, and their sizes for the manifest.

        Raises:
            Refusal: sizes that don't fall, or too few between the two ends.
        """

        def step(name: str, recipe: Any, key: str) -> Step:
            own = int(digest_value([context.phase_seed, name])[:8], 16)
            return Step(
                recipe, key, context.phase_seed if name == steps.STUDENT else own
            )  # it starts as in a distill phase

        if self.born_again.generations:
            names = steps.generations(self.born_again.generations)
            return {name: step(name, self.model, "model") for name in names}, {}
        above, below = sizes.size_of_folder(teacher, context), sizes.size_of(self.model, context)
        targets: list[float] = []
        if self.assistants:
            keys = {name: f"assistants.{name}" for name in self.assistants}
            planned = {name: sizes.size_of(recipe, context, keys[name]) for name, recipe in self.assistants.items()}
        else:
            planned, targets = sizes.plan(self.model, teacher, self.count, context)
            keys = dict.fromkeys(planned, "model")
        planned, keys = planned | {steps.STUDENT: below}, keys | {steps.STUDENT: "model"}
        sizes.check_order(planned, above, context.name, keys)
        told = ", ".join(f"{name} {size}" for name, size in planned.items())
        context.note(f"{'given' if self.assistants else 'planned'} sizes: teacher {above}, {told}")
        shapes = {name: asdict(replace(size, recipe=None)) for name, size in {"teacher": above, **planned}.items()}
        for name, target in zip(planned, targets, strict=False):
            shapes[name]["wished"] = round(target)
        plan = {name: {k: v for k, v in shape.items() if v is not None} for name, shape in shapes.items()}
        return {name: step(name, size.recipe or self.model, keys[name]) for name, size in planned.items()}, {
            "plan": plan
        }

    def take(
        self,
        phase: Context,
        name: str,
        step: Step,
        heard: Mapping[str, Teacher],
        notes: Mapping[str, steps.Note],
    ) -> steps.Note | Outcome:
        """One step: nothing where it is finished, else from its last checkpoint to its end. An Outcome where it was told to leave.

        Args:
            phase: its context.
            name, step: of the step.
            heard: its teachers.
            notes: of the steps before it.
        """
        folders = {f"{phase.name}.{other}": phase.of(other).folder / "model" for other in notes}
        inputs = {key: value for key, value in phase.inputs.items() if key.startswith(f"{step.key}.")}
        for teacher in heard:
            own = {"phase": f"{phase.name}.{teacher}", "digest": notes[teacher].digest} if teacher in notes else None
            given = {key: value for key, value in phase.inputs.items() if key.startswith(f"teachers.{teacher}.")}
            inputs |= {f"teachers.{teacher}.phase": own} if own else given
        content = step.recipe.fingerprint()
        whole = [phase.identity, name, inputs, content, step.seed, phase.training.max_steps, phase.training.max_epochs]
        context = phase.step(
            name,
            identity=digest_value(whole),
            artifacts=phase.artifacts | folders,
            inputs=inputs,
            settings={"model": content},
        )
        note = distributed.main_only(lambda: steps.finished(context.folder, context.identity))
        if note is None:
            if any(distributed.everyone(context.stop_asked())):
                return Outcome(Progress(), preempted=True)
            return self.distil(context, step, heard)
        context.warnings += note.warnings
        context.notes += note.notes
        return note

    def distil(self, context: Context, step: Step, heard: Mapping[str, Teacher]) -> steps.Note | Outcome:
        started = time.perf_counter()
        before = len(context.warnings), len(context.notes)
        student, tokenizer = base.build_student(step.recipe, context, key=step.key, seed=step.seed)
        stores = base.load_data(context, tokenizer)
        students = {STUDENT: student}
        teachers, weights = load_teachers(heard, context, students, tokenizer, stores, self.ensemble)
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
        result = finish(context, trained)
        if result.artifact is None:
            return result.outcome
        warnings, notes = context.warnings[before[0] :], context.notes[before[1] :]

        def end() -> steps.Note:
            assert result.artifact is not None
            progress = asdict(result.outcome.progress)
            note = steps.Note(context.identity, result.artifact.digest, progress, warnings, notes, result.extra)
            note.write(context.folder)
            context.end(context.title, note.steps, result.evaluation["metrics"], warnings)
            return note

        return distributed.main_only(end)

    def conclude(self, context: Context, notes: dict[str, steps.Note], last: str, extra: dict[str, Any]) -> Result:
        """The phase's own artifact and figures, and the verdict on the detour."""
        started = time.perf_counter()
        distributed.main_only(lambda: hand_on(context.folder, last))
        members = {name: read_member(context.of(name)) for name in notes}
        evaluation = members[last].evaluation
        chain = [note for name, note in notes.items() if name != steps.DIRECT]
        extra = extra | {"steps_of": {name: note.steps for name, note in notes.items()}}
        mapping = {f"{name}/{k}": v for name, note in notes.items() for k, v in note.extra.get("mapping", {}).items()}
        extra |= {"mapping": mapping} if mapping else {}
        if steps.DIRECT in notes:
            between = [name for name in notes if name not in (last, steps.DIRECT)]
            verdict = steps.stop_rule(
                monitor_of(context),
                evaluation["metrics"],
                members[steps.DIRECT].evaluation["metrics"],
                steps=(sum(note.steps for note in chain), notes[steps.DIRECT].steps),
                detour=f"the detour over {', '.join(between)}" if between else "the chain",
                split=evaluation["split"],
            )
            extra |= {"stop_rule": verdict}
            context.note(verdict["words"])
        if self.born_again.ensemble:
            folders = {name: context.of(name).folder / "model" for name in notes if name != steps.DIRECT}
            extra |= {"ensemble": ensemble_of(context, folders)}
        outcome = Outcome(Progress(**steps.total_progress(list(notes.values()))))
        seconds = outcome.progress.seconds + time.perf_counter() - started
        return Result(Artifact.read(context.folder / "model"), outcome, evaluation, seconds, members, extra)
