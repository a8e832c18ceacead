"""The figures of phases that pruned, or that measured how sensitive a model's parts are to pruning."""

import functools
import math
from typing import TYPE_CHECKING, Any

from distill_system.tracking import pruning_plots
from distill_system.tracking.figures import is_number, percent, short_number
from distill_system.tracking.plots import Panel, file_name, shorten_all
from distill_system.tracking.pruning_parts import (
    Part,
    Record,
    bound_of,
    groups_of,
    harm_sign,
    label_of,
    layer_of,
    layers_that_stay,
    list_of,
    monitor_of,
    part_of,
    records,
    short_stems,
    stem_of,
)
from distill_system.tracking.pruning_plots import MOST_BARS, MOST_ROWS, MOST_STRIPS, Point, Strip

if TYPE_CHECKING:
    from distill_system.tracking.report import Run


def pruning_panels(run: "Run") -> list[Panel]:
    panels: list[Panel] = []
    for phase, record in records(run, "pruning").items():
        group, name = f"pruning of {phase}", file_name(phase)
        stays = layers_that_stay(record)
        if stays:
            draw = functools.partial(pruning_plots.boxes, stays)
            caption = "numbers of the input’s layers, counted from 0; dashed ones were taken out"
            panels.append(Panel(group, f"layers_{name}", "Which layers stay", caption, draw))
        elif any(part.share for g in groups_of(record) if (part := part_of(g))):
            panels += share_panels(group, f"sparsity_{name}", "Sparsity", [part_of(g) for g in groups_of(record)])
        panels += round_panels(group, name, record, run.phases[phase].get("gate"))
    for phase, record in records(run, "sensitivity").items():
        panels += sensitivity_panels(f"sensitivity of {phase}", file_name(phase), record)
    return panels


def share_panels(
    group: str, file: str, title: str, parts: list[Part | None], target: float | None = None, caption: str = ""
) -> list[Panel]:
    """Bars of shares: over the layers, and of parts that belong to no layer."""
    known = [part for part in parts if part is not None]
    stems = short_stems(list(dict.fromkeys(part.stem for part in known if part.layer is not None)))
    rows = [
        _strip(short, [p for p in known if p.stem == stem and p.layer is not None]) for stem, short in stems.items()
    ]
    found = []
    if rows:
        few = f"the first {MOST_STRIPS} of {len(rows)} kinds of matrix" if len(rows) > MOST_STRIPS else ""
        total = "right: of all layers together" if len(rows) > 1 else ""
        words = " · ".join(filter(None, (few, total, caption)))
        draw = functools.partial(pruning_plots.strips, rows[:MOST_STRIPS], target)
        found.append(Panel(group, file, f"{title} by layer", words, draw))
    rest = [part for part in known if part.layer is None]
    if rest:
        few = f"the first {MOST_BARS} of {len(rest)}" if len(rest) > MOST_BARS else ""
        shown = rest[:MOST_BARS]
        draw = functools.partial(
            pruning_plots.bars_of_shares, [part.stem for part in shown], [part.share for part in shown], target
        )
        words = " · ".join(filter(None, (few, caption)))
        title = f"{title} outside the layers" if rows else title
        found.append(Panel(group, f"{file}_others", title, words, draw))
    return found


def _strip(name: str, parts: list[Part]) -> Strip:
    by_layer: dict[int, list[Part]] = {}
    for part in parts:
        by_layer.setdefault(part.layer or 0, []).append(part)
    layers = sorted(by_layer)
    return Strip(name, layers, [_mean(by_layer[layer]) for layer in layers], _mean(parts))


def _mean(parts: list[Part]) -> float:
    return sum(part.share * part.units for part in parts) / (sum(part.units for part in parts) or 1)


def round_panels(group: str, name: str, record: Record, gate: Any) -> list[Panel]:
    """The metric over what remains; two rounds at least, or there is nothing to see."""
    back = record.get("rolled_back")
    last = [
        r.get("round") for r in list_of(record, "rounds") if isinstance(r, dict) and r.get("state") != "rolled_back"
    ]
    given = back.get("handed_on") if isinstance(back, dict) else (last[-1] if last else None)
    points = [
        Point(
            int(r["round"]),
            float(r["remaining"]),
            float(r["metric"]),
            r.get("state") != "rolled_back",
            r["round"] == given,
        )
        for r in list_of(record, "rounds")
        if isinstance(r, dict) and all(is_number(r.get(key)) for key in ("round", "remaining", "metric"))
    ]
    if len(points) < 2:
        return []
    label = label_of(monitor_of(record) or "metric")
    bound = bound_of(record, gate)
    words = ["numbers: rounds"] + (["ring: handed on"] if any(p.handed_on for p in points) else [])
    words += [] if all(point.kept for point in points) else ["× rolled back"]
    if bound:
        near = pruning_plots.within_reach(bound[0], [point.metric for point in points])
        words.append(f"{'dashed: ' if near else ''}the gate asks for {bound[1]}")
    title = f"{label[:1].upper()}{label[1:]} against what remains"
    draw = functools.partial(pruning_plots.rounds, points, label, bound[0] if bound else None)
    return [Panel(group, f"rounds_{name}", title, " · ".join(words), draw)]


def sensitivity_panels(group: str, name: str, record: Record) -> list[Panel]:
    """The heat map of the metric's change, and the suggested allocation as bars."""
    levels = [float(level) for level in list_of(record, "levels") if is_number(level)]
    baseline, sign = record.get("baseline"), harm_sign(record)
    rows = [g for g in groups_of(record) if len(list_of(g, "values")) == len(levels)]
    found = []
    if rows and levels and is_number(baseline):
        changes = [[v - baseline if is_number(v) else None for v in g["values"]] for g in rows]
        chosen = most_harmed(changes, sign, MOST_ROWS)
        label = label_of(str(record.get("metric") or "metric"))
        few = f"the {MOST_ROWS} most sensitive of {len(rows)}" if len(chosen) < len(rows) else ""
        words = " · ".join(
            filter(
                None,
                (
                    few,
                    f"change against {short_number(baseline)}; the stronger the shade, the worse"
                    if baseline
                    else "the stronger the shade, the worse",
                ),
            )
        )
        draw = functools.partial(
            pruning_plots.heat_map, row_names([rows[i] for i in chosen]), levels, [changes[i] for i in chosen], sign
        )
        found.append(Panel(group, f"sensitivity_{name}", f"{'Change' if baseline else 'Rise'} of {label}", words, draw))
    target = record.get("target")
    parts = [part_of(g, "suggested") for g in groups_of(record)]
    line = float(target) if is_number(target) else None
    caption = f"dashed: {percent(line)} of all, the target" if line is not None else ""
    return found + share_panels(group, f"suggested_{name}", "Suggested sparsity", parts, line, caption)


def most_harmed(changes: list[list[float | None]], sign: int, most: int) -> list[int]:
    """Numbers of the rows that are drawn, in their order: all, or those that the metric suffers from most (not finite is the most)."""
    if len(changes) <= most:
        return list(range(len(changes)))
    harm = [max(math.inf if change is None else sign * change for change in row) for row in changes]
    return sorted(sorted(range(len(changes)), key=lambda i: (-harm[i], i))[:most])


def row_names(groups: list[Record]) -> list[str]:
    """Short names of groups, which still differ: the layer, and what part of it where there are several."""
    parts = [(layer_of(g), stem_of(str(g.get("name") or ""), layer_of(g))) for g in groups]
    stems = short_stems(list(dict.fromkeys(stem for layer, stem in parts if layer is not None)))
    names = [
        stem if layer is None else f"layer {layer}" if len(stems) == 1 else f"{layer} {stems[stem]}"
        for layer, stem in parts
    ]
    return shorten_all(names, 22)
