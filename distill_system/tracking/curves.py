"""The curves of a run's training: of phases one after another, and of a phase's members or steps side by side."""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill_system.tracking import journal, plots
from distill_system.tracking.figures import METRICS, is_number, metric_names
from distill_system.tracking.plots import Curve, Marks, Panel, file_name

if TYPE_CHECKING:
    from distill_system.tracking.report import Run

Line = dict[str, Any]
MOST = 7  # curves in one figure that can be told apart


@dataclass(frozen=True)
class Track:
    """Whose curves: the model that a phase trains, one of several that it trains together, or a step that has lines of its own."""

    name: str  # in a figure
    title: str  # of its lines in the journal
    role: str = ""  # in its lines' keys, where there are several

    def key(self, kind: str) -> str:
        return f"{kind}/{self.role}" if self.role else kind


def tracks(lines: list[Line], phases: list[str]) -> dict[str, list[Track]]:
    """What each phase trains, by the phase's name and in the order of the phases; only those that have figures."""
    keys: dict[str, dict[str, None]] = {}
    for line in lines:
        if "phase" in line and "event" not in line and is_number(line.get("step")):
            keys.setdefault(str(line["phase"]), {}).update(dict.fromkeys(line))
    found: dict[str, list[Track]] = {}
    for phase in dict.fromkeys([*phases, *keys]):
        steps = [] if phase in keys else [title for title in keys if title.startswith(f"{phase}.")]
        roles = [key.partition("/")[2] for key in keys.get(phase, ()) if key.startswith("grad_norm/")]
        if steps:
            found[phase] = [Track(title.removeprefix(f"{phase}."), title) for title in steps]
        elif phase in keys and not any(phase == one.title for own in found.values() for one in own):
            found[phase] = [Track(role, phase, role) for role in roles] or [Track(phase, phase)]
    return found


def side_by_side(phase: str, own: list[Track]) -> bool:
    return own != [Track(phase, phase)]


def curve_panels(run: "Run") -> list[Panel]:
    groups = tracks(run.lines, list(run.phases))
    if not groups:
        return []
    panels: list[Panel] = []
    for phase, own in groups.items():
        panels += member_losses(run.lines, phase, own) if side_by_side(phase, own) else losses(run.lines, phase)
        panels += weights(run.lines, phase, own[0])
    return panels + validations(run.lines, groups) + across(run.lines, groups)


def panel(file: str, title: str, caption: str, curves: list[Curve], marks: Marks, **options: Any) -> list[Panel]:
    """The figure, or none where there is nothing to see."""
    curves = [curve for curve in curves if any(value == value for value in curve.values)]
    draw = functools.partial(plots.curves, curves, marks, **options)
    return [Panel("curves", file, title, caption, draw)] if curves else []


def losses(lines: list[Line], phase: str) -> list[Panel]:
    """The loss of a phase that trains one model, with its parts; parts that hear several teachers get figures of their own where all are too many."""
    names = [key for key in _keys(lines, phase) if key == "loss" or key.startswith("loss/")]
    every = sorted({key for line in lines for key in line if key == "loss" or key.startswith("loss/")})
    parts = _parts(names, "loss")
    single = len(names) == 2 and _series(lines, phase, names[1:])[1] == _series(lines, phase, ["loss"])[1]
    shown = {"total": ["loss"]} if "loss" in names and not single else {}
    if len(names) <= MOST:
        shown |= {name.partition("/")[2]: [name] for name in names if name != "loss"}
    else:
        shown |= parts
    curves = [
        Curve(name, *_series(lines, phase, keys), every.index(keys[0]) if len(names) <= MOST else None)
        for name, keys in shown.items()
    ]
    marks = _marks(lines, phase)
    title = f"Loss of {phase}" + (f": {curves[0].name}" if len(curves) == 1 and curves[0].name != "total" else "")
    found = panel(f"loss_{file_name(phase)}", title, _caption(curves, marks), curves, marks)
    for name, keys in parts.items() if len(names) > MOST else ():
        if len(keys) > 1:
            each = [Curve(key.split("/", 2)[2], *_series(lines, phase, [key])) for key in keys]
            file = f"loss_{file_name(phase)}_{file_name(name)}"
            found += panel(file, f"Loss of {phase}: {name}", _caption(each, marks), each, marks)
    return found


def member_losses(lines: list[Line], phase: str, own: list[Track]) -> list[Panel]:
    """A curve a member: of its whole loss, and in further figures of each part, the mean over the teachers or peers that it hears."""
    found: list[Panel] = []
    parts: dict[str, dict[Track, list[str]]] = {}
    for track in own:
        for name, keys in _parts(_keys(lines, track.title), track.key("loss")).items():
            parts.setdefault(name, {})[track] = keys
    figures: dict[str, dict[Track, list[str]]] = {"": {track: [track.key("loss")] for track in own}}
    figures |= parts if len(parts) > 1 else {}
    for name, keys_of in figures.items():
        curves = [Curve(t.name, *_series(lines, t.title, keys), own.index(t)) for t, keys in keys_of.items()]
        marks = _marks(lines, phase)
        several = any(len(keys) > 1 for keys in keys_of.values())
        caption = " · ".join(
            filter(None, ("mean over those that are heard" if several else "", _caption(curves, marks)))
        )
        file = f"loss_{file_name(phase)}" + (f"_{file_name(name)}" if name else "")
        found += panel(file, f"Loss of {phase}" + (f": {name}" if name else ""), caption, curves, marks)
    return found


def weights(lines: list[Line], phase: str, track: Track) -> list[Panel]:
    """Weights of losses, where one of them changes; they are the same for all members."""
    head = track.key("weight")
    curves: list[Curve] = []
    for name, keys in _parts(_keys(lines, track.title), head).items():
        each = {key: _series(lines, track.title, [key]) for key in keys}
        alike = all(values == each[keys[0]] for values in each.values())
        for key in keys[:1] if alike else keys:
            curves.append(Curve(name if alike else key.removeprefix(f"{head}/"), *each[key]))
    if not any(len(set(curve.values)) > 1 for curve in curves):
        return []
    return panel(f"weights_{file_name(phase)}", f"Weights in {phase}", "", curves, Marks(), smoothed=False, log=False)


def validations(lines: list[Line], groups: dict[str, list[Track]]) -> list[Panel]:
    """The first metric and the likelihood: phases of one model in one figure, members of a phase in one of their own."""
    known = {key for line in lines for key in line if key.startswith("valid/")}
    names = metric_names({key.rpartition("/")[2]: 1.0 for key in known})
    starts = _starts(lines, groups)
    alone = [own[0] for phase, own in groups.items() if not side_by_side(phase, own)]
    found: list[Panel] = []
    for name in dict.fromkeys([*names[:1], *[n for n in names if n == "nll"]]):
        label = METRICS[name].label if name in METRICS else name.replace("_", " ")
        curves = []
        for track in alone:
            steps, values = journal.series(lines, track.title, f"valid/{name}")
            curves += [Curve(track.name, [starts[track.title] + step for step in steps], values)] if steps else []
        marks = _marks_of_all(lines, starts, [(float(starts[track.title]), track.name) for track in alone])
        marks.resumed, marks.bad = [], []  # they say nothing of a metric
        # Where phases without a curve stand between, their place stays empty: steps are those of the run.
        file, title = f"valid_{file_name(name)}", f"Validation: {label}"
        found += panel(file, title, _notes("", marks, where=False), curves, marks, smoothed=False, named=False)
        for phase, own in groups.items():
            if side_by_side(phase, own):
                curves = [
                    Curve(t.name, *journal.series(lines, t.title, f"{t.key('valid')}/{name}"), own.index(t))
                    for t in own
                ]
                file, title = f"valid_{file_name(phase)}_{file_name(name)}", f"Validation of {phase}: {label}"
                found += panel(file, title, "", curves, Marks(), smoothed=False)
    return found


def across(lines: list[Line], groups: dict[str, list[Track]]) -> list[Panel]:
    """Learning rate and gradient norm over all phases; a line each would only repeat what the marks say."""
    starts = _starts(lines, groups)
    names = {track.title: track.name if not track.role else phase for phase, own in groups.items() for track in own}
    begin = [(float(start), names[title]) for title, start in starts.items()]
    marks = _marks_of_all(lines, starts, begin)
    notes = _notes("", marks, where=False)
    rate = panel("lr", "Learning rate", "", [_joined(lines, "lr", starts)], Marks(begin), smoothed=False, log=False)
    return rate + panel("grad_norm", "Gradient norm", notes, [_joined(lines, "grad_norm", starts)], marks)


def _starts(lines: list[Line], groups: dict[str, list[Track]]) -> dict[str, int]:
    """Where each title begins when all are drawn one after another."""
    starts, at = {}, 0
    for title in dict.fromkeys(track.title for own in groups.values() for track in own):
        starts[title] = at
        at += int(max(line["step"] for line in lines if line.get("phase") == title and is_number(line.get("step"))))
    return starts


def _keys(lines: list[Line], title: str) -> list[str]:
    return sorted({key for line in lines if line.get("phase") == title for key in line})


def _parts(keys: list[str], head: str) -> dict[str, list[str]]:
    """The keys below `head` by the loss they belong to: `loss/a/peer/b` and `loss/a/peer/c` are both of `peer` below `loss/a`."""
    found: dict[str, list[str]] = {}
    for key in keys:
        if key.startswith(f"{head}/"):
            found.setdefault(key.removeprefix(f"{head}/").partition("/")[0], []).append(key)
    return found


def _series(lines: list[Line], title: str, keys: list[str]) -> tuple[list[float], list[float]]:
    """Steps and the mean of some figures that stand in the same lines."""
    all_series = [journal.series(lines, title, key) for key in keys]
    steps = all_series[0][0]
    if any(one[0] != steps for one in all_series):
        common = [dict(zip(*one, strict=True)) for one in all_series]
        steps = [step for step in steps if all(step in one for one in common)]
        return list(steps), [math.fsum(one[step] for one in common) / len(common) for step in steps]
    rows = zip(*(values for _, values in all_series), strict=True)
    return list(steps), [row[0] if len(row) == 1 else sum(row) / len(row) for row in rows]


def _joined(lines: list[Line], key: str, starts: dict[str, int]) -> Curve:
    steps: list[float] = []
    values: list[float] = []
    for title, start in starts.items():
        s, v = journal.series(lines, title, key)
        steps += [start + step for step in s]
        values += v
    return Curve(key, steps, values)


def _marks(lines: list[Line], title: str) -> Marks:
    resumed, bad, pruned, rolled_back, fewer = (
        _events(lines, title, event) for event in ("resume", "bad_step", "prune", "rollback", "quantize")
    )
    return Marks([], resumed, bad, pruned, rolled_back, fewer)


def _marks_of_all(lines: list[Line], starts: dict[str, int], phases: list[tuple[float, str]]) -> Marks:
    """Those of phases that are drawn one after another."""
    found = Marks(phases)
    for title, start in starts.items():
        own = _marks(lines, title)
        found.resumed += [start + step for step in own.resumed]
        found.bad += [start + step for step in own.bad]
        found.pruned += [start + step for step in own.pruned]
        found.rolled_back += [start + step for step in own.rolled_back]
        found.fewer_bits += [start + step for step in own.fewer_bits]
    return found


def _events(lines: list[Line], title: str, event: str) -> list[float]:
    return [
        float(line["step"])
        for line in lines
        if line.get("phase") == title and line.get("event") == event and is_number(line.get("step"))
    ]


def _caption(curves: list[Curve], marks: Marks) -> str:
    return _notes("thick: running mean" if any(len(curve.values) > 40 for curve in curves) else "", marks)


def _notes(first: str, marks: Marks, where: bool = True) -> str:
    """What the signs in a figure mean; `where` names their steps (not where several phases stand behind one another)."""
    parts = [first] if first else []
    signs = (
        (marks.resumed, "▲ resumed"),
        (marks.bad, "× skipped bad step"),
        (marks.pruned, "│ pruned"),
        (marks.rolled_back, "◂ rolled back"),
        (marks.fewer_bits, "┆ fewer bits"),
    )
    for steps, words in signs:
        if steps:
            parts.append(words + (f" ({_steps(steps)})" if where else ""))
    return " · ".join(parts)


def _steps(steps: list[float]) -> str:
    shown = ", ".join(f"{step:g}" for step in steps[:4])
    return f"{shown} and {len(steps) - 4} more" if len(steps) > 4 else shown
