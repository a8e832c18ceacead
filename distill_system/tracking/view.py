"""What the report's page says, as plain values: tables and sentences, without a word of HTML."""

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

from distill_system.tracking.chain_path import chain
from distill_system.tracking.comparison import chance_words, comparison, pairs, teacher_models
from distill_system.tracking.examples import disagreements
from distill_system.tracking.figures import duration, is_number, metric_words, quantity, short_number
from distill_system.tracking.members import notes, sections
from distill_system.tracking.pruning import pruned, sensitivities
from distill_system.tracking.quantization import quantized
from distill_system.tracking.secrets import mask, mask_command, mask_text

if TYPE_CHECKING:
    from distill_system.tracking.report import Run

PACKAGES = [
    "distill_system",
    "torch",
    "lightning",
    "deepspeed",
    "transformers",
    "datasets",
    "safetensors",
    "torchmetrics",
    "hydra-core",
    "wandb",
]
TONES = {"finished": "good", "gated": "bad", "failed": "bad", "running": "busy"}


def state_words(run: "Run") -> tuple[str, str]:
    """The run's state in words and its tone."""
    states = [phase.get("state", "") for phase in run.phases.values()]
    planned = run.config.get("phases") if isinstance(run.config, dict) else None
    total = max(len(states), len(planned) if isinstance(planned, dict) else 0)
    done = states.count("finished")
    for state, words in (("failed", "failed"), ("gated", "stopped at a gate")):
        if state in states:
            return words, TONES[state]
    if not states:
        return "not started", "busy"
    return ("finished", "good") if done == total else (f"unfinished: {done} of {total} phases done", "busy")


def page(run: "Run") -> dict[str, Any]:
    """Everything the template shows, figures aside."""
    import yaml

    words, tone = state_words(run)
    config = mask(run.config) if run.config is not None else None
    settings = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120) if config is not None else ""
    together = pairs(run)
    return {
        "name": run.name, "state": words, "tone": tone, "created": _moment(run.manifest.get("created")),
        "command": mask_command(str(run.manifest.get("command") or "")), "pairs": together, "comparison": comparison(run),
        "chance": chance_words(run),
        "warnings": [(name, mask_text(str(w))) for name, phase in run.phases.items() for w in phase.get("warnings") or []],
        "sections": sections(run), "chain": chain(run), "pruned": pruned(run), "quantized": quantized(run), "sensitivities": sensitivities(run), "notes": notes(run), "gates": gates(run), "examples": disagreements(run.predictions, {p: [t.name for _, t in teacher_models(run, p)] for p in run.predictions}),
        "settings": settings, "lineage": lineage(run), "costs": costs(run), "versions": versions(run),
    }  # fmt: skip


def gates(run: "Run") -> list[dict[str, Any]]:
    found = []
    for name, phase in run.phases.items():
        gate = phase.get("gate")
        if isinstance(gate, dict) and "passed" in gate:
            metric = str(gate.get("metric"))
            limits = [
                f"{words} {short_number(gate[key])}"
                for key, words in (("at_least", "at least"), ("at_most", "at most"))
                if is_number(gate.get(key))
            ]
            found.append(
                {
                    "phase": name,
                    "metric": metric,
                    "limit": " and ".join(limits),
                    "value": metric_words(metric, gate.get("value")),
                    "passed": bool(gate["passed"]),
                }
            )
    return found


def lineage(run: "Run") -> list[dict[str, Any]]:
    rows = []
    for name, phase in run.phases.items():
        inputs = []
        for key, source in (phase.get("inputs") or {}).items():
            source = source if isinstance(source, dict) else {"model": source}
            origin = (
                f"phase {source['phase']}"
                if source.get("phase")
                else mask_text(str(source.get("model") or source.get("path") or ""))
            )
            inputs.append({"name": key, "origin": origin, "digest": str(source.get("digest") or "")[:12]})
        base = (phase.get("settings") or {}).get("model")
        if not inputs and isinstance(base, dict) and (base.get("package") or base.get("name")):
            origin = mask_text(str(base.get("package") or base["name"]))
            inputs.append({"name": "model", "origin": origin, "digest": str(base.get("sha256") or "")[:12]})
        rows.append({"name": name, "kind": str(phase.get("kind", "")), "state": str(phase.get("state", "")), "tone": TONES.get(str(phase.get("state")), "busy"),
                     "inputs": inputs, "digest": str(phase.get("digest") or "")[:12]})  # fmt: skip
    return rows


def costs(run: "Run") -> dict[str, Any]:
    """What each phase cost; columns that no phase fills are left out."""
    columns = {"time": [], "steps": [], "samples": [], "tokens": [], "ranks": [], "resumes": [], "bad steps": []}  # type: dict[str, list[str]]
    for phase in run.phases.values():
        cost = phase.get("cost") or {}
        columns["time"].append(
            duration(phase.get("seconds") if is_number(phase.get("seconds")) else cost.get("seconds"))
        )
        for key in ("steps", "samples", "tokens", "ranks", "resumes", "bad steps"):
            value = phase.get(key.replace(" ", "_"), cost.get(key))
            words = (
                quantity(value)
                if is_number(value) and key in ("samples", "tokens")
                else f"{value:g}"
                if is_number(value)
                else "-"
            )
            columns[key].append(words)
    kept = {key: values for key, values in columns.items() if any(value not in ("-", "0") for value in values)}
    rows = [{"name": name, "cells": [values[at] for values in kept.values()]} for at, name in enumerate(run.phases)]
    return {"columns": list(kept), "rows": rows if kept else []}


def versions(run: "Run") -> list[tuple[str, str]]:
    """The versions the run was made with if its manifest has them, else those of this environment."""
    recorded = run.manifest.get("versions")
    if isinstance(recorded, dict) and recorded:
        return [(str(name), str(version)) for name, version in recorded.items()]
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _moment(created: Any) -> str:
    return str(created or "")[:16].replace("T", " ")
