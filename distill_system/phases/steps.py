"""The steps of a chain from a teacher to its student: their names, the note that says one is finished, and whether the detour paid. Needs no torch."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill_system.artifacts import Artifact
from distill_system.evaluation.names import HIGHER_IS_BETTER, better
from distill_system.files import read_json, write_json

STUDENT, DIRECT = "student", "direct"  # the chain's last step; and the student straight from the teacher
NOTE = "step.json"  # in the folder of a finished step
SURE = 2.0  # standard errors


def is_chain(phase: Mapping[str, Any]) -> bool:
    """Whether a phase of a config takes steps."""
    return "assistants" in phase


def planned(count: int) -> list[str]:
    return [f"assistant_{number + 1}" for number in range(count)]


def generations(count: int) -> list[str]:
    return [f"generation_{number + 1}" for number in range(count)]


def step_names(phase: Mapping[str, Any]) -> list[str]:
    """Names of a chain's steps in their order, from its node in a config."""
    born = (phase.get("born_again") or {}).get("generations")
    if born:
        names = generations(born)
    else:
        names = [*(phase.get("assistants") or planned(phase.get("count", 1))), STUDENT]
    return [*names, DIRECT] if phase.get("compare_direct") else names


def has_student_s_recipe(phase: Mapping[str, Any], step: str) -> bool:
    """Whether a step is of the student's size. The size of a planned one is known when it runs."""
    return is_chain(phase) and (step in (STUDENT, DIRECT) or step.startswith("generation_"))


@dataclass
class Note:
    """What a finished step leaves to a run that goes on after it."""

    identity: str  # of all that determines the step's result
    digest: str  # of its artifact
    progress: dict[str, Any]  # how much was done
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return int(self.progress["step"])

    def write(self, folder: Path) -> None:
        write_json(folder / NOTE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Note | None":
        """None where there is none, or none that can be read: then the step is done again, from its own checkpoints."""
        try:
            return cls(**read_json(folder / NOTE))
        except (OSError, ValueError, TypeError):
            return None


def finished(folder: Path, identity: str) -> Note | None:
    """The note of a finished step, if it was made of the same and its model is there; what was made of something else goes."""
    note = Note.read(folder)
    if note is None:
        return None
    model = folder / "model"
    if note.identity == identity and model.is_dir() and Artifact.read(model).digest == note.digest:
        return note
    shutil.rmtree(folder, ignore_errors=True)
    return None


def total_progress(notes: Sequence[Note]) -> dict[str, Any]:
    """Sums of what steps did."""
    keys = ("step", "bad_steps", "resumes", "seconds", "samples", "tokens")
    return {key: sum(note.progress[key] for note in notes) for key in keys}


def stop_rule(
    metric: str,
    chain: Mapping[str, float | None],
    direct: Mapping[str, float | None],
    *,
    steps: tuple[int, int],
    detour: str,
    split: str,
) -> dict[str, Any]:
    """Whether a detour paid: its student against the one straight from the teacher.

    The standard error of a share p of n rows is sqrt(p (1 - p) / n); that of the difference takes the two as independent, which is cautious, for both
    answer the same rows.

    Args:
        metric: that decides.
        chain, direct: metrics of the two students.
        steps: optimizer steps of the whole chain, and of the direct path.
        detour: what lies between, in words.
        split: of the rows that they are measured on.
    """
    mine, other = chain.get(metric), direct.get(metric)
    paid = better(metric, mine, other)
    found: dict[str, Any] = {"metric": metric, "chain": mine, "direct": other, "paid": paid, "certain": None}
    found |= {"steps_chain": steps[0], "steps_direct": steps[1], "difference": None, "standard_error": None}
    if mine is None or other is None:
        return found | {"words": f"whether {detour} paid can't be said: {metric} is missing on the {split} rows"}
    difference = (mine - other) if metric in HIGHER_IS_BETTER else (other - mine)
    found["difference"] = difference
    rows = chain.get("samples")
    caution = "one run with one seed; repeat it with others (distill run -m seed=1,2,3) before you believe it"
    if metric in ("accuracy", "exact_match") and rows:
        error = math.sqrt((mine * (1 - mine) + other * (1 - other)) / rows)
        found |= {"standard_error": error, "certain": abs(difference) > SURE * error}
        within = "more than" if found["certain"] else "within"
        caution = f"{within} {SURE:g} standard errors of {error:.4f} ({int(rows)} rows); {caution}"
    equal = steps[0] == steps[1]
    at = f"after {steps[0]} optimizer steps each" if equal else f"after {steps[0]} and {steps[1]} optimizer steps"
    verdict = "paid" if paid else "didn't pay"
    words = (
        f"{detour} {verdict}: {metric} {mine:.4f} of the student against {other:.4f} straight from the teacher, {at}; "
        f"the difference is {abs(difference):.4f}, {caution}"
    )
    return found | {"words": words}
