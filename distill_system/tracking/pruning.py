"""Pruning in words, for the report's page: what was removed, what it cost and saved, where it was rolled back, and how sensitive the parts are."""

from typing import TYPE_CHECKING, Any

from distill_system.tracking.figures import is_number, metric_words, percent, quantity
from distill_system.tracking.pruning_parts import (
    Record,
    asked_of,
    groups_of,
    harm_sign,
    label_of,
    list_of,
    monitor_of,
    part_of,
    records,
)
from distill_system.tracking.pruning_plots import change_words
from distill_system.tracking.secrets import mask_text
from distill_system.tracking.sides import figure_rows, latency_of

if TYPE_CHECKING:
    from distill_system.tracking.report import Run

FOLDED = 8  # lines of what was removed that are shown at once


def pruned(run: "Run") -> list[dict[str, Any]]:
    """What the page says of each phase that pruned."""
    found = []
    for phase, record in records(run, "pruning").items():
        removed = [mask_text(str(line)) for line in list_of(record, "removed")]
        found.append(
            {
                "phase": phase,
                "words": summary(record),
                "rolled_back": rolled_back_words(record),
                "rows": before_after(record),
                "notes": artifact_words(record),
                "removed": removed,
                "shown": removed if len(removed) <= FOLDED + 2 else removed[:FOLDED],
            }
        )
    return found


def sensitivities(run: "Run") -> list[dict[str, Any]]:
    """What the page says of each phase that measured sensitivity."""
    return [
        {"phase": phase, "words": sensitivity_words(record)} for phase, record in records(run, "sensitivity").items()
    ]


def summary(record: Record) -> list[str]:
    """How much is gone, and how it was chosen."""
    kind = str(record.get("kind") or "units").replace("_", " ")
    parts = [part for group in groups_of(record) if (part := part_of(group)) and is_number(group.get("units"))]
    units = sum(part.units for part in parts)
    removed = sum(part.units * part.share for part in parts)
    told = []
    if units:
        write = quantity if units >= 1e5 else lambda value: f"{value:,.0f}"
        what = "weights, in blocks," if kind == "blocks" else kind  # a block's weights are what is counted
        told.append(
            f"{write(removed)} of {write(units)} {what} were removed ({percent(removed / units)})."
            if removed
            else "Nothing was removed."
        )
    schedule = record.get("schedule") if isinstance(record.get("schedule"), dict) else {}
    count = max(
        [int(r["round"]) for r in list_of(record, "rounds") if isinstance(r, dict) and is_number(r.get("round"))],
        default=0,
    )
    how = []
    if record.get("score"):
        how.append(f"chosen by {mask_text(str(record['score'])).replace('_', ' ')}")
    if count:
        how.append("in one round" if count == 1 else f"in {count} rounds")
    if schedule and schedule.get("shape") and count != 1:
        how.append(f"{str(schedule['shape']).replace('_', ' ')} schedule")
    if schedule and is_number(schedule.get("final_sparsity")):
        how.append(f"towards {percent(schedule['final_sparsity'])}")
    if how:
        words = f"{how[0]} " + ", ".join(how[1:]) if how[0].startswith("chosen") else ", ".join(how)
        told.append(f"{words[:1].upper()}{words[1:].strip()}.")
    return told


def rolled_back_words(record: Record) -> str:
    """One or two sentences: where, by which metric and which bound, and what is handed on; empty where nothing was rolled back."""
    back = record.get("rolled_back")
    if not isinstance(back, dict):
        return ""
    metric, asked = asked_of(back)
    metric = metric or monitor_of(record)
    place = "".join(
        [
            f" in round {back['round']}" if is_number(back.get("round")) else "",
            f" at step {back['step']:,}" if is_number(back.get("step")) else "",
        ]
    )
    where = f"Rolled back{place}"
    was = f"{label_of(metric)} was {metric_words(metric, back['metric'])}" if is_number(back.get("metric")) else ""
    if is_number(back.get("sparsity")):
        was += f" with {percent(back['sparsity'])} removed" if was else f"{percent(back['sparsity'])} were removed"
    asked = f"the gate asks for {asked}" if asked else ""
    words = f"{where}: {', and '.join(filter(None, (was, asked)))}." if was or asked else f"{where}."
    return mask_text(f"{words} {_handed_on_words(record, back.get('handed_on'), metric)}".strip())


def _handed_on_words(record: Record, number: Any, metric: str) -> str:
    if not is_number(number):
        return ""
    if number == 0:
        return "No round was good enough: what is handed on is the input, unpruned."
    given = next((r for r in list_of(record, "rounds") if isinstance(r, dict) and r.get("round") == number), {})
    facts = [f"{percent(given['sparsity'])} removed"] if is_number(given.get("sparsity")) else []
    facts += [f"{label_of(metric)} {metric_words(metric, given['metric'])}"] if is_number(given.get("metric")) else []
    return f"What is handed on is round {number:g}" + (f" ({', '.join(facts)})" if facts else "") + "."


def artifact_words(record: Record) -> list[str]:
    """What became of the removed parts in the file, how it loads, and whether it pays in time."""
    cut, plain, back = record.get("cut"), record.get("loads_plainly"), record.get("rolled_back")
    unpruned = isinstance(back, dict) and back.get("handed_on") == 0
    told = []
    if cut is not None and not unpruned:
        told.append(
            "The removed parts are cut out of the model."
            if cut
            else "The removed parts are zeros: the model has the shapes of its input."
        )
    if plain is not None:
        told.append(
            "from_pretrained loads it as it is."
            if plain
            else "distill_system.load(folder) loads it; a plain from_pretrained refuses it."
        )
    before, after = (latency_of(record.get(side), 1) for side in ("before", "after"))
    if cut is False and not unpruned and before and after and after >= 0.95 * before:
        told.append("It is no faster: the runtime that was timed multiplies zeros like any other number.")
    if record.get("after") and not record.get("before"):
        told.append("Its input was not measured in this run.")
    return told


def before_after(record: Record) -> list[dict[str, str]]:
    """Rows of the table: a figure before and after, and what share of it is left; figures that neither side has are left out."""
    rows = figure_rows([record[side] if isinstance(record.get(side), dict) else {} for side in ("before", "after")])
    return [row | dict(zip(("before", "after"), row.pop("cells"), strict=True)) for row in rows]


def sensitivity_words(record: Record) -> list[str]:
    """What was measured, which part minds most and least at the highest level, and what is suggested."""
    metric, baseline, sign = str(record.get("metric") or "metric"), record.get("baseline"), harm_sign(record)
    levels = list_of(record, "levels")
    kind = str(record.get("kind") or "units").replace("_", " ")
    told = []
    if is_number(baseline):
        whole = f"; the whole model has {label_of(metric)} {metric_words(metric, baseline)}" if baseline else ""
        told.append(f"{kind[:1].upper()}{kind[1:]} were removed from one part at a time, on trial{whole}.")
    harms = {
        str(group.get("name")): sign * (values[-1] - baseline)
        for group in groups_of(record)
        if (values := list_of(group, "values"))
        and is_number(baseline)
        and len(values) == len(levels)
        and is_number(values[-1])
    }
    if len(harms) > 1 and is_number(levels[-1]):
        worst, best = max(harms, key=lambda name: harms[name]), min(harms, key=lambda name: harms[name])
        change = [change_words(sign * harms[name]) for name in (worst, best)]
        told.append(
            f"With {percent(levels[-1])} removed, {label_of(metric)} changes most for {worst} ({change[0]}) and least for {best} ({change[1]})."
        )
    suggested = [part for group in groups_of(record) if (part := part_of(group, "suggested"))]
    if suggested:
        low, high = min(part.share for part in suggested), max(part.share for part in suggested)
        told.append(f"It is suggested to remove between {percent(low)} and {percent(high)} of a part.")
    return [mask_text(words) for words in told]
