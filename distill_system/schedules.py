"""Numbers that change over a phase's steps: a pure function of the progress, so that a resumed run can't drift."""

import math
from typing import Any

from distill_system.settings import Schedule


def schedule_of(setting: Any) -> Schedule | None:
    """The schedule that a config's value describes; None where it is a plain number."""
    if isinstance(setting, Schedule):
        return setting
    return Schedule(**setting) if isinstance(setting, dict) else None


def value_at(setting: Any, progress: float) -> float:
    """The number a setting stands for at `progress` in [0, 1] of the phase's steps.

    Args:
        setting: a number; or a Schedule, or its fields as a config has them.
        progress: finished steps / all steps.

    >>> value_at(0.5, 0.9), value_at({"start": 1.0, "end": 0.0, "shape": "linear"}, 0.25)
    (0.5, 0.75)
    """
    schedule = schedule_of(setting)
    if schedule is None:
        return float(setting)
    if schedule.shape == "constant":
        return schedule.start
    share = min(1.0, max(0.0, (progress - schedule.begin) / max(schedule.until - schedule.begin, 1e-12)))
    if schedule.shape == "cosine":
        share = 0.5 * (1 - math.cos(math.pi * share))
    return schedule.start + (schedule.end - schedule.start) * share
