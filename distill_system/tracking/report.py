"""Writes a run's report from what lies in its folder: report.json, one self-contained index.html, and its figures as PNG files.

Nothing is measured here and torch is not needed, so a report can be made again, of an unfinished run too, on any machine that has the folder.
"""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_system.errors import refuse
from distill_system.files import folder_atomic
from distill_system.tracking import journal, pictures, plots
from distill_system.tracking.chain_path import chain_rows
from distill_system.tracking.comparison import glance_bars, members_of
from distill_system.tracking.disputes import csv_name, disputed
from distill_system.tracking.panels import Panel, figures
from distill_system.tracking.pruning_parts import RECORDS
from distill_system.tracking.secrets import mask
from distill_system.tracking.view import page as page_of

FIGURES_OF_A_PHASE = ("kind", "metrics", "size_bytes", "parameters", "nonzeros", "seconds", "inputs")
OF_SEVERAL = ("best_member", "ensemble", "stop_rule")  # only there where a phase has several models


@dataclass
class Run:
    """What a run folder says."""

    folder: Path
    name: str
    manifest: dict[str, Any]
    lines: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    disputes: dict[str, dict[str, Any]] = field(default_factory=dict)
    members: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # evaluations by phase and member
    config: Any = None

    @property
    def phases(self) -> dict[str, dict[str, Any]]:
        return self.manifest.get("phases") or {}


def load_run(folder: str | Path) -> Run:
    """Reads a run folder.

    Raises:
        Refusal: it is no run folder, or its manifest can't be read.
    """
    folder = Path(folder)
    manifest_path, config_path = folder / "manifest.json", folder / "config.yaml"
    if not manifest_path.is_file() and not config_path.is_file():
        raise refuse(
            "run", f"is '{folder}', which is no run folder: it has no manifest.json; give one such as runs/demo"
        )
    manifest: dict[str, Any] = {"run": folder.name, "phases": {}}
    if manifest_path.is_file():
        found = _json_object(manifest_path)
        if found is None or not isinstance(found.get("phases", {}), dict):
            raise refuse("run", f"is '{folder}', whose manifest.json can't be read; it is not one that distill wrote")
        manifest |= found
    run = Run(
        folder, str(manifest["run"]), manifest, journal.read(folder / "metrics.jsonl"), config=_config(config_path)
    )
    for phase in run.phases:
        files = {"evaluation.json": run.evaluations, "predictions.json": run.predictions, "disputes.json": run.disputes}
        for name, store in files.items():
            path = folder / phase / name
            found = _json_object(path) if path.is_file() else None
            if found is not None:
                store[phase] = found
        run.members[phase] = _member_evaluations(folder / phase, run.phases[phase].get("members") or {})
    return run


def _member_evaluations(folder: Path, listed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Evaluations of a phase's members, those that the manifest lists first; of an unfinished phase, those that are there."""
    there = sorted(path.parent.name for path in folder.glob("*/evaluation.json"))
    names = [name for name in listed if name in there] + [name for name in there if name not in listed]
    found = {name: _json_object(folder / name / "evaluation.json") for name in names}
    return {name: evaluation for name, evaluation in found.items() if evaluation is not None}


def _json_object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _config(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def report_json(run: Run) -> dict[str, Any]:
    """`{"run", "phases": {name: {kind, metrics, size_bytes, parameters, nonzeros, seconds, inputs}}}`; what isn't known yet is null.

    A phase with several models has `members: {name: {metrics, size_bytes, parameters, nonzeros}}` too, and what it found of all (`best_member`,
    `ensemble`, `stop_rule`). One that pruned, measured sensitivity or quantized has `pruning`, `sensitivity` or `quantization`, as the phase recorded it.
    A run in which three phases or more hand a model on has `chain: [{phase, metric, value, size_bytes, packed_bytes, ...}]`, from first to last.
    """
    empty: dict[str, Any] = {"metrics": {}, "inputs": {}}
    phases = {}
    for name, phase in run.phases.items():
        phases[name] = {key: mask(phase.get(key) or empty.get(key, phase.get(key)), key) for key in FIGURES_OF_A_PHASE}
        members = {member: {"metrics": model.metrics, **model.size} for member, model in members_of(run, name).items()}
        if members:
            phases[name] |= {"members": members} | {key: phase[key] for key in OF_SEVERAL if key in phase}
        phases[name] |= {key: mask(phase[key], key) for key in RECORDS if key in phase}
    way = chain_rows(run)
    return journal.plain({"run": run.name, "phases": phases} | ({"chain": way} if way else {}))


def write_report(run_folder: str | Path) -> Path:
    """Writes `<run folder>/report/` anew, whole or not at all.

    Returns:
        The path of index.html.
    """
    run = load_run(run_folder)
    target = run.folder / "report"
    with folder_atomic(target) as folder:
        with pictures.style():
            panels = draw(figures(run), folder)
            glance = glance_bars(run)
            if glance:
                names, values, words = glance
                (folder / "at_a_glance.png").write_bytes(
                    pictures.png(plots.bars(names, values, "relative to the teacher, %", words))
                )
        with_csv = copy_tables(run, folder)
        page = page_of(run) | {"panels": panels, "disputes": disputed(run.disputes, with_csv)}
        (folder / "index.html").write_text(render("template.html.j2", page), encoding="utf-8", errors="replace")
        (folder / "report.json").write_text(
            json.dumps(report_json(run), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
    return target / "index.html"


def copy_tables(run: Run, folder: Path) -> set[str]:
    """Puts the tables of disputed labels beside the page, so that its links hold when the report is passed on; the phases that have one."""
    found = set()
    for phase in run.disputes:
        table = run.folder / phase / "disputes.csv"
        if table.is_file():
            shutil.copyfile(table, folder / csv_name(phase))
            found.add(phase)
    return found


def draw(panels: list[Panel], folder: Path) -> list[dict[str, str]]:
    """Writes each panel's figure as PNG into `folder` and returns it with its inline SVG."""
    from markupsafe import Markup  # jinja2's own

    shown = []
    for number, panel in enumerate(panels):
        figure = panel.draw()
        (folder / f"{panel.file}.png").write_bytes(pictures.png(figure))
        picture = Markup(pictures.svg(figure, f"f{number}", panel.title))
        shown.append({"group": panel.group, "title": panel.title, "caption": panel.caption, "svg": picture})
    return shown


def render(template: str, page: dict[str, Any]) -> str:
    """The page with every value escaped; a content policy lets it run its one known script and load nothing from anywhere."""
    import jinja2
    from markupsafe import Markup

    here = Path(__file__).parent
    style = re.sub(r"\s*\n\s*", "\n", (here / "style.css").read_text(encoding="utf-8"))
    script = (here / "copy.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    parts = {"policy": policy, "style": Markup(style), "script": Markup(script)}
    return environment.get_template(template).render(page | parts)
