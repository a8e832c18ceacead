"""Which figures a run's report has: curves from its journal, calibration and confusion from its evaluations."""

import functools
from typing import TYPE_CHECKING

from distill_system.tracking import plots, size_plot
from distill_system.tracking.chain_path import chain_panels
from distill_system.tracking.comparison import members_of, teacher_models
from distill_system.tracking.curves import curve_panels
from distill_system.tracking.figures import METRICS, is_number, metric_words
from distill_system.tracking.knee import knee
from distill_system.tracking.members import DIRECT, size_points
from distill_system.tracking.plots import Panel, file_name
from distill_system.tracking.pruning_panels import pruning_panels
from distill_system.tracking.quantization_panels import quantization_panels

if TYPE_CHECKING:
    from distill_system.tracking.report import Run


def figures(run: "Run") -> list[Panel]:
    """Every figure the run has something for."""
    of_phases = [*size_panels(run), *pruning_panels(run), *quantization_panels(run)]
    return [*curve_panels(run), *chain_panels(run), *of_phases, *evaluation_panels(run)]


def size_panels(run: "Run") -> list[Panel]:
    """Quality against size of the models of each phase that trains several, and of what taught them."""
    panels = []
    for phase in run.phases:
        members = members_of(run, phase)
        direct = (
            {DIRECT: members.pop(DIRECT)} if run.phases[phase].get("kind") == "assistants" and DIRECT in members else {}
        )
        names, points, metric = size_points(members)
        if len(points) < 2 or run.phases[phase].get("kind") == "mutual":
            continue
        higher = METRICS[metric].higher_is_better if metric in METRICS else True
        bend = knee(points, higher) if run.phases[phase].get("kind") == "distill" else None
        beside = size_points({teacher.name: teacher for _, teacher in teacher_models(run, phase)} | direct)
        label = METRICS[metric].label if metric in METRICS else metric
        draw = functools.partial(
            size_plot.sizes, names, points, label, bend, list(zip(beside[0], beside[1], strict=True))
        )
        caption = "ring: the knee, beyond which size pays less" if bend is not None else ""
        panels.append(Panel(f"sizes of {phase}", f"sizes_{file_name(phase)}", f"{label} against size", caption, draw))
    return panels


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
                    f"calibration_{file_name(phase)}",
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
                    f"confusion_{file_name(phase)}",
                    f"Confusion of {phase}",
                    caption,
                    functools.partial(plots.confusion, labels, matrix),
                )
            )
    return panels
