"""Figures of a model before and after something was done to it, as rows of a table: bytes, parameters, latency, metrics."""

import functools
from collections.abc import Sequence
from typing import Any

from distill_system.tracking.figures import (
    METRICS,
    SIGNED,
    is_number,
    megabytes,
    metric_names,
    metric_words,
    quantity,
    short_number,
)
from distill_system.tracking.pruning_parts import label_of

ALIKE = 0.95  # latencies whose ratio lies between this and its inverse are the same


def figure_rows(sides: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a figure that some side has: a cell a side, and what share of the first side's the last one's is.

    Args:
        sides: `{size_bytes, parameters, nonzeros, latency, metrics}` each, of which all may be missing.
    """
    metrics = [side["metrics"] if isinstance(side.get("metrics"), dict) else {} for side in sides]
    rows = [
        _row("file", "bytes on disk", [side.get("size_bytes") for side in sides], megabytes),
        _row("parameters", "", [side.get("parameters") for side in sides], quantity),
        _row("non-zeros", "of the parameters", [side.get("nonzeros") for side in sides], quantity),
    ]
    for count in (1, 32):
        rows.append(
            _row("latency", f"median, batch {count}", [latency_of(side, count) for side in sides], milliseconds)
        )
    for name in metric_names({name: 1.0 for side in metrics for name in metric_names(side)}):
        hint = ("higher is better" if METRICS[name].higher_is_better else "lower is better") if name in METRICS else ""
        write = functools.partial(metric_words, name)
        rows.append(_row(label_of(name), hint, [side.get(name) for side in metrics], write, signed=name in SIGNED))
    return [row for row in rows if row]


def latency_of(side: Any, rows: int) -> float | None:
    """Median milliseconds for a batch of so many rows."""
    latency = side.get("latency") if isinstance(side, dict) else None
    one = latency.get(f"batch_{rows}") if isinstance(latency, dict) else None
    value = one.get("p50_ms") if isinstance(one, dict) else None
    return float(value) if is_number(value) else None


def milliseconds(value: float) -> str:
    return f"{short_number(value)} ms"


def _row(label: str, hint: str, values: list[Any], write: Any, signed: bool = False) -> dict[str, Any]:
    if not any(map(is_number, values)):
        return {}
    cells = [write(value) if is_number(value) else "–" for value in values]
    first, last = values[0], next((value for value in reversed(values[1:]) if is_number(value)), None)
    ratio, sub = "–", ""
    if is_number(first) and is_number(last) and first > 0 and not signed:
        ratio = f"{100 * last / first:.1f} %"
        if hint.startswith("median") and last > 0 and not ALIKE < last / first < 1 / ALIKE:
            sub = f"{first / last:.1f}× as fast" if last < first else f"{last / first:.1f}× as long"
    return {"label": label, "hint": hint, "cells": cells, "ratio": ratio, "sub": sub}
