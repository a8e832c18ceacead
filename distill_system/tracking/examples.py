"""Held-out texts on which teacher and student disagree: which of the two was right, and the most telling ones in words."""

import re
from typing import Any

from distill_system.tracking.figures import is_number, short_number

MOST = 20
LONGEST_TEXT = 500  # characters
PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def disagreements(predictions: dict[str, dict[str, Any]], teachers: dict[str, list[str]]) -> list[dict[str, Any]]:
    """For each phase: counts, and up to 20 rows, those first where both were surest (ties by id, so that a page is the same each time).

    Numbers are never quite the same: of a regression those rows come first where the two are furthest apart.
    """
    found = []
    for phase, content in predictions.items():
        if content.get("task") == "regression":
            found += _furthest(phase, content, teachers.get(phase) or [])
            continue
        labels = [str(label) for label in content.get("labels") or []]
        rows = [
            row
            for row in content.get("rows") or []
            if isinstance(row, dict) and row.get("teacher_prediction") is not None
        ]
        apart = [row for row in rows if row.get("prediction") != row["teacher_prediction"]]
        if not apart:
            continue
        right = {"student": 0, "teacher": 0, "neither": 0}
        for row in apart:
            if _word(row.get("label"), labels) is not None:
                winner = (
                    "student"
                    if row.get("prediction") == row["label"]
                    else "teacher"
                    if row["teacher_prediction"] == row["label"]
                    else "neither"
                )
                right[winner] += 1
        apart.sort(
            key=lambda row: (
                -_number(row.get("confidence")) - _number(row.get("teacher_confidence")),
                str(row.get("id")),
            )
        )
        names = teachers.get(phase) or []
        found.append(
            {
                "student": phase,
                "teacher": names[0] if len(names) == 1 else "teacher",
                "apart": len(apart),
                "rows": len(rows),
                "right": right if sum(right.values()) else {},
                "shown": [_shown(row, labels) for row in apart[:MOST]],
            }
        )
    return found


def _furthest(phase: str, content: dict[str, Any], teachers: list[str]) -> list[dict[str, Any]]:
    """The same for numbers: which of the two was nearer to the truth, and the rows where they are furthest apart."""
    both = ("prediction", "teacher_prediction")
    rows = [
        row for row in content.get("rows") or [] if isinstance(row, dict) and all(is_number(row.get(k)) for k in both)
    ]
    if not rows:
        return []
    nearer = {"student": 0, "teacher": 0, "neither": 0}
    for row in rows:
        if is_number(row.get("label")):
            mine, theirs = (abs(row[name] - row["label"]) for name in both)
            nearer["student" if mine < theirs else "teacher" if theirs < mine else "neither"] += 1
    rows.sort(key=lambda row: (-abs(row[both[0]] - row[both[1]]), str(row.get("id"))))
    shown = []
    for row in rows[:MOST]:
        answers = {
            who: {"word": short_number(row[name]), "sure": "", "right": None}
            for who, name in zip(("student", "teacher"), both, strict=True)
        }
        true = short_number(row["label"]) if is_number(row.get("label")) else None
        shown.append({"id": str(row.get("id", "")), "text": short_text(row), "true": true, "picture": None, **answers})
    known = {"nearer": nearer} if sum(nearer.values()) else {"nearer": {}}
    teacher = teachers[0] if len(teachers) == 1 else "teacher"
    return [{"student": phase, "teacher": teacher, "rows": len(rows), "shown": shown, **known}]


def short_text(row: dict[str, Any]) -> str:
    text = str(row.get("text") or "")
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT].rstrip() + " …"


def _shown(row: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    true = _word(row.get("label"), labels)
    said = {"student": ("prediction", "confidence"), "teacher": ("teacher_prediction", "teacher_confidence")}
    answers = {}
    for who, (prediction, confidence) in said.items():
        right = row.get(prediction) == row.get("label") if true is not None else None
        sure = f"{100 * row[confidence]:.0f} %" if is_number(row.get(confidence)) else ""
        answers[who] = {"word": _word(row.get(prediction), labels) or "–", "sure": sure, "right": right}
    return {
        "id": str(row.get("id", "")),
        "text": short_text(row),
        "true": true,
        "picture": picture_of(row),
        **answers,
    }


def picture_of(row: dict[str, Any]) -> str | None:
    """A row's picture, if it is one that was written by an evaluation: it goes into the page as it is."""
    uri = row.get("picture")
    return uri if isinstance(uri, str) and PICTURE.fullmatch(uri) else None


def _word(label: Any, labels: list[str]) -> str | None:
    """A label's name; labels come as numbers or as names, and an unknown one (None, -100) has none."""
    if isinstance(label, int) and not isinstance(label, bool):
        return labels[label] if 0 <= label < len(labels) else None
    return None if label is None else str(label)


def _number(value: Any) -> float:
    return float(value) if is_number(value) else 0.0
