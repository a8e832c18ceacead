"""What a person sees while a phase trains: a bar on a terminal, plain lines without one; and a table at the end."""

import collections
import contextlib
import math
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from distill_system.files import read_json
from distill_system.tracking.figures import duration, megabytes, quality, quantity, short_number
from distill_system.tracking.quantization_parts import KEY, packed_bytes

PLAIN_EVERY_S = 10.0  # without a terminal: a line after this time,
PLAIN_SHARE = 0.05  # or after this share of the steps,
PLAIN_AT_LEAST_S = 2.0  # but never sooner than this after the one before


class Progress:
    """Progress of one phase; only rank 0 makes an enabled one.

    Args:
        phase: its name.
        total_steps: steps of the whole phase; None where nobody knows them beforehand.
        enabled: False shows nothing.
        stream: where it is shown; None: stderr, so that stdout holds results only.
    """

    def __init__(
        self, phase: str, total_steps: int | None, enabled: bool = True, stream: IO[str] | None = None
    ) -> None:
        self.phase, self.total, self.enabled = phase, total_steps, enabled
        self._stream = stream or sys.stderr
        self._figures: dict[str, float] = {}
        self._marks: collections.deque[tuple[float, int]] = collections.deque(
            maxlen=50
        )  # (time, step), for the time left
        self._step, self._said_step, self._said_at = 0, -1, -math.inf
        self._console = Console(file=self._stream, highlight=False)
        self._bar: RichProgress | None = None
        if enabled and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=max(6, min(30, self._console.width // 5))),
                TextColumn("{task.fields[text]}", markup=False),
                console=self._console,
                refresh_per_second=4,
                transient=True,
            )
            self._task = self._bar.add_task(
                phase[: max(8, self._console.width // 4)], total=total_steps, text="starting"
            )
            self._bar.start()

    def update(self, step: int, figures: dict[str, Any] | None = None) -> None:
        """Says that `step` steps are done; `figures` are a journal line's (`loss`, `samples_per_s`, `tokens_per_s`, `valid/...`)."""
        if not self.enabled:
            return
        self._step = step
        self._figures |= {
            k: float(v) for k, v in (figures or {}).items() if isinstance(v, int | float) and not isinstance(v, bool)
        }
        now = time.monotonic()
        self._marks.append((now, step))
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, text=self.text(self._console.width - 2 * (self._console.width // 5))
            )
        elif self._due(now):
            self._say(now)

    def note(self, text: str) -> None:
        """A line of its own that stays (a validation's result, a skipped step, a checkpoint that was not usable)."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.console.print(f"{self.phase}: {text}", markup=False, soft_wrap=True)
        else:
            self._write(f"{self.phase}: {text}")

    def close(self) -> None:
        """Leaves the last state as a plain line."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._step != self._said_step and self._step > 0:
            self._say(time.monotonic())
        self.enabled = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def text(self, width: int) -> str:
        """The figures that fit into `width` characters, the most telling first."""
        of = f"/{self.total}" if self.total else ""
        parts = [f"{self._step}{of}"]
        if (left := self.seconds_left()) is not None:
            parts.append(f"{duration(left)} left")
        parts += [f"loss {words}"] if (words := loss_words(self._figures)) else []
        names = {"samples_per_s": "{} samples/s", "tokens_per_s": "{} tokens/s"}
        parts += [
            words.format(short_number(self._figures[key]))
            for key, words in names.items()
            if key in self._figures and (key != "tokens_per_s" or self._figures[key])  # pictures have none
        ]
        while len(parts) > 1 and len("  ".join(parts)) > width:
            parts.pop()
        return "  ".join(parts)

    def seconds_left(self) -> float | None:
        """From the speed of the latest updates, so that a resumed phase counts its own steps only."""
        if not self.total or self._step >= self.total or len(self._marks) < 2:
            return None
        (since, first), (now, last) = self._marks[0], self._marks[-1]
        return (self.total - last) * (now - since) / (last - first) if last > first and now > since else None

    def _due(self, now: float) -> bool:
        passed = now - self._said_at
        share = bool(self.total) and self._step - self._said_step >= PLAIN_SHARE * (self.total or 1)
        return passed >= PLAIN_EVERY_S or (share and passed >= PLAIN_AT_LEAST_S)

    def _say(self, now: float) -> None:
        self._said_at, self._said_step = now, self._step
        self._write(f"{self.phase}: step {self.text(200)}")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe is no reason to end a training
            self.enabled = False


MOST_NAMED = 3  # members whose losses fit into a line


def loss_words(figures: dict[str, float]) -> str:
    """The loss; where a phase trains several members, that of each (the sum would say nothing), or their mean if they are many."""
    roles = [key.partition("/")[2] for key in figures if key.startswith("grad_norm/")]
    own = {role: figures[f"loss/{role}"] for role in roles if f"loss/{role}" in figures}
    if not own:
        return short_number(figures["loss"]) if "loss" in figures else ""
    if len(own) <= MOST_NAMED:
        return ", ".join(f"{role} {short_number(value)}" for role, value in own.items())
    return f"{short_number(sum(own.values()) / len(own))} (mean of {len(own)})"


def phase_rows(manifest: dict[str, Any]) -> list[dict[str, str]]:
    """A row of words for each phase of a manifest, and an indented one for each of its members."""
    rows = []
    for name, phase in manifest.get("phases", {}).items():
        rows.append(_row(name, str(phase.get("kind", "")), phase))
        best = phase.get("best_member")
        for member, entry in (phase.get("members") or {}).items():
            rows.append(_row(f"  {member}", "the best" if member == best else "", entry))
        if phase.get("ensemble"):
            rows.append(_row("  all together", "mean", {"metrics": phase["ensemble"]}))
    return rows


def _row(name: str, kind: str, entry: dict[str, Any]) -> dict[str, str]:
    found = quality(entry.get("metrics") or {})
    return {
        "phase": name,
        "kind": kind,
        "state": str(entry.get("state", "")),
        "quality": f"{found.label} {found.shown}" if found else "-",
        "size": megabytes(entry.get("size_bytes")),
        "packed": megabytes(packed_bytes(entry.get(KEY))),
        "parameters": quantity(entry.get("parameters")),
        "latency p50": latency_words(entry),
        "time": duration(entry.get("seconds")),
    }


def latency_words(phase: dict[str, Any]) -> str:
    value = ((phase.get("latency") or {}).get("batch_1") or {}).get("p50_ms")
    return f"{short_number(value)} ms" if isinstance(value, int | float) else "-"


def summary_table(
    manifest: dict[str, Any],
    report: str | Path | None = None,
    latency: dict[str, dict[str, Any]] | None = None,
    stream: IO[str] | None = None,
) -> None:
    """Prints what came out of each phase, its warnings, and where the report lies.

    Args:
        manifest: as in manifest.json.
        report: path of report/index.html; its run folder's evaluation.json files are asked where `latency` has no word on a phase.
        latency: of each phase as in its evaluation.json, if the caller has it.
        stream: None: stdout.
    """
    out = stream or sys.stdout
    phases = {name: dict(phase) for name, phase in manifest["phases"].items()}
    for name, phase in phases.items():
        if latency and name in latency:
            phase["latency"] = latency[name]
        elif report is not None:
            phase["latency"] = _latency_in(Path(report).parent.parent / name) or phase.get("latency")
        members = phase.get("members") or {}
        if report is not None:
            folder = Path(report).parent.parent / name
            phase["members"] = {m: {"latency": _latency_in(folder / m)} | entry for m, entry in members.items()}
    print_rows(phase_rows({"phases": phases}), title=str(manifest.get("run", "")), stream=out)
    for name, phase in phases.items():
        for warning in phase.get("warnings") or []:
            print(f"warning ({name}): {warning}", file=out)
    if report is not None:
        print(f"report: {report}", file=out)


def _latency_in(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return read_json(folder / "evaluation.json").get("latency") or {}
    return {}


def print_rows(rows: list[dict[str, str]], title: str = "", stream: IO[str] | None = None) -> None:
    """Prints rows of words as a table; where it doesn't fit (a narrow terminal), as one block a row; without a terminal as wide as it is."""
    out = stream or sys.stdout
    columns = [name for name in (rows[0] if rows else {}) if any(row[name] not in ("", "-") for row in rows)]
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in columns]
    width = None if _is_terminal(out) else sum(widths) + 3 * len(widths) + 4
    console = Console(file=out, highlight=False, width=width)
    if rows and console.width < sum(widths) + 3 * len(widths) + 1:
        if title:
            print(title, file=out)
        for row in rows:
            print(row[columns[0]], file=out)
            for name in columns[1:]:
                print(f"  {name}: {row[name]}", file=out)
        return
    table = Table(title=title or None, title_justify="left")
    numeric = {"size", "packed", "parameters", "latency p50", "time"}
    for name in columns:
        table.add_column(name, justify="right" if name in numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*[_literal(row[name]) for name in columns])
    console.print(table)


def _literal(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # a name with [brackets] is no markup


def _is_terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


def say(text: str) -> None:
    """One sentence for the person who watches."""
    print(text, flush=True)
