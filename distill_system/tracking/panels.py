"""Which figures a run's report has: curves from its journal, calibration and confusion from its evaluations."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill_system.tracking import journal, plots
from distill_system.tracking.comparison import members_of, teacher_models
from distill_system.tracking.figures import METRICS, is_number, metric_names, metric_words
from distill_system.tracking.knee import knee
from distill_system.tracking.members import size_points
from distill_system.tracking.plots import Curve, Marks

if TYPE_CHECKING:
    from distill_system.tracking.report import Run


@dataclass
class Panel:
    """A figure to be drawn: its place on the page, its file's name and its words."""

    group: str
    file: str
    title: str
    caption: str
    draw: Callable[[], Any]


def figures(run: "Run") -> list[Panel]:
    """Every figure the run has something for."""
    return [*curve_panels(run), *size_panels(run), *evaluation_panels(run)]


def of_members(keys: list[str]) -> list[str]:
    """Where a phase trains several roles, the losses of each as a whole: its single terms would be a thicket."""
    roles = {key for key in keys if any(other.startswith(f"{key}/") for other in keys) and key != "loss"}
    return [key for key in keys if key == "loss" or key in roles] if roles else keys


def size_panels(run: "Run") -> list[Panel]:
    """Quality against size of the models of each phase that trains several, and of what taught them."""
    panels = []
    for phase in run.phases:
        members = members_of(run, phase)
        names, points, metric = size_points(members)
        if len(points) < 2 or run.phases[phase].get("kind") == "mutual":
            continue
        higher = METRICS[metric].higher_is_better if metric in METRICS else True
        bend = knee(points, higher) if run.phases[phase].get("kind") == "distill" else None
        beside = size_points({teacher.name: teacher for _, teacher in teacher_models(run, phase)})
        label = METRICS[metric].label if metric in METRICS else metric
        draw = functools.partial(plots.sizes, names, points, label, bend, list(zip(beside[0], beside[1], strict=True)))
        caption = "ring: the knee, beyond which size pays less" if bend is not None else ""
        panels.append(Panel(f"sizes of {phase}", f"sizes_{_file(phase)}", f"{label} against size", caption, draw))
    return panels


def _axis(run: "Run") -> tuple[dict[str, int], list[str]]:
    """Where each phase begins when all are drawn one after another, and the phases that have lines."""
    starts, at, present = {}, 0, []
    titles = dict.fromkeys(str(line["phase"]) for line in run.lines if "phase" in line)
    # Steps of a phase (`chain.student`) stand where the phase stands, which itself may have nothing but the line that it ended.
    known = [title for phase in run.phases for title in titles if title == phase or title.startswith(f"{phase}.")]
    for phase in dict.fromkeys([*known, *titles]):
        own = [line for line in run.lines if line.get("phase") == phase and is_number(line.get("step"))]
        steps = [line["step"] for line in own]
        if any("event" not in line for line in own):
            starts[phase] = at
            at += int(max(steps))
            present.append(phase)
    return starts, present


def _joined(run: "Run", key: str, starts: dict[str, int]) -> Curve:
    """One figure over all phases; a line each would only repeat what the marks say."""
    steps: list[float] = []
    values: list[float] = []
    for phase, start in starts.items():
        s, v = journal.series(run.lines, phase, key)
        steps += [start + step for step in s]
        values += v
    return Curve(key, steps, values)


def _events(run: "Run", phase: str, event: str) -> list[float]:
    return [
        float(line["step"])
        for line in run.lines
        if line.get("phase") == phase and line.get("event") == event and is_number(line.get("step"))
    ]


def curve_panels(run: "Run") -> list[Panel]:
    starts, present = _axis(run)
    if not present:
        return []
    begin = [(float(start), phase) for phase, start in starts.items()]
    resumed = [starts[p] + s for p in present for s in _events(run, p, "resume")]
    bad = [starts[p] + s for p in present for s in _events(run, p, "bad_step")]
    panels: list[Panel] = []

    def add(file: str, title: str, caption: str, curves: list[Curve], marks: Marks, **options: Any) -> None:
        curves = [curve for curve in curves if any(value == value for value in curve.values)]
        if curves:
            panels.append(
                Panel("curves", file, title, caption, functools.partial(plots.curves, curves, marks, **options))
            )

    parts = sorted({key for line in run.lines for key in line if key == "loss" or key.startswith("loss/")})
    for phase in present:
        keys = sorted(
            {
                key
                for line in run.lines
                if line.get("phase") == phase
                for key in line
                if key == "loss" or key.startswith("loss/")
            }
        )
        members = of_members(keys) != keys
        keys = of_members(keys)
        if keys == ["loss", f"loss/{keys[-1].partition('/')[2]}"]:
            keys = (
                keys[1:]
                if journal.series(run.lines, phase, keys[1])[1] == journal.series(run.lines, phase, "loss")[1]
                else keys
            )
        curves = [
            Curve(
                "total" if key == "loss" else key.partition("/")[2],
                *journal.series(run.lines, phase, key),
                keys.index(key) if members else parts.index(key),
            )
            for key in keys
        ]
        marks = Marks(resumed=_events(run, phase, "resume"), bad=_events(run, phase, "bad_step"))
        title = f"Loss of {phase}" + (f": {curves[0].name}" if len(curves) == 1 and curves[0].name != "total" else "")
        dense = "thick: running mean" if any(len(curve.values) > 40 for curve in curves) else ""
        add(f"loss_{_file(phase)}", title, _notes(dense, marks), curves, marks)
    across = Marks(phases=begin)
    known = {key for line in run.lines for key in line}
    names = metric_names({key.rpartition("/")[2]: 1.0 for key in known if key.startswith("valid/")})
    for name in dict.fromkeys([*names[:1], *[n for n in names if n == "nll"]]):
        label = METRICS[name].label if name in METRICS else name.replace("_", " ")
        curves = []
        for phase in present:
            own = {key for line in run.lines if line.get("phase") == phase for key in line if key.startswith("valid/")}
            for key in sorted(key for key in own if key.rpartition("/")[2] == name):
                steps, values = journal.series(run.lines, phase, key)
                member = key.split("/")[1] if key.count("/") == 2 else phase
                curves.append(Curve(member, [starts[phase] + step for step in steps], values))
        several = any(curve.name not in present for curve in curves)
        add(f"valid_{_file(name)}", f"Validation: {label}", "", curves, across, smoothed=False, named=several)
    add("lr", "Learning rate", "", [_joined(run, "lr", starts)], across, smoothed=False, log=False)
    add(
        "grad_norm",
        "Gradient norm",
        _notes("", Marks(resumed=resumed, bad=bad), where=False),
        [_joined(run, "grad_norm", starts)],
        Marks(begin, resumed, bad),
    )
    return panels


def _notes(first: str, marks: Marks, where: bool = True) -> str:
    """What the signs in a figure mean; `where` names their steps (not where several phases stand behind one another)."""
    parts = [first] if first else []
    for steps, words in ((marks.resumed, "▲ resumed"), (marks.bad, "× skipped bad step")):
        if steps:
            parts.append(words + (f" ({_steps(steps)})" if where else ""))
    return " · ".join(parts)


def _steps(steps: list[float]) -> str:
    shown = ", ".join(f"{step:g}" for step in steps[:4])
    return f"{shown} and {len(steps) - 4} more" if len(steps) > 4 else shown


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:60]


def evaluation_panels(run: "Run") -> list[Panel]:
    panels = []
    for phase, found in run.evaluations.items():
        bins = [
            b
            for b in (found.get("calibration") or {}).get("bins") or []
            if is_number(b.get("confidence")) and is_number(b.get("accuracy"))
        ]
        if any(b.get("count") for b in bins):
            ece = (found.get("metrics") or {}).get("ece")
            caption = f"expected calibration error {metric_words('ece', ece)}" if is_number(ece) else ""
            panels.append(
                Panel(
                    "calibration",
                    f"calibration_{_file(phase)}",
                    f"Calibration of {phase}",
                    caption,
                    functools.partial(plots.calibration, bins),
                )
            )
        confusion = found.get("confusion") or {}
        labels, matrix = [str(label) for label in confusion.get("labels") or []], confusion.get("matrix") or []
        if labels and len(matrix) == len(labels):
            few = len(labels) > plots.MOST_LABELS
            caption = (
                f"the {plots.MOST_LABELS} most mistaken of {len(labels)} labels"
                if few
                else "shade: share of the true label’s rows"
            )
            panels.append(
                Panel(
                    "confusion",
                    f"confusion_{_file(phase)}",
                    f"Confusion of {phase}",
                    caption,
                    functools.partial(plots.confusion, labels, matrix),
                )
            )
    return panels
