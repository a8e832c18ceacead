"""Phases of several models or several teachers, for the page: their figures side by side, which is best, and what the phase found out."""

from typing import TYPE_CHECKING, Any

from distill_system.tracking import journal
from distill_system.tracking.comparison import Model, best_teacher, members_of, table_of, teacher_models
from distill_system.tracking.figures import gap_words, is_number, quality, quantity, short_number
from distill_system.tracking.knee import knee_words
from distill_system.tracking.secrets import mask_text

if TYPE_CHECKING:
    from distill_system.tracking.report import Run

TITLES = {"distill": "Students of one teacher", "mutual": "Cohort", "assistants": "Chain"}
DIRECT = "direct"  # the member of a chain that its teacher taught without assistants


def sections(run: "Run") -> list[dict[str, Any]]:
    """A section for each phase that has members, or that more than one teacher taught."""
    found = []
    for phase in run.phases:
        members = members_of(run, phase)
        if members:
            found.append(_members_section(run, phase, members))
        if len(teacher_models(run, phase)) > 1:
            found.append(_faculty_section(run, phase))
    return found


def _members_section(run: "Run", phase: str, members: dict[str, Model]) -> dict[str, Any]:
    entry = run.phases[phase]
    kind, best = str(entry.get("kind", "")), str(entry.get("best_member") or "")
    if best in members:
        members[best].kind = "the best" if kind != "assistants" else ""
    rows: dict[str, Model] = {}
    partner: dict[str, Model] = {}
    if len(teacher_models(run, phase)) == 1:  # several have a section of their own
        for _, teacher in best_teacher(run, phase):
            rows[f" {teacher.name}"] = teacher  # a member may have the same name
            partner = dict.fromkeys(members, teacher)
    rows |= members
    if entry.get("ensemble"):
        rows[" all together"] = Model("", "mean of their probabilities", entry["ensemble"], {}, {})
    title = TITLES.get(kind, "Members")
    return {
        "title": f"{title}: {phase}" if phase not in (title.lower(), "students") else title,
        "phase": phase,
        "words": [mask_text(words) for words in _words(run, phase, members) if words],
        "paths": paths(run, phase, members) if kind == "assistants" else [],
        "table": table_of(rows, partner, {}),
        "shares": bool(partner),
        "facts": [],
    }


def _words(run: "Run", phase: str, members: dict[str, Model]) -> list[str]:
    entry = run.phases[phase]
    if isinstance(entry.get("stop_rule"), dict):
        return [sentence(str(entry["stop_rule"].get("words") or ""))]
    if entry.get("kind") == "distill":
        names, points, metric = size_points(members)
        return [knee_words(names, points, metric), grain_words(members)] if len(points) > 1 else []
    return [cohort_words(members, str(entry.get("best_member") or ""), entry.get("ensemble") or {})]


def sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}." if words else ""


def size_points(models: dict[str, Model]) -> tuple[list[str], list[tuple[float, float]], str]:
    """Names, (parameters, quality) and the quality's metric, of the models that have both."""
    graded = {name: quality(model.metrics) for name, model in models.items()}
    metric = next((one.name for one in graded.values() if one), "")
    sizes = {name: model.figures.get("parameters") for name, model in models.items()}
    found = [
        (name, (sizes[name], one.value)) for name, one in graded.items() if one and one.name == metric and sizes[name]
    ]
    return [name for name, _ in found], [(float(size or 0), value) for _, (size, value) in found], metric


def grain_words(members: dict[str, Model]) -> str:
    """How exactly an accuracy is known from so many rows; differences below it may be chance."""
    for model in members.values():
        accuracy, rows = model.metrics.get("accuracy"), model.metrics.get("samples")
        if is_number(accuracy) and is_number(rows) and rows and 0 < accuracy < 1:
            error = 1.96 * (accuracy * (1 - accuracy) / rows) ** 0.5
            return f"One seed; on {rows:,.0f} rows an accuracy is known to ±{100 * error:.1f} points (95 %)."
    return ""


def cohort_words(members: dict[str, Model], best: str, ensemble: dict[str, Any]) -> str:
    """Which member is the best, how far from the others, and what all say together."""
    graded = {name: quality(model.metrics) for name, model in members.items()}
    mine = graded.get(best)
    if mine is None or any(one is None or one.name != mine.name for one in graded.values()):
        return ""
    values = [one.value for one in graded.values() if one]
    sign = 1 if mine.higher_is_better else -1
    lowest, highest = min(values), max(values)
    words = f"{best} is handed on, the best of {len(members)} on the validation rows: {mine.label} {mine.shown}; all lie within {gap_words(mine.name, highest - lowest)}."
    if is_number(ensemble.get(mine.name)):
        gap = sign * (ensemble[mine.name] - mine.value)
        told = (
            f"{gap_words(mine.name, abs(gap))} {'more' if sign > 0 else 'less'}"
            if gap >= 0
            else f"worse by {gap_words(mine.name, abs(gap))}"
        )
        words += f" The mean of all {'has' if gap >= 0 else 'is'} {told} than {best} alone."
    return words


def paths(run: "Run", phase: str, members: dict[str, Model]) -> list[list[dict[str, str]]]:
    """The ways from teacher to student, each a list of stations: the chain, and the direct one where it was trained."""
    teachers = best_teacher(run, phase)
    start = [_station(run, phase, model.name, model, teacher=True) for _, model in teachers]
    chain = [_station(run, phase, name, model) for name, model in members.items() if name != DIRECT]
    found = [start + chain]
    if DIRECT in members:
        found.append([*start, _station(run, phase, DIRECT, members[DIRECT])])
    return found


def _station(run: "Run", phase: str, name: str, model: Model, teacher: bool = False) -> dict[str, str]:
    found, parameters = quality(model.metrics), model.size.get("parameters")
    facts = [f"{found.label} {found.shown}"] if found else []
    facts += [f"{quantity(parameters)} parameters"] if is_number(parameters) else []
    steps = None if teacher else steps_of(run, phase, name)
    facts += [f"{steps:,} steps"] if steps else []
    return {"name": name, "facts": " · ".join(facts)}


def steps_of(run: "Run", phase: str, member: str) -> int | None:
    """Steps that a member was trained for: as the manifest has it, else its last line's."""
    said = (run.phases[phase].get("steps_of") or {}).get(member)
    if is_number(said):
        return int(said)
    steps, _ = journal.series(run.lines, f"{phase}.{member}", "loss")
    return max(steps, default=None)


def _faculty_section(run: "Run", phase: str) -> dict[str, Any]:
    """What each teacher is worth, how much the student agrees with it, and how they teach together."""
    entry, agreement = run.phases[phase], (run.evaluations.get(phase) or {}).get("teacher") or {}
    settings = entry.get("settings") or {}
    ensemble = settings.get("ensemble") or {}
    weighting = str(ensemble.get("weighting") or "fixed")
    rows: dict[str, Model] = {}
    facts = []
    total = sum(_weight(one) for one in (settings.get("teachers") or {}).values())
    for name, teacher in teacher_models(run, phase):
        shown = name if name == teacher.name else f"{name} ({teacher.name})"
        rows[shown] = Model(shown, "teacher", teacher.metrics, teacher.size, {})
        said = agreement.get(name) or {}
        told = (
            [f"weight {_weight((settings.get('teachers') or {}).get(name)) / total:.2f}"]
            if total and weighting == "fixed"
            else []
        )
        told += [f"agrees with {phase} on {100 * said['agreement']:.1f} %"] if is_number(said.get("agreement")) else []
        told += [f"KL divergence {short_number(said['kl'])} nats"] if is_number(said.get("kl")) else []
        facts += [(shown, ", ".join(told))] if told else []
    best = str(entry.get("best_member") or "")
    student = members_of(run, phase).get(best)
    rows[f" {best if student else phase}"] = Model("", "student", entry.get("metrics") or {}, _size(entry), {})
    how = [f"combined by {ensemble.get('combine') or 'probabilities'}", f"weights: {weighting}"]
    return {
        "title": f"Teachers of {phase}", "phase": phase, "words": [], "paths": [], "table": table_of(rows, {}, {}), "shares": False,
        "facts": [("together", ", ".join(how)), *facts],
    }  # fmt: skip


def _size(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry.get(key) for key in ("size_bytes", "parameters", "nonzeros")}


def _weight(settings: Any) -> float:
    value = settings.get("weight", 1.0) if isinstance(settings, dict) else 1.0
    return float(value) if is_number(value) else 1.0


def notes(run: "Run") -> list[tuple[str, str]]:
    """(phase, sentence): what was chosen on the way and why; no cause for worry."""
    found = []
    for name, phase in run.phases.items():
        shown = (phase.get("stop_rule") or {}).get("words")  # stands above the chain
        told = [str(note) for note in phase.get("notes") or [] if note != shown]
        told += mapping_words(phase.get("mapping") or {})
        found += [(name, mask_text(note)) for note in dict.fromkeys(told)]
    return found


def mapping_words(mapping: dict[str, Any]) -> list[str]:
    """Which layers hear which, a sentence a loss; members or teachers with the same pairs share one.

    >>> mapping_words({"hint": {"pairs": [[0, 2], [1, 5]], "projectors": 2}})
    ['hint: layers of the student hear those of the teacher: 0 ← 2, 1 ← 5 (counted from 0); projectors: 2']
    """
    same: dict[str, list[str]] = {}
    for term, chosen in mapping.items():
        if isinstance(chosen, dict) and isinstance(chosen.get("pairs"), list):
            pairs = ", ".join(
                f"{pair[0]} ← {pair[1]}"
                for pair in chosen["pairs"]
                if isinstance(pair, list | tuple) and len(pair) == 2
            )
            parts = [f"layers of the student hear those of the teacher: {pairs} (counted from 0)"]
            rest = {key: value for key, value in chosen.items() if key != "pairs"}
        else:
            parts, rest = [], chosen if isinstance(chosen, dict) else {"chosen": chosen}
        parts += [f"{key.replace('_', ' ')}: {value}" for key, value in rest.items()]
        same.setdefault("; ".join(parts), []).append(str(term))
    return [f"{', '.join(terms)}: {words}" for words, terms in same.items()]
