"""A sweep's report: one metric over the swept settings as a table and a plot, in sweep.json and one self-contained page."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_system.files import folder_atomic, write_json
from distill_system.tracking import journal, pictures, plots
from distill_system.tracking.comparison import model_of
from distill_system.tracking.figures import METRICS, duration, is_number, megabytes, metric_words, quality, short_number
from distill_system.tracking.panels import Panel
from distill_system.tracking.report import draw, load_run, render
from distill_system.tracking.secrets import mask
from distill_system.tracking.view import state_words

MOST_LINES = 6


def as_dict(overrides: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """`{"a": 1}` or `["a=1"]` as a dict; words that are numbers become numbers."""
    if not isinstance(overrides, Mapping):
        overrides = dict(([*item.lstrip("+~").split("=", 1), ""])[:2] for item in overrides)
    return {str(key): _value(value) for key, value in mask(dict(overrides)).items()}


def _value(value: Any) -> Any:
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return journal.plain(kind(value)) if value.lower() not in ("nan", "inf", "-inf") else value
            except ValueError:
                continue
    return value


def sweep_rows(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a member: its overrides, and the figures of the run's last phase that has any.

    Args:
        members: `{"overrides": {key: value} or ["key=value"], "run_folder": path}`; a member that never started has a row with its state only.
    """
    rows = []
    for member in members:
        folder = Path(member["run_folder"])
        row: dict[str, Any] = {"overrides": as_dict(member["overrides"]), "run": folder.name, "folder": str(folder), "state": "not started", "phase": None,
                               "metric": None, "value": None, "metrics": {}, "size_bytes": None, "seconds": None}  # fmt: skip
        if (folder / "manifest.json").is_file():
            run = load_run(folder)
            row["state"] = state_words(run)[0]
            for phase in run.phases:
                model = model_of(run, phase)
                found = quality(model.metrics)
                if found:
                    row |= {
                        "phase": phase,
                        "metric": found.name,
                        "value": found.value,
                        "metrics": model.metrics,
                        "size_bytes": model.size.get("size_bytes"),
                    }
                    row["latency_ms"] = model.figures.get("latency")
            seconds = [phase.get("seconds") for phase in run.phases.values() if is_number(phase.get("seconds"))]
            row["seconds"] = sum(seconds) if seconds else None
        rows.append(journal.plain(row))
    return rows


def swept_keys(rows: list[dict[str, Any]]) -> list[str]:
    """Keys whose values differ between members; all keys where nothing differs."""
    keys = list(dict.fromkeys(key for row in rows for key in row["overrides"]))
    differing = [key for key in keys if len({json.dumps(row["overrides"].get(key), default=str) for row in rows}) > 1]
    return differing or keys


def short_keys(keys: list[str]) -> dict[str, str]:
    """The fewest last words of each key that still tell them apart: `temperature`, or `soft.weight` and `hard.weight`."""
    shown = {}
    for key in keys:
        words = key.split(".")
        tails = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        shown[key] = next((t for t in tails if sum(k == t or k.endswith("." + t) for k in keys) == 1), key)
    return shown


def table_rows(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows in words, for a table on the terminal (`progress.print_rows`) and on the page."""
    names = short_keys(swept_keys(rows))
    label = _label(rows)
    return [
        {
            **{short: str(row["overrides"].get(key, "")) for key, short in names.items()},
            label: metric_words(row["metric"], row["value"]) if row["metric"] else "-",
            "size": megabytes(row["size_bytes"]),
            "latency p50": f"{short_number(row.get('latency_ms'))} ms" if is_number(row.get("latency_ms")) else "-",
            "time": duration(row["seconds"]),
            "run": row["run"],
            "state": row["state"],
        }
        for row in rows
    ]


def _label(rows: list[dict[str, Any]]) -> str:
    names = [row["metric"] for row in rows if row["metric"]]
    return (METRICS[names[0]].label if names[0] in METRICS else names[0]) if names else "metric"


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    with_value = [row for row in rows if is_number(row["value"])]
    if not with_value:
        return None
    name = with_value[0]["metric"]
    higher = METRICS[name].higher_is_better if name in METRICS else True
    return (max if higher else min)(with_value, key=lambda row: row["value"])


def _best_words(rows: list[dict[str, Any]], best: dict[str, Any]) -> dict[str, str]:
    settings = ", ".join(f"{short} {best['overrides'].get(key)}" for key, short in short_keys(swept_keys(rows)).items())
    return {
        "run": best["run"],
        "settings": settings,
        "metric": _label(rows),
        "value": metric_words(best["metric"], best["value"]),
    }


def panel(rows: list[dict[str, Any]]) -> Panel | None:
    """The metric over a swept number, a line for each setting of the other keys; bars where no key is a number throughout."""
    shown = [row for row in rows if is_number(row["value"])]
    if not shown:
        return None
    keys, label = swept_keys(rows), _label(rows)
    names = short_keys(keys)
    numeric = [key for key in keys if all(is_number(row["overrides"].get(key)) for row in shown)]
    title = f"{label} of {shown[-1]['phase']}"
    if numeric and len(shown) > 1:
        key = max(numeric, key=lambda k: len({row["overrides"][k] for row in shown}))
        groups: dict[str, list[tuple[float, float]]] = {}
        for row in shown:
            rest = ", ".join(f"{names[k]}={row['overrides'].get(k)}" for k in keys if k != key)
            groups.setdefault(rest, []).append((float(row["overrides"][key]), row["value"]))
        if len(groups) <= MOST_LINES:
            lines = [
                (name, [x for x, _ in sorted(points)], [y for _, y in sorted(points)])
                for name, points in groups.items()
            ]
            xs = [x for _, line_xs, _ in lines for x in line_xs]
            log_x = min(xs) > 0 and max(xs) / min(xs) >= 8
            return Panel(
                "sweep",
                "sweep",
                f"{title} over {names[key]}",
                key,
                lambda: plots.scatter_lines(lines, names[key], label, log_x),
            )
    words = [", ".join(f"{names[k]}={row['overrides'].get(k)}" for k in keys) for row in shown]
    values = [row["value"] for row in shown]
    return Panel(
        "sweep",
        "sweep",
        title,
        "",
        lambda: plots.bars(words, values, label, [metric_words(r["metric"], r["value"]) for r in shown]),
    )


def write_sweep(folder: str | Path, members: list[dict[str, Any]], command: str = "") -> Path:
    """Writes sweep.json and report/ (index.html, sweep.png) into the sweep's folder.

    Returns:
        The path of index.html. `sweep_rows(members)` and `table_rows(...)` give the same rows for a terminal.
    """
    folder = Path(folder)
    rows = sweep_rows(members)
    folder.mkdir(parents=True, exist_ok=True)
    best = best_row(rows)
    with folder_atomic(folder / "report") as report:
        one = panel(rows)
        with pictures.style():
            panels = draw([one] if one else [], report)
        table = table_rows(rows)
        links = [os.path.relpath(Path(row["folder"]) / "report" / "index.html", folder / "report") for row in rows]
        columns = [name for name in (table[0] if table else {}) if any(row[name] not in ("", "-") for row in table)]
        page = {"name": folder.name, "command": command, "panels": panels, "columns": columns, "rows": table, "links": links,
                "best": _best_words(rows, best) if best and len(rows) > 1 else None}  # fmt: skip
        (report / "index.html").write_text(render("sweep.html.j2", page), encoding="utf-8", errors="replace")
    kept = [{key: value for key, value in row.items() if key != "folder"} for row in rows]
    write_json(
        folder / "sweep.json",
        {"sweep": folder.name, "swept": swept_keys(rows), "best": best["run"] if best else None, "members": kept},
    )
    return folder / "report" / "index.html"
