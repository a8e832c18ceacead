"""`docs/evidence/NAME.json`: what is left of the runs, one entry a seed, and what it takes to see that a seed needn't run again.

    {"name", "question", "title", "notes", "setups": {setup: {"about": {...}, "config": {...}, "outcomes": {seed: OUTCOME}, "earlier": false}}}
    OUTCOME = {"digest", "code", "finished", "threads", "ranks", "arms": {arm: {"metrics", "seconds", "steps", "parameters"}}}

An arm is a phase or a member (`cohort.a`). `digest` covers the resolved config without what changes no result (where a run lies, how many ranks work on it).
"""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence.plan import Arm, Plan, Setup, arms_of
from distill_system.errors import refuse
from distill_system.files import digest_value, read_json, write_json
from distill_system.manifest import PLACEMENT, differences, now

RECALL = "recall:"
SKIPPED = ("run", "tracking", "config")


def result_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that a result depends on."""
    kept = {key: copy.deepcopy(value) for key, value in config.items() if key not in SKIPPED}
    for training in (kept.get("training"), *(phase.get("training") for phase in kept.get("phases", {}).values())):
        for key in PLACEMENT if training else ():
            training.pop(key, None)
    return kept


def digest_of(config: Mapping[str, Any]) -> str:
    return digest_value(result_config(config))[:16]


def read_results(path: Path, plan: Plan) -> dict[str, Any]:
    """What the file holds, with the plan's present words; set-ups that left the plan stay."""
    found = read_json(path) if path.is_file() else {"setups": {}}
    found |= {"name": plan.name, "title": plan.title, "question": plan.question, "notes": plan.notes}
    for name, setup in plan.setups.items():
        entry = found["setups"].setdefault(name, {"about": {}, "config": {}, "outcomes": {}, "earlier": False})
        entry["about"] = dataclasses.asdict(setup)
    return {key: found[key] for key in ("name", "title", "question", "notes", "setups")}


def missing_seeds(entry: Mapping[str, Any], digests: Mapping[int, str]) -> list[int]:
    return [seed for seed, digest in digests.items() if entry["outcomes"].get(str(seed), {}).get("digest") != digest]


def changed_seeds(entry: Mapping[str, Any], digests: Mapping[int, str]) -> list[int]:
    """Seeds with a result of other settings."""
    return [seed for seed in missing_seeds(entry, digests) if str(seed) in entry["outcomes"]]


def settle_change(
    results: dict[str, Any], setup: str, digests: Mapping[int, str], config: Mapping[str, Any], how: str
) -> None:
    """Makes the entry of a set-up ready for the present settings; nothing that was measured vanishes unless asked.

    Args:
        results: changed in place.
        setup: its name.
        digests: of the present config, by seed.
        config: the present one of the first seed.
        how: `refuse`, or `keep` (the results hold: only a name or an unused default changed), `archive` (they stay as a row of their own),
            `discard`.

    Raises:
        Refusal: there are results of other settings and `how` is `refuse`.
    """
    entry = results["setups"][setup]
    present = result_config(config)
    changed = changed_seeds(entry, digests)
    if changed and how == "refuse":
        listed = "\n    ".join(differences(entry["config"], present)[:12])
        text = f"has results of other settings:\n    {listed}\n  give the new settings a set-up of their own, or say what becomes of the old: --changed archive, keep or discard"
        raise refuse(f"setups.{setup}", text)
    if changed and how == "keep":
        for seed in changed:
            entry["outcomes"][str(seed)]["digest"] = digests[seed]
    if changed and how == "archive":
        number = sum(name.startswith(f"{setup}~") for name in results["setups"]) + 1
        old = copy.deepcopy(entry) | {"earlier": True}
        old["outcomes"] = {seed: old["outcomes"][seed] for seed in map(str, changed)}
        setups: dict[str, Any] = {}
        for name, value in results["setups"].items():  # before the one that follows it
            setups |= {f"{setup}~{number}": old} if name == setup else {}
            setups[name] = value
        results["setups"] = setups
    if changed and how in ("archive", "discard"):
        for seed in changed:
            del entry["outcomes"][str(seed)]
    entry["config"] = present


def record(path: Path, plan: Plan, setup: str, seed: int, outcome: dict[str, Any]) -> dict[str, Any]:
    """Adds one seed's outcome to the file, which is whole at every moment."""
    results = read_results(path, plan)
    outcomes = results["setups"][setup]["outcomes"] | {str(seed): outcome}
    results["setups"][setup]["outcomes"] = dict(sorted(outcomes.items(), key=lambda item: int(item[0])))
    write_json(path, results)
    return results


def extract(run_folder: Path, setup: Setup) -> dict[str, dict[str, Any]]:
    """Figures of every phase and member of a finished run; the recalls that the set-up asks for are counted from the confusion matrices."""
    phases = read_json(run_folder / "manifest.json")["phases"]
    labels = [metric.removeprefix(RECALL) for metric in setup.metrics() if metric.startswith(RECALL)]
    arms: dict[str, dict[str, Any]] = {}
    for name, phase in phases.items():
        shared = {"seconds": round(phase["seconds"], 2), "steps": phase["steps"], "parameters": phase["parameters"]}
        arms[name] = {"metrics": _metrics(run_folder / name / "evaluation.json", labels)} | shared
        for path in sorted((run_folder / name).glob("*/evaluation.json")):
            size = read_json(path).get("size") or {}
            own = {"parameters": size.get("parameters", shared["parameters"])}
            note = path.with_name("step.json")  # of a chain's steps, which are trained one after another
            own |= {"steps": read_json(note)["progress"]["step"]} if note.is_file() else {}
            arms[f"{name}.{path.parent.name}"] = {"metrics": _metrics(path, labels), **shared, **own}
        together = run_folder / name / "ensemble.json"
        if together.is_file():
            arms[f"{name}.ensemble"] = {"metrics": _metrics(together, labels), **shared}
    return arms


def _metrics(path: Path, labels: Iterable[str]) -> dict[str, float]:
    evaluation = read_json(path)
    found = {key: value for key, value in evaluation["metrics"].items() if value is not None}
    confusion = evaluation.get("confusion") or {"labels": [], "matrix": []}
    for label in labels:
        if label in confusion["labels"]:
            at = confusion["labels"].index(label)
            total = sum(confusion["matrix"][at])
            found |= {f"{RECALL}{label}": confusion["matrix"][at][at] / total} if total else {}
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in found.items()}


def value_of(arm: Arm, metric: str, arms: Mapping[str, Any], *, higher_is_better: bool) -> float | None:
    """An arm's figure in one seed's outcome; None where a part of it is missing."""
    values = [arms.get(name, {}).get("metrics", {}).get(metric) for name in arms_of(arm)]
    if not values or any(value is None for value in values):
        return None
    if isinstance(arm, dict):
        return max(values) if higher_is_better else min(values)
    return sum(values) / len(values)


def outcome_of(arms: dict[str, Any], *, digest: str, code: str, ranks: int, threads: int) -> dict[str, Any]:
    return {"digest": digest, "code": code, "finished": now(), "ranks": ranks, "threads": threads, "arms": arms}
