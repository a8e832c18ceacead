"""Makes run folders of phases with several models or teachers, as the pipeline writes them, to look at their pages and to test them.

`python -m tests.tracking.fake_members FOLDER` writes a run of students, one of a cohort, one of a chain and one of several teachers below FOLDER, and
their reports.
"""

import math
import random
import sys
from pathlib import Path
from typing import Any

from distill_system.files import write_json
from tests.tracking.fake_run import classification_evaluation, losses, manifest_phase, write

LABELS = ["negative", "positive"]
FROM_TEACHER = {"teachers.main.phase": {"phase": "teacher", "digest": "9f3c" * 16}}


def evaluation(accuracy: float, parameters: int, rng: random.Random, *, taught: bool = True) -> dict[str, Any]:
    found = classification_evaluation(accuracy, LABELS, taught, rng)
    found["size"] = {"size_bytes": 4 * parameters, "parameters": parameters, "nonzeros": parameters}
    found["latency"]["batch_1"]["p50_ms"] = round(1 + parameters / 4e6, 2)
    return found


def teacher(folder: Path, rng: random.Random, name: str = "teacher", accuracy: float = 0.8521) -> tuple[dict, list]:
    found = evaluation(accuracy, 22_713_986, rng, taught=False)
    write_json(folder / name / "evaluation.json", found)
    return manifest_phase("finetune", found, 100), losses(name, 100, {"hard": (0.72, 0.31)}, rng, 1e-4)


def role_lines(phase: str, steps: int, roles: dict[str, float], parts: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Lines of a phase that trains several roles at once.

    Args:
        phase: its name.
        steps: of the phase.
        roles: by name, the accuracy that each comes to.
        parts: by loss, whom it hears.
    """
    rng, lines = random.Random(5), []
    for step in range(1, steps + 1):
        line: dict[str, Any] = {
            "phase": phase,
            "step": step,
            "time": 1.7e9 + step,
            "loss": 0.0,
            "lr": 1e-4,
            "samples_per_s": 90.0,
        }
        for role, accuracy in roles.items():
            names = [f"{name}/{one}" if one else name for name, heard in parts.items() for one in heard]
            own = {
                f"loss/{role}/{name}": (1.7 - accuracy + math.exp(-4 * step / steps)) * rng.lognormvariate(0, 0.1)
                for name in names
            }
            line |= own | {
                f"loss/{role}": sum(own.values()) / len(parts),
                f"grad_norm/{role}": rng.lognormvariate(0, 0.3),
            }
            line["loss"] += line[f"loss/{role}"]
        line["grad_norm"] = math.sqrt(sum(line[f"grad_norm/{role}"] ** 2 for role in roles))
        lines.append(line)
        if step % (steps // 8) == 0:
            valid = {
                f"valid/{role}/accuracy": accuracy - 0.3 * math.exp(-5 * step / steps)
                for role, accuracy in roles.items()
            }
            nll = {f"valid/{role}/nll": 1.1 - value for role, value in zip(roles, valid.values(), strict=True)}
            lines.append({"phase": phase, "step": step, "time": 1.7e9 + step} | valid | nll)
    return lines


def members_of(
    folder: Path, phase: str, figures: dict[str, tuple[float, int]], rng: random.Random, **more: Any
) -> dict:
    """Evaluations of members in their folders; gives the manifest's entries."""
    entries = {}
    for name, (accuracy, parameters) in figures.items():
        found = evaluation(accuracy, parameters, rng, **more)
        write_json(folder / phase / name / "evaluation.json", found)
        entries[name] = {"digest": "e0" * 32, "metrics": found["metrics"], **found["size"]}
    return entries


def students_run(folder: Path, names: tuple[str, ...] = ("tiny", "small", "medium", "large")) -> Path:
    rng = random.Random(1)
    first, lines = teacher(folder, rng)
    figures = {name: (0.70 + 0.125 * (1 - 0.35**at), 600_000 * 3**at) for at, name in enumerate(names)}
    best = names[-1]
    members = members_of(folder, "students", figures, rng)
    found = evaluation(*figures[best], rng)
    mapping = {f"{name}/hint": {"pairs": [[0, 2], [1, 5]], "projectors": 2} for name in names}
    phases = {
        "teacher": first,
        "students": manifest_phase(
            "distill", found, 200, inputs=FROM_TEACHER, members=members, best_member=best, mapping=mapping
        ),
    }
    lines += role_lines(
        "students", 200, {name: figures[name][0] for name in names}, {"soft": [""], "hint": [""], "hard": [""]}
    )
    write(folder, folder.name, phases, lines, {"students": found}, {})
    return folder


def cohort_run(folder: Path, names: tuple[str, ...] = ("vit", "cnn", "a-resnet-with-a-long-name", "d")) -> Path:
    rng = random.Random(2)
    figures = {name: (0.78 + 0.011 * (at % 3), 1_200_000 + 100_000 * at) for at, name in enumerate(names)}
    members = members_of(folder, "cohort", figures, rng, taught=False)
    found = evaluation(*figures[names[2]], rng, taught=False)
    notes = [
        "cohort.placement is together: training state of all 4 members takes 0.07 GiB of a rank, 9.4 GiB are free, and nothing has to be sent"
    ]
    ensemble = found["metrics"] | {"accuracy": 0.8222}
    phases = {
        "cohort": manifest_phase(
            "mutual", found, 200, members=members, best_member=names[2], ensemble=ensemble, notes=notes
        )
    }
    lines = role_lines(
        "cohort", 200, {name: figures[name][0] for name in names}, {"hard": [""], "peer": list(names[1:])}
    )
    write(folder, folder.name, phases, lines, {"cohort": found}, {})
    return folder


def chain_of_assistants_run(folder: Path) -> Path:
    rng = random.Random(3)
    first, lines = teacher(folder, rng)
    figures = {
        "assistant_1": (0.841, 9_100_000),
        "assistant_2": (0.826, 3_600_000),
        "student": (0.801, 1_400_000),
        "direct": (0.8042, 1_400_000),
    }
    members = members_of(folder, "chain", figures, rng)
    found = evaluation(*figures["student"], rng)
    words = (
        "the detour over assistant_1, assistant_2 didn't pay: accuracy 0.8010 of the student against 0.8042 straight from the teacher, after 300 optimizer "
        "steps each; the difference is 0.0032, within 2 standard errors of 0.0145 (1494 rows); one run with one seed; repeat it with others (distill run "
        "-m seed=1,2,3) before you believe it"
    )
    steps = {name: 300 if name == "direct" else 100 for name in figures}
    phases = {
        "teacher": first,
        "chain": manifest_phase(
            "assistants", found, 600, inputs=FROM_TEACHER, members=members, steps_of=steps, stop_rule={"paid": False, "words": words},
            notes=["planned sizes: teacher 22,713,986 parameters, assistant_1 9,100,000", words],
        ),
    }  # fmt: skip
    for name in figures:
        lines += losses(f"chain.{name}", steps[name], {"soft": (1.9, 0.22), "hard": (0.75, 0.41)}, rng, 3e-4)
    lines.append({"phase": "chain", "step": 600, "time": 1.7e9, "event": "finish"})
    write(folder, folder.name, phases, lines, {"chain": found}, {})
    return folder


def faculty_run(folder: Path) -> Path:
    """Three teachers, one a model from outside with a long name, whose losses are heard one by one, and weights that change."""
    rng = random.Random(4)
    names = {"main": "teacher", "second": "another-teacher"}
    phases, lines = {}, []
    for at, name in enumerate(names.values()):
        phases[name], more = teacher(folder, rng, name, 0.8521 - 0.01 * at)
        lines += more
    outside = "an-organisation/a-model-of-the-hub-with-a-rather-long-name"
    inputs = {f"teachers.{key}.phase": {"phase": name, "digest": "9f3c" * 16} for key, name in names.items()}
    inputs["teachers.outside.model"] = {"model": outside}
    settings: dict[str, Any] = {"teachers": {**{key: {"phase": name, "weight": 1.0} for key, name in names.items()}, "outside": {"model": outside, "weight": 2.0}},
                "ensemble": {"combine": "losses", "weighting": "fixed"}}  # fmt: skip
    found = evaluation(0.8233, 4_000_000, rng)
    found["teacher"] = {
        key: {"agreement": 0.9 - 0.02 * at, "kl": 0.08 + 0.01 * at} for at, key in enumerate(settings["teachers"])
    }
    found["teachers"]["outside"] = {"accuracy": 0.8021, "nll": 0.41, "chance": 0.5}
    phases["student"] = manifest_phase("distill", found, 200, inputs=inputs, settings=settings)
    parts = {f"{loss}/{key}": (1.9, 0.3) for loss in ("soft", "hint", "relation") for key in settings["teachers"]} | {
        "hard": (0.8, 0.4)
    }
    own = losses("student", 200, parts, rng, 3e-4)
    for line in own:
        if "loss" in line:
            line |= {f"weight/{name}": 1 - line["step"] / 200 if name.startswith("hint") else 1.0 for name in parts}
    write(folder, folder.name, phases, lines + own, {"student": found}, {})
    return folder


RUNS = (students_run, cohort_run, chain_of_assistants_run, faculty_run)

if __name__ == "__main__":
    from distill_system.tracking.report import write_report

    for make in RUNS:
        print(write_report(make(Path(sys.argv[1]) / make.__name__)))
