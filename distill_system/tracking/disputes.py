"""The report's section on training labels that a teacher disputes: counts, pairs of classes, examples, and the table to download."""

from typing import Any

from distill_system.tracking.examples import picture_of, short_text
from distill_system.tracking.figures import is_number

CARDS = 24
PAIRS = 8
CAUTION = (
    "A dispute is a hint for a person, no proof. A teacher that was trained on these very rows has seen their labels and disputes too few of them; "
    "one from elsewhere, or of few epochs, shows more."
)


def csv_name(phase: str) -> str:
    """The file's name in the report's folder."""
    return (
        "disputes_" + "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in phase)[:60] + ".csv"
    )


def disputed(content: dict[str, dict[str, Any]], with_csv: set[str]) -> list[dict[str, Any]]:
    """What the page shows of each phase's disputes.json.

    Args:
        content: phase -> what its disputes.json holds.
        with_csv: phases whose table lies beside the page.
    """
    found = []
    for phase, one in content.items():
        rows = [row for row in one.get("shown") or [] if isinstance(row, dict)]
        if not is_number(one.get("rows")) or not is_number(one.get("disputed")):
            continue
        found.append(
            {
                "phase": phase,
                "teacher": str(one.get("teacher") or "the teacher"),
                "rows": one["rows"],
                "disputed": one["disputed"],
                "share": f"{100 * one['disputed'] / one['rows']:.1f} %" if one["rows"] else "0 %",
                "noise": _noise(one.get("noise")),
                "pairs": [pair for pair in one.get("pairs") or [] if isinstance(pair, dict)][:PAIRS],
                "cards": [_card(row) for row in rows[:CARDS]],
                "csv": csv_name(phase) if phase in with_csv else None,
                "caution": CAUTION,
            }
        )
    return found


def _noise(noise: Any) -> str:
    """Where labels were changed on purpose: how many of them the teacher found, which shows what its disputes are worth here."""
    if not isinstance(noise, dict) or not all(is_number(noise.get(k)) for k in ("rows", "disputed", "repaired")):
        return ""
    words = (
        f"{noise['rows']} labels are wrong on purpose (data.label_noise): the teacher disputes {noise['disputed']} of them and names the true label of "
        f"{noise['repaired']}"
    )
    if is_number(noise.get("first")) and is_number(noise.get("first_disputed")):
        words += f"; of the first {noise['first']} disputes {noise['first_disputed']} are such"
    return words + "."


def _card(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": str(row.get("id", "")),
        "text": short_text(row),
        "picture": picture_of(row),
        "label": str(row.get("label", "")),
        "label_sure": _percent(row.get("label_probability")),
        "teacher_label": str(row.get("teacher_label", "")),
        "teacher_sure": _percent(row.get("teacher_probability")),
        "true_label": None if row.get("true_label") is None else str(row["true_label"]),
    }


def _percent(share: Any) -> str:
    return f"{100 * share:.1f} %" if is_number(share) else ""
