"""Chains of assistants: one teacher, steps that make sense, and sizes that fall from the teacher to the student, as far as configs and files tell."""

from dataclasses import dataclass
from typing import Any

from distill_system.config.cast import NAME, OWN_NAMES
from distill_system.config.instantiate import instantiate
from distill_system.config.recipes import ASSISTANTS, phase_of, recipe_of, takes_whole
from distill_system.errors import Problem
from distill_system.models.pretrained import Pretrained
from distill_system.models.weights import first_of, number_of_layers
from distill_system.phases.steps import DIRECT, STUDENT, generations, is_chain, planned
from distill_system.settings import BornAgain, Teacher

WIDTHS = ("hidden_size", "n_embd", "dim", "d_model")
INNER = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim")
PLANNABLE = ("distill_system.models.from_config.FromConfig", "distill_system.models.from_layers.FromLayers")


def check_steps(phase: dict[str, Any], name: str) -> list[Problem]:
    """What spans the settings of a chain."""
    if not is_chain(phase):
        return []
    key, assistants = f"phases.{name}", phase[ASSISTANTS] or {}
    born = BornAgain(**(phase.get("born_again") or {}))
    problems = []
    teachers = list(phase.get("teachers") or {})
    if len(teachers) > 1:
        text = (
            f"has {len(teachers)} entries, but a chain starts from one teacher; remove ~{key}.teachers.{teachers[-1]}"
        )
        problems.append(Problem(f"{key}.teachers", f"{text}, or teach a student with a distill phase"))
    taken = {*OWN_NAMES, STUDENT, DIRECT, *teachers}
    for step in assistants:
        if not NAME.fullmatch(str(step)) or step in taken:
            text = "must be a plain name (letters, digits, '_', '-') and none of " + ", ".join(sorted(taken))
            problems.append(Problem(f"{key}.{ASSISTANTS}.{step}", f"{text}, as it names a folder"))
    if assistants and not phase.get("model"):
        text = f"is not chosen; add +models@{key}.model=hub (or another choice of conf/models)"
        problems.append(Problem(f"{key}.model", text))
    if born.generations and assistants:
        text = f"is {born.generations}, but {key}.{ASSISTANTS} are given too: generations have the student's own size; keep one"
        problems.append(Problem(f"{key}.born_again.generations", f"{text} of the two"))
    if born.ensemble and not born.generations:
        text = "is true, but there are no generations whose mean could be measured"
        problems.append(Problem(f"{key}.born_again.ensemble", f"{text}; set {key}.born_again.generations=3"))
    names = set(generations(born.generations) if born.generations else [] if assistants else planned(phase["count"]))
    for clash in sorted(names & set(teachers)):
        text = f"is the name of a step too; call the teacher main: +{key}.teachers.main"
        problems.append(Problem(f"{key}.teachers.{clash}", text))
    if assistants or born.generations:
        return problems
    if phase["count"] == 0:
        text = f"is 0 and {key}.{ASSISTANTS} is empty: a chain without assistants is a distill phase"
        problems.append(Problem(f"{key}.count", f"{text}; set {key}.count=1"))
    elif (phase.get("model") or {}).get("_target_", PLANNABLE[0]) not in PLANNABLE:
        text = "can be planned for models from_config and from_layers only, whose depth can be set"
        problems.append(Problem(f"{key}.count", f"{text}; name assistants: +models@{key}.{ASSISTANTS}.a=from_layers"))
    return problems


@dataclass(frozen=True)
class Shape:
    """What decides a model's size, as far as it is known; sizes of one architecture can be compared without counting parameters."""

    architecture: str
    layers: int
    width: int
    inner: int | None

    def __str__(self) -> str:
        inner = f" ({self.inner} inside)" if self.inner else ""
        return f"{self.layers} layer{'s' if self.layers > 1 else ''} of width {self.width}{inner}"

    def is_larger(self, other: "Shape") -> bool:
        """Certainly larger: in nothing smaller, in something larger."""
        mine, theirs = (self.layers, self.width, self.inner or 0), (other.layers, other.width, other.inner or 0)
        same_kind = self.architecture == other.architecture and bool(self.inner) == bool(other.inner)
        return same_kind and mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))


def check_sizes(config: dict[str, Any], name: str) -> list[Problem]:
    """Assistants that are certainly larger than what teaches them, a student larger than an assistant, and plans for which there is no room."""
    phase, key = config["phases"][name], f"phases.{name}"
    if not is_chain(phase) or (phase.get("born_again") or {}).get("generations"):
        return []
    teachers = list((phase.get("teachers") or {}).items())
    teacher = teacher_shape(config, Teacher(**teachers[0][1])) if teachers else None
    nodes = {f"{ASSISTANTS}.{step}": node for step, node in (phase[ASSISTANTS] or {}).items()}
    student = phase.get("model") or None
    above = [(f"the teacher {teachers[0][0]}", teacher)] if teachers else []
    problems = []
    for place, node in (nodes | ({"model": student} if student else {})).items():
        shape = shape_of(config, node)
        smaller = next(
            ((who, other) for who, other in reversed(above) if shape and other and shape.is_larger(other)), None
        )
        if smaller:
            text = f"has {shape}, more than {smaller[0]}, which comes before it and has {smaller[1]}"
            problems.append(Problem(f"{key}.{place}", f"{text}; sizes must fall from the teacher to the student"))
        above.append((place.rpartition(".")[2], shape))
    if not problems and not nodes and student:
        problems += check_room(shape_of(config, student), teacher, student, phase["count"], f"{key}.count")
    return problems


def check_room(
    student: Shape | None, teacher: Shape | None, node: dict[str, Any], count: int, key: str
) -> list[Problem]:
    """Whether a plan by depth alone has enough depths between the two ends."""
    if not student or not teacher or node.get("_target_") != PLANNABLE[1]:
        return []
    if (student.architecture, student.width, student.inner) != (teacher.architecture, teacher.width, teacher.inner):
        return []
    room = teacher.layers - student.layers - 1
    if count <= max(room, 0):
        return []
    fix = f"nearest: {room}" if room > 0 else "take fewer layers for the student, or a distill phase"
    text = f"is {count}, but between the student's {student.layers} and the teacher's {teacher.layers} layers there "
    return [
        Problem(
            key,
            f"{text}{'is' if room == 1 else 'are'} {max(room, 0) or 'no'} other depth{'s' if room != 1 else ''}; {fix}",
        )
    ]


def teacher_shape(config: dict[str, Any], teacher: Teacher) -> Shape | None:
    if teacher.phase:
        return shape_left(config, teacher.phase)
    return _shape(Pretrained(name=teacher.model).config()) if teacher.model else None


def shape_of(config: dict[str, Any], node: dict[str, Any], seen: tuple[str, ...] = ()) -> Shape | None:
    """Of a recipe's model, following references to phases; None where it can't be known without the hub, or before a phase ran."""
    if takes_whole(node):
        return shape_left(config, node["phase"], seen) if node.get("phase") else None
    recipe = instantiate(node)
    if not hasattr(recipe, "range_problems"):
        return _shape(recipe.config()) if hasattr(recipe, "config") else None
    kept = recipe.num_layers if recipe.layers == "even" else len(recipe.layers)
    if recipe.phase is None:
        source = _shape(recipe.config())
    else:
        source = shape_left(config, recipe.phase, seen)
    return Shape(source.architecture, kept, source.width, source.inner) if source and kept else None


def shape_left(config: dict[str, Any], output: str, seen: tuple[str, ...] = ()) -> Shape | None:
    """Of the model that a phase, or a member of one, leaves; how much a pruning leaves isn't known before."""
    phase = phase_of(config, output) if output not in seen else None
    if phase is None or config["phases"][phase].get("kind") == "prune":
        return None
    node = recipe_of(config, output)
    return shape_of(config, node, (*seen, output)) if node is not None else None


def _shape(values: dict[str, Any] | None) -> Shape | None:
    layers = number_of_layers(values) if values else None
    width = first_of(values, *WIDTHS) if values else None
    if not values or not layers or not width:
        return None
    return Shape(str(values.get("model_type")), layers, width, first_of(values, *INNER))
