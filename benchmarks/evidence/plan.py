"""`benchmarks/evidence/NAME.yaml`: what an experiment is asked, which arms are compared, on which seeds, and what a pilot said beforehand.

    question: Does ...?
    metric: accuracy            # of evaluation.json, or `recall:LABEL`; a comparison may name its own
    higher_is_better: true
    minimal_effect: 0.01        # the smallest difference that anyone would care about, in the metric's unit
    setups:                     # one or more rows of trials; a new set-up gets a new name, so that the results of the first stay
      first:
        title: what is special about it
        experiment: evidence/NAME
        overrides: []           # of the experiment
        seeds: [1, 2, 3, 4, 5]
        pilot: {deviation: 0.012, seeds: 3, text: how the sizes were chosen}
        corrections: {arm: {phase: kd, label: LABEL}}   # derived arms, see correction.py
        comparisons:
          - {name: KD against CE, baseline: ce, method: kd}
        curve: {dense: 0, half: 50}     # draws these arms' figures over a number, each with the interval of its difference to the first
        curve_axis: pruned weights, %   # what the number is
    notes: what a reader must know to judge the figures

An arm is a phase (`kd`), a member of one (`cohort.a`), a list (the mean of its members), or `{best: [a, b]}`: whichever is best on the test rows of a seed, which
flatters it and therefore is for baselines.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distill_system.errors import Problem, Refusal, nearest, refuse

FOLDER = Path(__file__).parent
Arm = str | list[str] | dict[str, list[str]]


@dataclass(frozen=True)
class Comparison:
    name: str
    baseline: Arm
    method: Arm
    metric: str
    higher_is_better: bool
    minimal_effect: float


@dataclass(frozen=True)
class Setup:
    name: str
    title: str
    experiment: str
    overrides: list[str]
    seeds: list[int]
    comparisons: list[Comparison]
    pilot: dict[str, Any] = field(default_factory=dict)
    corrections: dict[str, dict[str, str]] = field(default_factory=dict)
    curve: dict[str, float] = field(default_factory=dict)
    curve_axis: str = ""

    def metrics(self) -> list[str]:
        return list(dict.fromkeys(comparison.metric for comparison in self.comparisons))


@dataclass(frozen=True)
class Plan:
    name: str
    question: str
    setups: dict[str, Setup]
    title: str
    notes: str = ""


TOP = {"question", "title", "metric", "higher_is_better", "minimal_effect", "setups", "notes"}
SETUP = {"title", "experiment", "overrides", "seeds", "pilot", "corrections", "comparisons", "curve", "curve_axis"}
COMPARISON = {field.name for field in dataclasses.fields(Comparison)}


def names(folder: Path = FOLDER) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_plan(name: str, folder: Path = FOLDER) -> Plan:
    """Raises Refusal with every problem of the file."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise refuse("NAME", f"is '{name}'{nearest(name, names(folder))}, must be one of {', '.join(names(folder))}")
    return plan_of(name, yaml.safe_load(path.read_text(encoding="utf-8")))


def plan_of(name: str, content: Mapping[str, Any]) -> Plan:
    problems = _problems(content)
    if problems:
        raise Refusal([Problem(f"{name}.yaml: {problem.key}", problem.message) for problem in problems])
    shared = {
        "metric": content.get("metric", "accuracy"),
        "higher_is_better": content.get("higher_is_better", True),
        "minimal_effect": float(content["minimal_effect"]),
    }
    setups = {
        key: Setup(
            name=key,
            title=values.get("title", ""),
            experiment=values.get("experiment", f"evidence/{name}"),
            overrides=list(values.get("overrides", [])),
            seeds=list(values["seeds"]),
            comparisons=[Comparison(**(shared | comparison)) for comparison in values["comparisons"]],
            pilot=dict(values.get("pilot", {})),
            corrections=dict(values.get("corrections", {})),
            curve=dict(values.get("curve", {})),
            curve_axis=values.get("curve_axis", ""),
        )
        for key, values in content["setups"].items()
    }
    title = content.get("title", name.replace("_", " ").capitalize())
    return Plan(name, content["question"], setups, title, content.get("notes", "").strip())


def arms_of(arm: Arm) -> list[str]:
    """Names of the phases and members that an arm is made of."""
    if isinstance(arm, str):
        return [arm]
    return list(arm["best"]) if isinstance(arm, dict) else list(arm)


def arm_words(arm: Arm) -> str:
    if isinstance(arm, str):
        return arm
    return f"best of {', '.join(arm['best'])}" if isinstance(arm, dict) else f"mean of {', '.join(arm)}"


def _problems(content: Mapping[str, Any]) -> list[Problem]:
    problems = _keys(content, TOP, {"question", "minimal_effect", "setups"}, "")
    for name, setup in (content.get("setups") or {}).items():
        place = f"setups.{name}"
        problems += _keys(setup, SETUP, {"seeds", "comparisons"}, place)
        seeds = setup.get("seeds", [])
        if len(set(seeds)) != len(seeds) or len(seeds) < 3:
            problems.append(Problem(f"{place}.seeds", f"is {seeds}, must be at least 3 different numbers"))
        for at, comparison in enumerate(setup.get("comparisons", [])):
            where = f"{place}.comparisons[{at}]"
            problems += _keys(comparison, COMPARISON, {"name", "baseline", "method"}, where)
            for key in ("baseline", "method"):
                if isinstance(comparison.get(key), dict) and set(comparison[key]) != {"best"}:
                    problems.append(Problem(f"{where}.{key}", "must be a phase, a list of phases, or {best: [...]}"))
        curve = setup.get("curve", {})
        if curve and (len(curve) < 2 or not all(isinstance(x, (int, float)) for x in curve.values())):
            problems.append(Problem(f"{place}.curve", f"is {curve}, must give a number for each of at least 2 arms"))
        for arm, correction in setup.get("corrections", {}).items():
            problems += _keys(correction, {"phase", "label"}, {"phase", "label"}, f"{place}.corrections.{arm}")
    return problems


def _keys(values: Mapping[str, Any], known: set[str], needed: set[str], place: str) -> list[Problem]:
    prefix = f"{place}." if place else ""
    unknown = [Problem(f"{prefix}{key}", f"is no setting{nearest(key, known)}") for key in values if key not in known]
    return unknown + [Problem(f"{prefix}{key}", "is missing") for key in sorted(needed - set(values))]
