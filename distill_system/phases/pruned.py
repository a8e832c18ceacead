"""The model of a prune phase as its newest checkpoint needs it: built, cut again where it was cut, masked; and what the phase tells of it at its end."""

import copy
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distill_system.errors import refuse
from distill_system.export.sparse import write_sparse
from distill_system.files import read_json
from distill_system.losses.base import Loss
from distill_system.models.anatomy import UnknownAnatomy, find_anatomy
from distill_system.phases import base
from distill_system.phases.context import Context, Result, Trained
from distill_system.pruning.base import Group, Surgery
from distill_system.pruning.cut import cut, sources
from distill_system.pruning.masks import PRIVATE, masked_modules
from distill_system.pruning.weights import element_groups
from distill_system.settings import Pruning
from distill_system.training import checkpoint
from distill_system.training.engine import Engine
from distill_system.training.masking import prepare
from distill_system.training.objective import STUDENT
from distill_system.training.rounds import Rounds

ROLE = f"roles.{STUDENT}."
WORTH_IT = 0.1  # share of the file's bytes that must be saved before it is stored in a form that plain `from_pretrained` doesn't read
ALLOCATION = "allocation.json"  # in the artifact of a sensitivity phase


@dataclass
class Stage:
    """A model between two cuts.

    Attributes:
        model: on the CPU, whole, the same on every rank.
        tokenizer: its own.
        kind: of the pruning.
        before: groups of the model before any cut.
        groups: of the model as it is.
        whole: weights in the groups before any cut.
        original: layers before any cut.
        remaining: numbers of the layers that are left.
        allocation: suggested share of each group, and their `target`; None without one.
        loading: how the newest checkpoint is read.
        surgeries: that the model has undergone.
        removed: sentences about them.
        loads_plainly: whether the config can say the model's shape.
    """

    model: nn.Module
    tokenizer: Any
    kind: str
    before: list[Group]
    groups: list[Group]
    whole: int
    original: int
    remaining: list[int]
    allocation: Mapping[str, float] | None
    loading: checkpoint.Loading | None = None
    surgeries: list[Surgery] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    loads_plainly: bool = True

    def plan(self, schedule: Pruning) -> str:
        """What will happen, for a person."""
        units = sum(group.units for group in self.before) if self.kind != "layers" else self.original
        places = len(self.before) if self.kind != "layers" else 1
        what = f"{units:,} {self.kind} in {places} {'group' if places == 1 else 'groups'}"
        once = schedule.shape == "one_shot"
        rhythm = f"every {schedule.every} steps" if schedule.every else f"{schedule.rounds} rounds"
        rhythm = "in one round" if once else f"{rhythm}, {schedule.shape}"
        when = f"after {schedule.begin:.0%}" if once else f"between {schedule.begin:.0%} and {schedule.end:.0%}"
        first = f"{self.before[0].name} to {self.before[-1].name}" if self.kind != "layers" else ""
        return (
            f"prune: {what}{f' ({first})' if first else ''}; {rhythm}, to {schedule.final_sparsity:.1%} "
            f"{when} of the steps; done so far: {'; '.join(self.removed) or 'nothing'}"
        )

    def follow(self, losses: Mapping[str, Loss]) -> dict[str, Loss]:
        """Losses between layers, whose pairs follow the layers that are left."""
        if self.kind != "layers" or len(self.remaining) == self.original:
            return dict(losses)
        followed = {}
        for name, loss in losses.items():
            followed[name] = copy.deepcopy(loss)
            followed[name].survivors = (tuple(self.remaining), self.original)
        return followed

    def masks(self, engine: Engine) -> dict[str, Any]:
        """Masks of single weights, by the name of the weight in the objective; those of whole lines are cut, or take nothing out."""
        found: dict[str, Any] = {}
        for name, module in masked_modules(engine.objective.roles[STUDENT]):
            weight, mask = (module.get_parameter(own) for own in ("weight", "weight_mask"))
            if getattr(mask, "ds_shape", mask.shape) == getattr(weight, "ds_shape", weight.shape):
                found[f"{ROLE}{name}.weight"] = mask
        return found

    def described(self, engine: Engine, rounds: Rounds) -> dict[str, Any]:
        """The phase's record: what is left of each group, and what went."""
        if self.kind == "layers":
            groups = [
                {
                    "name": f"layer {i}",
                    "layer": i,
                    "units": 1,
                    "kept": int(i in self.remaining),
                    "sparsity": 1.0 - (i in self.remaining),
                }
                for i in range(self.original)
            ]
            return {
                "groups": groups,
                "removed": self.removed,
                "cut": bool(self.surgeries),
                "loads_plainly": self.loads_plainly,
            }
        kept = {name: len(stay) for surgery in self.surgeries for name, stay in surgery.keep.items()}
        if self.before[0].block is not None:  # single weights and blocks stay where they are
            kept = rounds.alive_of_groups(engine)
        groups = []
        removed = list(self.removed)
        for group in self.before:
            units = group.elements if group.block else group.units
            left = kept.get(group.name, units)
            groups.append(
                {"name": group.name, "layer": group.layer, "units": units, "kept": left, "sparsity": 1 - left / units}
            )
            if group.block is not None:
                removed.append(f"{group.name}: {units - left:,} of {units:,} weights")
        return {"groups": groups, "removed": removed, "cut": bool(self.surgeries), "loads_plainly": self.loads_plainly}


def stage_of(context: Context, recipe: Any, pruner: Any) -> Stage:
    """Builds the model that the newest checkpoint asks for, all ranks alike."""
    model, tokenizer = base.build_student(recipe, context)
    key = f"phases.{context.name}.pruner"
    store, _ = checkpoint.newest(context.folder / "checkpoints", context.identity)
    memory = store.state.get("modifier") if store is not None else None
    try:
        groups = groups_of(pruner, model, key)
        original = find_anatomy(model).count if pruner.kind == "layers" else 0
        stage = Stage(
            model,
            tokenizer,
            pruner.kind,
            before=groups,
            groups=groups,
            whole=sum(group.elements for group in groups),
            original=original,
            remaining=list(range(original)),
            allocation=allocation_of(context, pruner, groups),
        )
        if memory:
            _operate(stage, memory, context)
            stage.groups = groups_of(pruner, model, key)
    except UnknownAnatomy as error:
        raise refuse(key, f"is {pruner.kind}, but the model {error}") from error
    cut_already = bool(stage.surgeries) and pruner.kind != "layers"
    if pruner.kind != "layers" and not cut_already:
        prepare(model, stage.groups, pruner.score.lr_scale if pruner.score.learned else None)
        straight_through(model, stage.groups, pruner.score)
    return stage


def straight_through(model: nn.Module, groups: Sequence[Group], score: Any) -> None:
    """A score that adds up gradients, and may bring a weight back, has to hear what a masked weight would have done."""
    for part in (part for group in groups for part in group.slices):
        module: Any = model.get_submodule(part.name.rpartition(".")[0])
        module.dense_gradient = score.observes and score.revives


def groups_of(pruner: Any, model: nn.Module, key: str) -> list[Group]:
    return element_groups(model, (1, 1)) if pruner.kind == "layers" else pruner.groups(model, key)


def _operate(stage: Stage, memory: Mapping[str, Any], context: Context) -> None:
    """Cuts the model as its checkpoint says, and finds out how that is read."""
    pending = memory["pending"]
    for values in [*memory["surgeries"], *([pending] if pending else [])]:
        surgery = Surgery(**values)
        origin = sources(stage.model, surgery) if values is pending else None
        report = cut(stage.model, surgery)
        stage.surgeries.append(surgery)
        stage.loads_plainly = report.loads_plainly
        if surgery.kind == "layers":
            before = stage.remaining
            stage.remaining = [before[place] for place in surgery.keep["layers"]]
            gone = ", ".join(str(number) for number in before if number not in stage.remaining)
            stage.removed.append(f"layer{'s' if ',' in gone else ''} {gone}")
        else:
            stage.removed += report.lines
        if origin is not None:
            stage.loading = checkpoint.Loading(origin=in_objective(origin, surgery))
            if surgery.kind != "layers":
                for line in report.lines:
                    context.tell(line)
    if memory["instead"]:
        stage.loading = checkpoint.Loading(instead=context.folder / "checkpoints" / memory["instead"])


def in_objective(origin: Callable[[str], Any], surgery: Surgery) -> Callable[[str], checkpoint.Origin | None]:
    """The same for names in the objective: a mask or a score is cut as the weight it lies beside; a loss's projector follows its layer."""
    stay = surgery.keep["layers"] if surgery.kind == "layers" else None

    def of(name: str) -> checkpoint.Origin | None:
        if not name.startswith(ROLE):
            if stay is not None:
                name = re.sub(r"\.projectors\.(\d+)-", lambda match: f".projectors.{stay[int(match[1])]}-", name)
            return checkpoint.Origin(name, {})
        own = name.removeprefix(ROLE)
        suffix = next((end for end in PRIVATE if own.endswith(end)), "")
        source = origin(own.removesuffix(suffix))
        return None if source is None else checkpoint.Origin(f"{ROLE}{source.name}{suffix}", source.lines)

    return of


def allocation_of(context: Context, pruner: Any, groups: Sequence[Group]) -> dict[str, float] | None:
    phase = getattr(pruner, "allocation", None)
    if phase is None:
        return None
    path = context.artifacts[phase] / ALLOCATION
    key = f"phases.{context.name}.pruner.allocation"
    if not path.is_file():
        raise refuse(key, f"is '{phase}', which left no allocation; name a phase of kind sensitivity")
    suggested = read_json(path)
    shares: dict[str, float] = {"target": float(suggested["target"])} | suggested["groups"]
    missing = [group.name for group in groups if group.name not in shares]
    if missing:
        raise refuse(key, f"is '{phase}', which says nothing of {missing[0]}; it measured {suggested['kind']}")
    return shares


def storage_of(storage: str, pruner: Any, stage: Stage, trained: Trained, sparsity: float) -> Callable[..., Any] | None:
    """How the model is written: positions and values where zeros are many enough, or as always (None)."""
    if pruner.kind not in ("weights", "blocks") or storage == "dense":
        return None
    model: Any = trained.engine.objective.roles[STUDENT]
    everything = sum(
        getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters() if not name.endswith(PRIVATE)
    )
    if storage == "auto" and sparsity * stage.whole < WORTH_IT * everything:
        return None
    blocks = {group.name: group.block for group in stage.groups if group.block and group.block != (1, 1)}
    return functools.partial(write_sparse, blocks=blocks)


def before_and_after(context: Context, recipe: Any, result: Result) -> dict[str, Any]:
    """Bytes, parameters, latency and metrics of the phase's input, where it was measured in this run, and of its result."""
    after = _figures(result.evaluation)
    phase = getattr(recipe, "phase", None)
    path = context.artifacts[phase].parent / "evaluation.json" if phase in context.artifacts else None
    before = _figures(read_json(path)) if path is not None and path.is_file() else None
    return {"before": before, "after": after}


def _figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {**evaluation["size"], "latency": evaluation["latency"], "metrics": evaluation["metrics"]}
