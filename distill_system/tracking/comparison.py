"""Teacher against student: which models a run has, and how each student's figures stand to its teacher's."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from distill_system.tracking.figures import (
    METRICS,
    SIGNED,
    is_number,
    megabytes,
    metric_names,
    metric_words,
    quality,
    quantity,
    short_number,
)
from distill_system.tracking.quantization_parts import KEY, packed_of
from distill_system.tracking.secrets import mask_text
from distill_system.tracking.sides import latency_of, milliseconds

if TYPE_CHECKING:
    from distill_system.tracking.report import Run


@dataclass
class Model:
    """A row of the comparison: a phase's model, or a teacher from outside the run."""

    name: str
    kind: str
    metrics: dict[str, Any]
    size: dict[str, Any]
    latency: dict[str, Any]
    memory: Any = None
    packed: dict[str, Any] = field(default_factory=dict)  # bytes and latency of its packed form, where there is one

    @property
    def figures(self) -> dict[str, float]:
        """What can be compared with a teacher: words -> value. A packed model is what its packed form is."""
        found = {
            "size": self.packed.get("bytes") or self.size.get("size_bytes"),
            "parameters": self.size.get("parameters"),
            "latency": latency_of(self.packed, 1) or latency_of({"latency": self.latency}, 1),
        }
        return {key: float(value) for key, value in found.items() if is_number(value) and value > 0}


def teachers_of(run: "Run", phase: str) -> dict[str, dict[str, Any]]:
    """Name -> input (`phase` or `model`) of each teacher of a phase.

    An input's key is a config key below the phase (`teachers.main.phase`) or the teacher's bare name; which names are teachers say the settings,
    else the evaluation. A phase that says neither was taught by the phases it takes, unless it is a finetune.
    """
    entry = run.phases[phase]
    inputs = {str(key): source for key, source in (entry.get("inputs") or {}).items() if isinstance(source, dict)}
    said = (entry.get("settings") or {}).get("teachers")
    named = said or (run.evaluations.get(phase) or {}).get("teachers") or {}
    found = {}
    for name, setting in named.items():
        keys = (name, f"teachers.{name}", f"teachers.{name}.phase", f"teachers.{name}.model")
        found[name] = next((inputs[key] for key in keys if key in inputs), setting if isinstance(setting, dict) else {})
    if not found and said is None and entry.get("kind") not in (None, "finetune", "mutual", "sensitivity"):
        found = {key: source for key, source in inputs.items() if find_model(run, str(source.get("phase")))}
    return {name: source for name, source in found.items() if source.get("phase") != phase}


def model_of(run: "Run", phase: str) -> Model:
    entry = run.phases[phase]
    return _model(phase, str(entry.get("kind", "")), entry, run.evaluations.get(phase) or {})


def _model(name: str, kind: str, entry: dict[str, Any], evaluation: dict[str, Any]) -> Model:
    metrics = entry.get("metrics") or evaluation.get("metrics") or {}
    keys = ("size_bytes", "parameters", "nonzeros")
    size = {key: entry.get(key) or (evaluation.get("size") or {}).get(key) for key in keys}
    latency = evaluation.get("latency") or entry.get("latency") or {}
    packed = packed_of(entry[KEY]) if isinstance(entry.get(KEY), dict) else {}
    return Model(name, kind, metrics, size, latency, evaluation.get("peak_memory_bytes"), packed)


def members_of(run: "Run", phase: str) -> dict[str, Model]:
    """The models of a phase that trains several, by name; those of an unfinished phase as far as they are there."""
    entries, evaluations = run.phases[phase].get("members") or {}, run.members.get(phase) or {}
    found = {}
    for name in dict.fromkeys([*entries, *evaluations]):
        entry, evaluation = entries.get(name) or {}, evaluations.get(name) or {}
        found[name] = _model(name, "", entry, evaluation)
    return found


def find_model(run: "Run", name: str) -> Model | None:
    """The model of a phase, or of one of its members (`cohort.a`)."""
    if name in run.phases:
        return model_of(run, name)
    phase, _, member = name.partition(".")
    found = members_of(run, phase).get(member) if phase in run.phases else None
    return replace(found, name=name, kind=f"of {phase}") if found else None


def teacher_models(run: "Run", phase: str) -> list[tuple[str, Model]]:
    """(teacher's name, its model) for each teacher of a phase; one from outside brings only the metrics it was given at the start."""
    found = []
    own = (run.evaluations.get(phase) or {}).get("teachers") or {}
    for name, source in teachers_of(run, phase).items():
        model = find_model(run, str(source.get("phase")))
        if model is None:
            metrics = {k: v for k, v in (own.get(name) or {}).items() if k != "chance"}
            told = mask_text(str(source.get("model") or name))
            model = Model(told, "teacher from outside", metrics, {}, {})
        found.append((name, model))
    return found


def best_teacher(run: "Run", phase: str) -> list[tuple[str, Model]]:
    """The teacher with the best quality, as a list of one; empty where there is none. A student's figures are told against this one."""
    teachers = teacher_models(run, phase)
    known = [(quality(model.metrics), name, model) for name, model in teachers]
    graded = [(q.value if q.higher_is_better else -q.value, name, model) for q, name, model in known if q]
    if not graded:
        return teachers[:1]
    _, name, model = max(graded, key=lambda one: one[0])
    return [(name, model)]


def verdict(student: Model, teacher: Model) -> str:
    """One sentence: what the student keeps, and what it costs less."""
    mine, theirs = quality(student.metrics), quality(teacher.metrics)
    parts = []
    if mine and theirs and mine.name == theirs.name and theirs.value:
        against = f"({mine.shown} against {theirs.shown})"
        share = mine.value / theirs.value
        keeps = (
            f"{'keeps' if share < 1.0005 else 'reaches'} {100 * share:.1f}\u00a0% of {teacher.name}’s {mine.label}"
            if mine.higher_is_better
            else f"has {share:.2f} times {teacher.name}’s {mine.label}"
        )
        parts.append(f"{keeps} {against}")
    a, b = student.figures, teacher.figures
    if "size" in a and "size" in b:
        share = 100 * a["size"] / b["size"]
        packed = " (packed)" if student.packed else ""
        parts.append(f"has {share:.{0 if share >= 9.95 else 1}f}\u00a0% of its size{packed}")
    if "latency" in a and "latency" in b:
        faster = b["latency"] / a["latency"]
        parts.append(
            "is as fast"
            if 0.95 < faster < 1.05
            else f"answers {faster:.1f} times as fast"
            if faster > 1
            else f"takes {1 / faster:.1f} times as long"
        )
    return f"{student.name} " + _listed(parts) + "." if parts else ""


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _metric(name: str) -> Callable[[Model], Any]:
    return lambda model: model.metrics.get(name)


def _figure(name: str) -> Callable[[Model], Any]:
    return lambda model: model.figures.get(name)


def _width(value: float, longest: float) -> float:
    return round(100 * max(0.0, value) / longest, 1)


def comparison(run: "Run") -> dict[str, Any]:
    """The table at a glance: a row a model, a column a figure; a student's cells also say their share of its (best) teacher's."""
    models: dict[str, Model] = {}
    partner: dict[str, Model] = {}
    taught: dict[str, str] = {}
    for phase, entry in run.phases.items():
        if "sensitivity" in entry and not entry.get("metrics"):
            continue  # it measures, and hands no model on
        teachers = teacher_models(run, phase)
        for _, teacher in teachers:
            models.setdefault(teacher.name, teacher)
        if teachers:
            partner[phase] = best_teacher(run, phase)[0][1]
            taught[phase] = ", ".join(teacher.name for _, teacher in teachers)
        models[phase] = model_of(run, phase)
        count, best = len(members_of(run, phase)), run.phases[phase].get("best_member")
        if count and best:
            models[phase].kind += f": {best}, the best of {count}"
    return table_of(models, partner, taught)


def table_of(models: dict[str, Model], partner: dict[str, Model], taught: dict[str, str]) -> dict[str, Any]:
    """Models side by side.

    Args:
        models: a row each.
        partner: of some, the model whose figures theirs are told as shares of.
        taught: of some, by whom.
    """
    metrics = metric_names({name: 1.0 for model in models.values() for name in metric_names(model.metrics)})
    columns: list[tuple[str, str, Callable[[Model], Any], Callable[[Any], str]]] = []
    signed = {METRICS[name].label for name in SIGNED}
    for name in metrics:
        label = METRICS[name].label if name in METRICS else name
        columns.append((label, "", _metric(name), functools.partial(metric_words, name)))
    columns += [
        ("size", "", lambda m: m.size.get("size_bytes"), megabytes),
        ("parameters", "", lambda m: m.size.get("parameters"), quantity),
        ("latency p50", "batch 1", lambda m: latency_of({"latency": m.latency}, 1), milliseconds),
        ("throughput", "batch 32", lambda m: (m.latency.get("batch_32") or {}).get("samples_per_s"), lambda v: f"{short_number(v)} /s"),
        ("peak memory", "", lambda m: m.memory, megabytes),
    ]  # fmt: skip
    columns = [column for column in columns if any(is_number(column[2](model)) for model in models.values())]
    rows = []
    for name, model in models.items():
        cells = []
        for label, _, get, words in columns:
            value, sub = get(model), ""
            other = get(partner[name]) if name in partner and label not in signed else None
            if is_number(value) and is_number(other) and other:
                sub = f"{100 * value / other:.0f} %"
            cells.append({"value": words(value) if is_number(value) else "–", "sub": sub})
        nonzeros, parameters = model.size.get("nonzeros"), model.size.get("parameters")
        if is_number(nonzeros) and is_number(parameters) and nonzeros < 0.995 * parameters:
            at = [c[0] for c in columns].index("parameters")
            cells[at]["sub"] = f"{cells[at]['sub']} · {quantity(nonzeros)} not 0".strip(" ·")
        if is_number(model.packed.get("bytes")):
            at = [c[0] for c in columns].index("size")
            cells[at]["sub"] = f"{cells[at]['sub']} · {megabytes(model.packed['bytes'])} packed".strip(" ·")
        rows.append({"name": name, "kind": model.kind, "teacher": taught.get(name, ""), "cells": cells})
    return {"columns": [(label, hint) for label, hint, _, _ in columns], "rows": rows if columns else []}


CHANCE = {  # task -> metric, and what answers without looking
    "classification": ("accuracy", "Always saying the commonest label"),
    "multi_label": ("exact_match", "Always saying the commonest set of labels"),
    "regression": ("mse", "Always saying the mean"),
    "token_classification": ("accuracy", "Always saying the commonest tag"),
}


def chance_words(run: "Run") -> str:
    """What a model that doesn't look at its input would reach: without it an accuracy says little."""
    for evaluation in run.evaluations.values():
        for figures in (evaluation.get("teachers") or {}).values():
            if evaluation.get("task") in CHANCE and is_number(figures.get("chance")):
                metric, who = CHANCE[evaluation["task"]]
                a = "an" if METRICS[metric].label[0] in "aeiou" else "a"
                return f"{who} would have {a} {METRICS[metric].label} of {metric_words(metric, figures['chance'])}."
    return ""


def pairs(run: "Run") -> list[dict[str, Any]]:
    """Each student against its teacher (the best of several): bars relative to the longer of the two, and how much they agree."""
    found = []
    for phase, entry in run.phases.items():
        student = model_of(run, phase)
        if entry.get("best_member"):
            student.name = f"{phase}.{entry['best_member']}"
        for name, teacher in best_teacher(run, phase):
            groups = [
                _bars(label, hint, student, teacher, value, words)
                for label, hint, value, words in _compared(student, teacher)
            ]
            agreement = ((run.evaluations.get(phase) or {}).get("teacher") or {}).get(name) or {}
            words = []
            if is_number(agreement.get("agreement")):
                words.append(f"agree on {100 * agreement['agreement']:.1f} %")
            if is_number(agreement.get("kl")):
                words.append(f"KL divergence {short_number(agreement['kl'])} nats")
            if is_number(agreement.get("pearson")):
                words.append(f"correlate {metric_words('pearson', agreement['pearson'])}")
            if groups:
                found.append(
                    {
                        "student": student.name,
                        "teacher": teacher.name,
                        "groups": groups,
                        "agreement": ", ".join(words),
                        "verdict": verdict(student, teacher),
                    }
                )
    return found


def _compared(student: Model, teacher: Model) -> list[tuple[str, str, Callable[[Model], Any], Callable[[Any], str]]]:
    mine, theirs = quality(student.metrics), quality(teacher.metrics)
    found: list[tuple[str, str, Callable[[Model], Any], Callable[[Any], str]]] = []
    if mine and theirs and mine.name == theirs.name:
        hint = "higher is better" if mine.higher_is_better else "lower is better"
        found.append((mine.label, hint, _metric(mine.name), functools.partial(metric_words, mine.name)))
    rest = (
        ("size", "on disk, packed" if student.packed else "on disk", megabytes),
        ("parameters", "", quantity),
        ("latency", "p50, batch 1", milliseconds),
    )
    for key, hint, words in rest:
        if key in student.figures and key in teacher.figures:
            found.append((key, hint, _figure(key), words))
    return found


def _bars(
    label: str, hint: str, student: Model, teacher: Model, get: Callable[[Model], Any], words: Callable[[Any], str]
) -> dict[str, Any]:
    mine, theirs = get(student), get(teacher)
    longest = max(mine, theirs) or 1
    return {
        "label": label, "hint": hint, "relative": f"{100 * mine / theirs:.0f} %" if theirs else "", "percent": 100 * mine / theirs if theirs else 0.0,
        "bars": [{"who": teacher.name, "role": "teacher", "width": _width(theirs, longest), "words": words(theirs)},
                 {"who": student.name, "role": "student", "width": _width(mine, longest), "words": words(mine)}],
    }  # fmt: skip


def glance_bars(run: "Run") -> tuple[list[str], list[float], list[str]] | None:
    """The same as one picture for a README: the last pair's figures in percent of the teacher's."""
    found = pairs(run)
    if not found:
        return None
    groups = found[-1]["groups"]
    return (
        [g["label"] for g in groups],
        [g["percent"] for g in groups],
        [f"{g['relative']}  ({g['bars'][1]['words']})" for g in groups],
    )
