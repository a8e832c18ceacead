"""Who takes part in a phase: students and members that differ and have ranks to live on, losses that somebody can hear, hints between layers that exist."""

import re
from typing import Any

from distill_system.config.across import weighs
from distill_system.config.graph import layers_of, layers_of_recipe
from distill_system.config.instantiate import instantiate
from distill_system.config.recipes import ASSISTANTS, GROUPS, data_node, recipes_of
from distill_system.data.labels import none_known
from distill_system.errors import Problem
from distill_system.models.pretrained import Pretrained
from distill_system.models.weights import number_of_layers
from distill_system.schema import signature_of_target
from distill_system.settings import Cohort, Training

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
OWN_NAMES = ("model", "checkpoints", "teachers", "ensemble")  # folders and figures of the phase itself


def check_members(phase: dict[str, Any], name: str) -> list[Problem]:
    """One model or several, with names that can be folders."""
    key = f"phases.{name}"
    groups = [group for group in GROUPS if phase.get(group)]
    problems = []
    if groups and phase.get("model"):
        text = f"is set beside {groups[0]}; keep one of the two: ~{key}.model, or {key}.{groups[0]}=null"
        problems.append(Problem(f"{key}.model", text))
    for group in groups:
        for member in phase[group]:
            if not NAME.fullmatch(str(member)) or member in OWN_NAMES:
                text = "must be a plain name (letters, digits, '_', '-') and none of " + ", ".join(OWN_NAMES)
                problems.append(Problem(f"{key}.{group}.{member}", f"{text}, as it names a folder"))
    return problems


def check_cohort(config: dict[str, Any], name: str, training: Training) -> list[Problem]:
    """Two members at least, that begin differently, on ranks that can be dealt out."""
    phase, key = config["phases"][name], f"phases.{name}"
    if "members" not in signature_of_target(phase["_target_"]).parameters:
        return []
    members, seeds = phase.get("members") or {}, phase.get("seeds") or {}
    problems = []
    if len(members) < 2:
        text = (
            f"has {len(members) or 'no'} entr{'y' if len(members) == 1 else 'ies'}; a cohort needs two members at least"
        )
        return [Problem(f"{key}.members", f"{text}: add +models@{key}.members.b=from_config")]
    names = list(members)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if members[one] == members[other] and one in seeds and seeds.get(one) == seeds.get(other):
                text = (
                    f"is {seeds[other]}, as that of {one}, which has the same recipe: the two would be one model twice"
                )
                problems.append(Problem(f"{key}.seeds.{other}", f"{text}; set it to {seeds[other] + 1}"))
    for member in seeds:
        if member not in members:
            problems.append(Problem(f"{key}.seeds.{member}", f"names no member ({', '.join(names)})"))
    cohort = Cohort(**(phase.get("cohort") or {}))
    ranks = training.devices * training.nodes
    if cohort.placement == "spread":
        if ranks % len(members):
            lower, upper = ranks // len(members) * len(members), -(-ranks // len(members)) * len(members)
            nearest = f"{lower} or {upper}" if lower else str(upper)
            text = f"is spread, but {ranks} ranks can't be dealt to {len(members)} members; nearest: training.devices={nearest}"
            problems.append(Problem(f"{key}.cohort.placement", f"{text}, or placement=together"))
        for loss_name, loss in (phase.get("peer_losses") or {}).items():
            needs = signature_of_target(loss["_target_"]).attributes.get("needs", ("logits",))
            if tuple(needs) != ("logits",):
                text = f"reads {', '.join(needs)} of peers, but spread members send each other logits only"
                problems.append(
                    Problem(f"{key}.peer_losses.{loss_name}", f"{text}; set {key}.cohort.placement=together")
                )
    return problems


def check_peer_losses(phase: dict[str, Any], name: str, task: str) -> list[Problem]:
    problems = []
    for loss_name, loss in (phase.get("peer_losses") or {}).items():
        key, kind = f"phases.{name}.peer_losses.{loss_name}", loss["_target_"].rpartition(".")[2]
        attributes = signature_of_target(loss["_target_"]).attributes
        if not attributes.get("needs_teacher"):
            text = f"is {kind}, which doesn't listen to anybody; put it under phases.{name}.losses"
            problems.append(Problem(key, text))
        tasks = attributes.get("tasks")
        if tasks and task not in tasks:
            text = f"is {kind}, which has no meaning for a {task} task, only for {', '.join(tasks)}"
            problems.append(Problem(key, text))
    return problems


def check_labels(config: dict[str, Any], name: str) -> list[Problem]:
    """Rows that nobody labelled, and losses that only labels can feed."""
    phase = config["phases"][name]
    source = instantiate(data_node(config, name))
    if source.task == "causal_lm":
        return []
    losses = {**(phase.get("losses") or {}), **(phase.get("peer_losses") or {})}
    told = [
        signature_of_target(loss["_target_"]).attributes for loss in losses.values() if weighs(loss.get("weight", 1.0))
    ]
    if any(loss.get("needs_teacher") and not loss.get("needs_labels") for loss in told):
        return []
    if none_known(source):
        text = "learn from labels alone, but no training row has one"
        fix = f"add a loss that hears a teacher: +losses@phases.{name}.losses.soft=soft_target"
        return [Problem(f"phases.{name}.losses", f"{text}; {fix}")]
    return []


def check_hints(config: dict[str, Any], name: str) -> list[Problem]:
    """Explicit pairs of layers that student or teacher doesn't have, as far as files on this machine tell."""
    phase = config["phases"][name]
    students = [count for node in recipes_of(phase).values() if (count := layers_of_recipe(node, config))]
    teachers = [count for values in (phase.get("teachers") or {}).values() if (count := teacher_layers(config, values))]
    teachers += [count for node in (phase.get(ASSISTANTS) or {}).values() if (count := layers_of_recipe(node, config))]
    problems = []
    for loss_name, loss in (phase.get("losses") or {}).items():
        pairs = loss.get("layers")
        if not isinstance(pairs, list):
            continue
        for number, pair in enumerate(pairs):
            key = f"phases.{name}.losses.{loss_name}.layers[{number}]"
            if not isinstance(pair, list) or len(pair) != 2:
                problems.append(Problem(key, f"is {pair}, must be a pair [student layer, teacher layer]"))
                continue
            for layer, whose, counts in zip(pair, ("student", "teacher"), (students, teachers), strict=True):
                if counts and not 0 <= layer < min(counts):
                    last = min(counts) - 1
                    text = f"names layer {layer} of the {whose}, which has layers 0 to {last}; nearest: {min(max(layer, 0), last)}"
                    problems.append(Problem(key, text))
    return problems


def teacher_layers(config: dict[str, Any], values: dict[str, Any]) -> int | None:
    if values.get("phase"):
        return layers_of(config, values["phase"])
    found = Pretrained(name=values.get("model")).config()
    return number_of_layers(found) if found else None
