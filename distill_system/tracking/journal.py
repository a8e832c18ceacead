"""The journal of a run: one JSON object a line in `metrics.jsonl`, the truth that W&B, the report and a resume are fed from.

A line is whole or it is not there: lines are appended in one write, and what a killed process left torn at the end is cut before the next append.
A figure that is not finite (NaN, infinity) is written as `null`, which JSON and every reader of it can hold; `series` gives it back as NaN. That
a step was bad stands in its event line, so nothing is lost by it.
"""

import json
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill_system.files import write_atomic

log = logging.getLogger(__name__)


def plain(value: Any) -> Any:
    """`value` as something JSON can hold: non-finite numbers become None, one-element tensors and arrays their number."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # numpy scalars, tensors of one element
        return plain(value.item())
    return str(value)


def encode(lines: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(plain(line), allow_nan=False).encode() + b"\n" for line in lines)


class Journal:
    """Appends lines to `path`; only rank 0 has one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._clean = False  # whether the end of the file was looked at

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Appends `lines` in one write; they survive the death of this process (not a power cut, which costs at most the last lines)."""
        if not lines:
            return
        if not self._clean:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut_torn_line(self.path)
            self._clean = True
        with open(self.path, "ab") as file:
            file.write(encode(lines))
            file.flush()

    def read(self) -> list[dict[str, Any]]:
        return read(self.path)

    def rewind(self, phase: str, step: int) -> int:
        return rewind(self.path, phase, step)


def cut_torn_line(path: Path) -> None:
    """Cuts the file after its last newline, so that the next line doesn't grow onto half of another."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except ValueError:  # covers JSONDecodeError and UnicodeDecodeError
        return None
    return value if isinstance(value, dict) else None


def read(path: str | Path) -> list[dict[str, Any]]:
    """Every whole line. A torn last line is dropped; a broken one in between (after a power cut) too, with a warning."""
    path = Path(path)
    if not path.exists():
        return []
    pieces = path.read_bytes().split(b"\n")
    lines = []
    for number, raw in enumerate(pieces[:-1], start=1):  # what follows the last newline is empty or torn
        line = _parse(raw)
        if line is not None:
            lines.append(line)
        elif raw.strip():
            log.warning("%s: line %d is not readable and is left out", path, number)
    return lines


def rewind(path: str | Path, phase: str, step: int) -> int:
    """Removes every line of `phase` whose step is greater than `step`, so that a resumed phase writes no step twice.

    The file is replaced in one rename, or not touched when nothing has to go. `step=-1` removes the whole phase.

    Returns:
        How many lines were removed (torn and unreadable ones not counted).
    """
    path = Path(path)
    if not path.exists():
        return 0
    content = path.read_bytes()
    kept: list[bytes] = []
    removed = 0
    for raw in content.split(b"\n")[:-1]:
        line = _parse(raw)
        if line is None:
            continue
        if line.get("phase") == phase and isinstance(line.get("step"), int | float) and line["step"] > step:
            removed += 1
        else:
            kept.append(raw + b"\n")
    rest = b"".join(kept)
    if rest != content:
        write_atomic(path, rest)
    return removed


def series(lines: Iterable[dict[str, Any]], phase: str, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure of one phase, in the journal's order; a figure that was not finite is NaN."""
    steps: list[int] = []
    values: list[float] = []
    for line in lines:
        if line.get("phase") == phase and key in line and "step" in line:
            value = line[key]
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
                steps.append(int(line["step"]))
                values.append(math.nan if value is None else float(value))
    return steps, values
