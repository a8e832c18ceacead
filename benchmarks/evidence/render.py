"""From outcomes to words: the parts of docs/evidence.md between markers, each a function of what docs/evidence/*.json holds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.evidence.interval import Paired, detectable_effect, paired, verdict
from benchmarks.evidence.outcomes import value_of
from benchmarks.evidence.plan import Arm, arm_words, arms_of

SHARES = ("accuracy", "macro_f1", "recall", "ece", "agreement")  # shown as points of 100
MARKER = re.compile(r"<!-- evidence:(\w+) -->\n(.*?)<!-- /evidence:\1 -->", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One comparison of one set-up, with all that its line and its drawing need; `found` is None before a seed has both arms."""

    setup: str
    name: str
    metric: str
    baseline: Arm
    method: Arm
    minimal_effect: float
    higher_is_better: bool
    planned: int
    earlier: bool
    pairs: list[tuple[float, float]]
    seconds: tuple[float, float]
    found: Paired | None
    verdict: str


@dataclass(frozen=True)
class Curve:
    """Arms of a set-up over a number: (x, mean over seeds, paired difference to the first arm, which has none), and each seed's figures."""

    setup: str
    title: str
    axis: str
    metric: str
    points: list[tuple[float, float, Paired | None]]
    seeds: list[list[float]]


def curves_of(results: Mapping[str, Any]) -> list[Curve]:
    """Of the set-ups that ask for one, over the seeds that have all its arms."""
    curves = []
    for setup, entry in results["setups"].items():
        about = entry["about"]
        places = about.get("curve") or {}
        if not places:
            continue
        comparison = about["comparisons"][0]
        metric, higher = comparison["metric"], comparison["higher_is_better"]
        found = [
            [value_of(arm, metric, outcome["arms"], higher_is_better=higher) for arm in places]
            for outcome in entry["outcomes"].values()
        ]
        seeds = [[value for value in line if value is not None] for line in found if None not in line]
        if not seeds:
            continue
        columns = list(zip(*seeds))
        differences = [None, *(paired(columns[0], column, higher_is_better=higher) for column in columns[1:])]
        points = [
            (float(x), fmean(column), difference)
            for x, column, difference in zip(places.values(), columns, differences, strict=True)
        ]
        curves.append(Curve(setup, about["title"], about.get("curve_axis", ""), metric, points, seeds))
    return curves


def rows_of(results: Mapping[str, Any]) -> list[Row]:
    """Every comparison of every set-up, in the order of the file."""
    rows = []
    for setup, entry in results["setups"].items():
        for comparison in entry["about"]["comparisons"]:
            rows.append(_row(setup, entry, comparison))
    return rows


def _row(setup: str, entry: Mapping[str, Any], comparison: Mapping[str, Any]) -> Row:
    about, sides = entry["about"], (comparison["baseline"], comparison["method"])
    higher = comparison["higher_is_better"]
    pairs, seconds = [], []
    for outcome in entry["outcomes"].values():
        arms = outcome["arms"]
        before, after = (value_of(arm, comparison["metric"], arms, higher_is_better=higher) for arm in sides)
        if before is not None and after is not None:
            pairs.append((before, after))
            seconds.append([_seconds(arm, arms) for arm in sides])
    found = paired(*zip(*pairs), higher_is_better=higher) if pairs else None
    planned = len(entry["outcomes"]) if entry.get("earlier") else len(about["seeds"])
    judged = verdict(found, minimal_effect=comparison["minimal_effect"], planned=planned) if found else "-"
    means = tuple(fmean(column) for column in zip(*seconds)) if seconds else (0.0, 0.0)
    return Row(
        setup=setup,
        planned=planned,
        earlier=bool(entry.get("earlier")),
        pairs=pairs,
        seconds=(means[0], means[1]),
        found=found,
        verdict=judged,
        **{key: comparison[key] for key in ("name", "metric", "baseline", "method", "minimal_effect")},
        higher_is_better=higher,
    )


def _seconds(arm: Arm, arms: Mapping[str, Any]) -> float:
    """Of the phases that an arm comes from; a phase with members counts once."""
    phases = {name.partition(".")[0] if name.partition(".")[0] in arms else name for name in arms_of(arm)}
    return sum(arms[name]["seconds"] for name in phases)


def is_share(metric: str) -> bool:
    return metric.partition(":")[0] in SHARES


def shown(value: float, metric: str, *, signed: bool = False) -> str:
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "-∞"
    text = f"{value * 100:{'+' if signed else ''}.1f}" if is_share(metric) else f"{value:{'+' if signed else ''}.3f}"
    return text.replace("-", "−")


def unit(metric: str) -> str:
    return " points" if is_share(metric) else ""


def part(results: Mapping[str, Any], picture: str | None) -> str:
    """The part of one NAME: question, picture, tables, and the text that says what the figures rest on."""
    name = results["name"]
    lines = [f"## {results['title']}", "", results["question"], "", f"`python -m benchmarks.evidence {name}`", ""]
    rows = rows_of(results)
    if picture and any(row.found for row in rows):
        lines += [f"![{results['title']}: each seed's pair, means and intervals]({picture})", ""]
    for setup, entry in results["setups"].items():
        lines += _setup_part(setup, entry, [row for row in rows if row.setup == setup])
    if results["notes"]:
        lines += [results["notes"], ""]
    return "\n".join(lines)


def _setup_part(setup: str, entry: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    about = entry["about"]
    earlier = " (earlier settings)" if entry.get("earlier") else ""
    lines = [f"### {about['title'] or setup}{earlier}", ""]
    if not entry["outcomes"]:
        return [*lines, "Not run yet.", ""]
    lines += [
        "| comparison | metric | baseline | method | difference, 95 % interval | wins | seconds | verdict |",
        "|---|---|---|---|---|---|---|---|",
        *(table_line(row) for row in rows),
        "",
        *arms_list(entry, rows),
        "",
        power_words(entry, rows),
        "",
    ]
    return lines


def table_line(row: Row) -> str:
    found = row.found
    if found is None:
        return f"| {row.name} | {row.metric} | | | not run yet | | | |"
    interval = f"[{shown(found.low, row.metric, signed=True)}, {shown(found.high, row.metric, signed=True)}]"
    cells = [
        row.name,
        row.metric.replace("_", " "),
        f"{arm_words(row.baseline)} {shown(found.baseline, row.metric)}",
        f"{arm_words(row.method)} {shown(found.method, row.metric)}",
        f"{shown(found.difference, row.metric, signed=True)} {interval}",
        f"{found.wins} of {found.count}",
        f"{row.seconds[0]:.0f}, {row.seconds[1]:.0f}",
        f"**{row.verdict}**" + (f" ({found.count} of {row.planned} seeds)" if found.count < row.planned else ""),
    ]
    return "| " + " | ".join(cells) + " |"


def arms_list(entry: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """A line on every arm, also those that nothing is compared with (teachers): its mean, parameters, steps and seconds."""
    outcomes = list(entry["outcomes"].values())
    metric = rows[0].metric if rows else "accuracy"
    names = list(dict.fromkeys(arm for outcome in outcomes for arm in outcome["arms"]))
    words = []
    for name in names:
        arms = [outcome["arms"][name] for outcome in outcomes if name in outcome["arms"]]
        metrics = [m for m in dict.fromkeys([metric, "accuracy"]) if all(m in arm["metrics"] for arm in arms)]
        figures = ", ".join(
            f"{m.replace('_', ' ')} {shown(fmean(arm['metrics'][m] for arm in arms), m)}" for m in metrics
        )
        steps = f", {arms[0]['steps']:,} steps" if arms[0].get("steps") else ""
        size = f"{arms[0].get('parameters', 0):,} parameters"
        words.append(f"- `{name}`: {figures} ({size}{steps}, {fmean(arm['seconds'] for arm in arms):.0f} s)")
    return words


def power_words(entry: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """How many seeds, why so many, and on which code."""
    about, outcomes = entry["about"], list(entry["outcomes"].values())
    pilot, count = about.get("pilot") or {}, len(about["seeds"])
    metric = rows[0].metric
    words = [f"{len(outcomes)} of {count} seeds." if len(outcomes) < count else f"{count} seeds."]
    if "deviation" in pilot:
        effect = detectable_effect(pilot["deviation"], count)
        words.append(
            f"A pilot ({pilot.get('seeds', '?')} seeds) had a standard deviation of the paired difference of {shown(pilot['deviation'], metric)}{unit(metric)}: "
            f"{count} seeds find a difference of {shown(effect, metric)}{unit(metric)} with 80 % power."
        )
    if pilot.get("text"):
        words.append(str(pilot["text"]).strip())
    least = {f"{shown(row.minimal_effect, row.metric)}{unit(row.metric)}" for row in rows}
    words.append(f"Smallest effect of interest: {' or '.join(sorted(least))}.")
    codes = sorted({outcome["code"] for outcome in outcomes})
    placed = sorted({f"{o['ranks']} rank(s) of {o['threads']} thread(s)" for o in outcomes})
    return " ".join([*words, f"Seconds on {', '.join(placed)}; code {', '.join(codes)}."])


def summary(all_results: Sequence[Mapping[str, Any]]) -> str:
    """The table on top: one line a comparison, with its verdict."""
    lines = ["| method | comparison | difference, 95 % interval | seeds | verdict |", "|---|---|---|---|---|"]
    for results in all_results:
        link = f"[{results['title']}](#{anchor(results['title'])})"
        for row in rows_of(results):
            setup = f" ({row.setup.replace('_', ' ')})" if len(results["setups"]) > 1 else ""
            if row.found is None:
                lines.append(f"| {link} | {row.name}{setup} | not run yet | 0 of {row.planned} | |")
                continue
            found, metric = row.found, row.metric
            interval = f"[{shown(found.low, metric, signed=True)}, {shown(found.high, metric, signed=True)}]"
            difference = f"{shown(found.difference, metric, signed=True)} {interval}{unit(metric)}"
            lines.append(f"| {link} | {row.name}{setup} | {difference} | {found.count} | **{row.verdict}** |")
    return "\n".join(lines) + "\n"


def anchor(title: str) -> str:
    """As the `toc` extension makes them."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def replace_part(page: str, name: str, text: str) -> str:
    """The page with the part between NAME's markers replaced; a page without them gets the part at its end."""
    block = f"<!-- evidence:{name} -->\n{text.rstrip()}\n<!-- /evidence:{name} -->"
    found = [match for match in MARKER.finditer(page) if match[1] == name]
    if not found:
        return f"{page.rstrip()}\n\n{block}\n"
    return page[: found[0].start()] + block + page[found[0].end() :]


def write_page(page: Path, name: str, results: Mapping[str, Any], all_results: Sequence[Mapping[str, Any]]) -> None:
    """Rewrites the part of one NAME and the summary in place."""
    from distill_system.files import write_atomic

    text = page.read_text(encoding="utf-8") if page.is_file() else "# Evidence\n"
    order = [match[1] for match in MARKER.finditer(text)]  # as the page has its parts
    ordered = sorted(all_results, key=lambda r: order.index(r["name"]) if r["name"] in order else len(order))
    text = replace_part(text, "summary", summary(ordered))
    write_atomic(page, replace_part(text, name, part(results, f"evidence/{name}.png")))
