"""The figure of a phase that quantized: its file's bytes before, and packed, and what they are spent on."""

import functools
from typing import TYPE_CHECKING

from distill_system.tracking import quantization_plots
from distill_system.tracking.figures import is_number, megabytes
from distill_system.tracking.plots import Panel, file_name
from distill_system.tracking.pruning_parts import Record, records
from distill_system.tracking.quantization_parts import KEY, packed_bytes, packed_of, spent

if TYPE_CHECKING:
    from distill_system.tracking.report import Run


def quantization_panels(run: "Run") -> list[Panel]:
    panels = []
    for phase, record in records(run, KEY).items():
        bars, parts = totals(record), spent(record)
        if len(bars) > 1 and parts:
            draw = functools.partial(quantization_plots.stacked, bars, parts)
            title = f"Bytes: {megabytes(bars[-1][1])} of {megabytes(bars[0][1])}"
            caption = "above: whole files; below: what the packed one is spent on"
            panels.append(Panel(f"quantization of {phase}", f"bytes_{file_name(phase)}", title, caption, draw))
    return panels


def totals(record: Record) -> list[tuple[str, int]]:
    """(name, bytes) of the input's file and of the packed one; of the plain one where the input wasn't measured."""
    sides = (("before", "before", "size_bytes"), ("after", "as floats", "size_bytes"))
    found = [
        (name, int(side["size_bytes"]))
        for key, name, _ in sides
        if isinstance(side := record.get(key), dict) and is_number(side.get("size_bytes"))
    ][:1]
    if not found and is_number(dense := packed_of(record).get("dense_bytes")):
        found = [("as floats", int(dense))]
    size = packed_bytes(record)
    return found + ([("packed", size)] if size else [])
