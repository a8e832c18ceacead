"""The way of a model through a chain of phases: from the first teacher to the last file, each phase that handed a model on being a station.

A phase's predecessor is the phase whose model it goes on with, else the one that taught it; the way ends at the last phase of the run. Bytes are asked
of the disk (`os.stat` of the weight files) where the folders are there.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_system.models.weights import GRIDS
from distill_system.tracking import chain_plots
from distill_system.tracking.comparison import model_of, teachers_of
from distill_system.tracking.figures import (
    Quality,
    is_number,
    megabytes,
    metric_names,
    metric_words,
    percent,
    quality,
    quantity,
)
from distill_system.tracking.plots import Panel
from distill_system.tracking.pruning_parts import label_of
from distill_system.tracking.quantization_parts import KEY, packed_bytes, packed_of
from distill_system.tracking.sides import latency_of, milliseconds

if TYPE_CHECKING:
    from distill_system.tracking.report import Run

FEWEST = 3  # stations of a way that is worth a picture


@dataclass(frozen=True)
class Station:
    """A phase's model, and what it became once packed (None where it wasn't)."""

    name: str
    kind: str
    metrics: dict[str, Any]
    bytes: int | None
    parameters: int | None
    nonzeros: int | None
    latency: dict[str, Any]
    packed: int | None = None
    packed_latency: dict[str, Any] | None = None

    def quality(self, metric: str) -> Quality | None:
        value = self.metrics.get(metric)
        return Quality(metric, float(value)) if is_number(value) else None


def weight_bytes(folder: Path) -> int | None:
    """Of the files with weights, by `os.stat`; None where there are none."""
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors") if path.name != GRIDS]
    return sum(sizes) or None


def stations(run: "Run") -> list[Station]:
    """The way to the last phase that hands a model on, from its beginning; empty where fewer than three phases lie on it."""
    names = way(run)
    return [station(run, name) for name in names] if len(names) >= FEWEST else []


def station(run: "Run", phase: str) -> Station:
    model, record = model_of(run, phase), run.phases[phase].get(KEY)
    packed = packed_bytes(record)
    size: dict[str, int | None] = {
        key: int(value) if is_number(value := model.size.get(key)) else None
        for key in ("size_bytes", "parameters", "nonzeros")
    }
    found = weight_bytes(run.folder / phase / "packed") or packed
    return Station(
        phase,
        model.kind,
        model.metrics,
        weight_bytes(run.folder / phase / "model") or size["size_bytes"],
        size["parameters"],
        size["nonzeros"],
        model.latency,
        found,
        packed_of(record).get("latency") if found and isinstance(record, dict) else None,
    )


def way(run: "Run") -> list[str]:
    """Names of the phases on it, in order."""
    hands_on = [name for name, entry in run.phases.items() if quality(entry.get("metrics") or {})]
    found: list[str] = []
    at = hands_on[-1] if hands_on else None
    while at is not None and at not in found:
        found.append(at)
        at = predecessor(run, at, hands_on)
    return found[::-1]


def predecessor(run: "Run", phase: str, known: list[str]) -> str | None:
    """The phase that a phase's model comes from; a member's is its phase."""
    inputs = run.phases[phase].get("inputs") or {}
    own = [source for key, source in inputs.items() if str(key).split(".")[0] == "model"]
    for source in [*own, *teachers_of(run, phase).values()]:
        name = str(source.get("phase") or "").partition(".")[0] if isinstance(source, dict) else ""
        if name in known and name != phase:
            return name
    return None


def metric_of(way_of: list[Station]) -> str | None:
    """The first metric that all stations have."""
    names = metric_names(way_of[-1].metrics) if way_of else []
    return next((name for name in names if all(one.quality(name) for one in way_of)), None)


def chain_rows(run: "Run") -> list[dict[str, Any]]:
    """For report.json: a station each."""
    found = stations(run)
    metric = metric_of(found)
    return [
        {
            "phase": one.name,
            "kind": one.kind,
            "metric": metric,
            "value": one.metrics.get(metric) if metric else None,
            "size_bytes": one.bytes,
            "parameters": one.parameters,
            "nonzeros": one.nonzeros,
            "latency_p50_ms": latency_of({"latency": one.latency}, 1),
            "packed_bytes": one.packed,
            "packed_latency_p50_ms": latency_of({"latency": one.packed_latency}, 1),
        }
        for one in found
    ]


def chain(run: "Run") -> dict[str, Any]:
    """What the page says of the way; no rows where there is none."""
    found = stations(run)
    if not found:
        return {"title": "", "words": "", "columns": [], "rows": []}
    metric = metric_of(found)
    columns: list[tuple[str, str, Any, Any]] = [
        (label_of(metric) if metric else "", "", lambda s: s.metrics.get(metric), functools.partial(metric_words, metric or "")),
        ("size", "on disk", lambda s: s.bytes, megabytes),
        ("packed", "on disk", lambda s: s.packed, megabytes),
        ("parameters", "", lambda s: s.parameters, quantity),
        ("non-zeros", "", lambda s: s.nonzeros, quantity),
        ("latency", "p50, batch 1", lambda s: latency_of({"latency": s.latency}, 1), milliseconds),
        ("packed latency", "p50, batch 1", lambda s: latency_of({"latency": s.packed_latency}, 1), milliseconds),
    ]  # fmt: skip
    columns = [column for column in columns if any(is_number(column[2](one)) for one in found)]
    bases = {"packed": "size", "packed latency": "latency"}
    first = {label: get(found[0]) for label, _, get, _ in columns}
    rows = []
    for one in found:
        cells = []
        for label, _, get, words in columns:
            value, base = get(one), first.get(bases.get(label, label))
            share = (
                percent(value / base)
                if one is not found[0] and is_number(value) and is_number(base) and base > 0
                else ""
            )
            cells.append({"value": words(value) if is_number(value) else "–", "sub": share})
        rows.append({"name": one.name, "kind": one.kind, "teacher": "", "cells": cells})
    return {
        "title": f"From {found[0].name} to {found[-1].name}",
        "words": words_of(found, metric),
        "columns": [(label, hint) for label, hint, _, _ in columns],
        "rows": rows if columns else [],
    }


def words_of(found: list[Station], metric: str | None) -> str:
    """One sentence: what is left of the first model at the end."""
    first, last = found[0], found[-1]
    told = []
    size = last.packed or last.bytes
    if first.bytes and size:
        told.append(
            f"has {percent(size / first.bytes)} of {first.name}’s bytes ({megabytes(size)} of {megabytes(first.bytes)})"
        )
    mine, theirs = (one.quality(metric) if metric else None for one in (last, first))
    if mine and theirs:
        against = f"({mine.shown} against {theirs.shown})"
        if mine.higher_is_better and theirs.value > 0:
            told.append(f"{100 * mine.value / theirs.value:.1f}\u00a0% of its {mine.label} {against}")
        else:
            told.append(f"{'a ' if mine.label[0].islower() else ''}{mine.label} {against}")
    latency = last.packed_latency if last.packed and last.packed_latency else last.latency
    before, after = (latency_of({"latency": one}, 1) for one in (first.latency, latency))
    if before and after:
        told.append(
            f"answers {before / after:.1f} times as fast"
            if after < before
            else f"takes {after / before:.1f} times as long"
        )
    if not told:
        return ""
    packed = ", packed," if last.packed else ""
    return f"{last.name}{packed} {', '.join(told[:-1])}{' and ' if len(told) > 1 else ''}{told[-1]}."


def chain_panels(run: "Run") -> list[Panel]:
    """Quality against bytes, with arrows from station to station, and the latency of each."""
    found = stations(run)
    metric = metric_of(found)
    panels = []
    points = [
        chain_plots.Stop(name, float(size), one.metrics[metric], packed)
        for one in found
        if metric
        for name, size, packed in _sizes(one)
    ]
    if metric and len(points) >= FEWEST:
        label = label_of(metric)
        draw = functools.partial(chain_plots.path, points, label)
        caption = "■ packed" if any(point.packed for point in points) else ""
        panels.append(Panel("chain", "chain_path", f"{label[:1].upper()}{label[1:]} against bytes", caption, draw))
    bars = [(one.name, value, False) for one in found if (value := latency_of({"latency": one.latency}, 1))]
    bars += [
        (f"{one.name}, packed", value, True)
        for one in found
        if (value := latency_of({"latency": one.packed_latency}, 1))
    ]
    if len(bars) > 1:
        draw = functools.partial(chain_plots.latencies, bars)
        panels.append(
            Panel(
                "chain",
                "chain_latency",
                "Latency",
                "median of a batch of one row, on the machine that ran the phases",
                draw,
            )
        )
    return panels


def _sizes(one: Station) -> list[tuple[str, int, bool]]:
    """A station's points: its plain folder, and its packed one."""
    found = [(one.name, one.bytes, False)] if one.bytes else []
    return found + ([("packed" if one.bytes else one.name, one.packed, True)] if one.packed else [])
