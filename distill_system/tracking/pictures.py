"""Pictures as inline SVG that follows the page's light or dark colours, and as PNG files.

A figure is drawn once. Its colours are names in disguise: the SVG's hex values are replaced by the page's CSS variables afterwards, so that
text, axes and curves turn with `prefers-color-scheme`; the PNG keeps the light values. matplotlib's pyplot is not used: no global state.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from html import escape
from typing import Any

INK, MUTED, FAINT, PAPER, ALARM = "#1f2329", "#5c6570", "#d9dde2", "#fefefd", "#b3261e"
# Told apart with every common colour blindness, and readable as text on white.
SERIES = ("#0067a8", "#b84a00", "#00785c", "#9b3a76", "#6a5acd", "#7a6a00")
VARIABLES = {INK: "--ink", MUTED: "--muted", FAINT: "--faint", PAPER: "--paper", ALARM: "--alarm"}
VARIABLES |= {colour: f"--s{number}" for number, colour in enumerate(SERIES, start=1)}
WIDTH, HEIGHT = 4.5, 2.9  # inches; about 390 CSS pixels wide


@contextlib.contextmanager
def style() -> Iterator[None]:
    import matplotlib

    settings: dict[str, Any] = {
        "font.family": "DejaVu Sans", "font.size": 9.8, "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "distill",
        "axes.edgecolor": MUTED, "axes.labelcolor": MUTED, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
        "xtick.color": MUTED, "ytick.color": MUTED, "text.color": INK, "axes.grid": False, "grid.color": FAINT, "grid.linewidth": 0.8,
        "figure.facecolor": PAPER, "axes.facecolor": "none", "savefig.facecolor": PAPER, "lines.solid_capstyle": "round",
        "axes.unicode_minus": False, "axes.formatter.useoffset": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A label in letters that the PNG's font lacks (the SVG uses the page's), or too long for its figure: nothing a user could do.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
        yield


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Any, name: str, title: str) -> str:
    """The figure as an `<svg>` for the inside of a page: colours and font from the page, ids that don't clash, nothing from outside."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    head = f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(title, quote=True)}">'
    text = head + text[text.index(">") + 1 :]
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (?:(?:italic|oblique|normal) )?(?:(\d+) )?([\d.]+px) [^;\"]*", _font, text)
    for colour, variable in VARIABLES.items():
        text = re.sub(colour, f"var({variable})", text, flags=re.IGNORECASE)
    return text.strip()


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}"
