"""Small pictures beside those rows of predictions.json that a report shows: where student and teacher disagree, the surest first."""

from collections.abc import Sequence
from typing import Any

MOST = 60  # of a file; a picture takes from 1 to 10 kB


def add_pictures(rows: list[dict[str, Any]], samples: Sequence[int], store: Any) -> None:
    """Puts `picture` (a data URI) into the rows; nothing where the data is text.

    Args:
        rows: of predictions.json.
        samples: index in the split of each row.
        store: of the split.
    """
    if not hasattr(store, "picture"):
        return
    taught = any(row.get("teacher_prediction") is not None for row in rows)
    apart = [
        i for i, row in enumerate(rows) if row.get("prediction") != row.get("teacher_prediction" if taught else "label")
    ]
    apart.sort(key=lambda i: (-(rows[i]["confidence"] or 0) - (rows[i].get("teacher_confidence") or 0), rows[i]["id"]))
    for i in apart[:MOST]:
        rows[i]["picture"] = store.picture(samples[i])
