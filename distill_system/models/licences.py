"""What a base model says of its own licence: its model card, a licence file beside its weights, the package that it came in. Nothing is fetched, nothing is guessed."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill_system.models.sources import hub_cache
from distill_system.packages import package_folder

ABOVE = 3  # folders above a model's in which its package's metadata may lie


def licence_of(recipe: Mapping[str, Any]) -> str | None:
    """What is known of the licence of the model that a recipe's settings name; None where it says nothing, or isn't on this machine."""
    folder = _folder_of(recipe)
    said = [*_said(folder)] if folder is not None and folder.is_dir() else []
    name = str(recipe.get("package") or recipe.get("name"))
    shown = Path(name).name if Path(name).exists() else name  # not where it lies on this machine
    return f"{shown}: {'; '.join(said)}" if said else None


def _folder_of(recipe: Mapping[str, Any]) -> Path | None:
    if recipe.get("package"):
        parts = [recipe.get(key) for key in ("package", "version", "sha256", "folder")]
        if not all(isinstance(part, str) for part in parts):
            return None
        package, version, sha256, inside = map(str, parts)
        return package_folder(package, version, sha256) / inside
    name = recipe.get("name")
    if not isinstance(name, str):
        return None
    path = Path(name).expanduser()
    return path.parent if path.is_file() else path if path.is_dir() else hub_cache(name, recipe.get("revision"))


def _said(folder: Path) -> Iterator[str]:
    """What the card, a licence file and the package say, each once."""
    if word := _in_card(folder / "README.md"):
        yield f"its model card says {word}"
    for path in sorted(folder.iterdir()):
        if path.is_file() and re.fullmatch(r"(licen[sc]e|copying)(\..*)?", path.name, re.IGNORECASE):
            first = next((line.strip(" #") for line in _text(path).splitlines() if line.strip(" #")), "")
            yield f"its {path.name} begins “{first[:80]}”" if first else f"it holds a {path.name}"
    for parent in [folder, *folder.parents[:ABOVE]]:
        for metadata in sorted(parent.glob("*.dist-info/METADATA")):
            if found := re.search(r"^License(?:-Expression)?: (.+)$", _text(metadata), re.MULTILINE):
                yield f"its package says {found[1].strip()[:80]}"


def _in_card(path: Path) -> str | None:
    """`license` of a model card's front matter."""
    front = re.match(r"---\s*\n(.*?)\n---", _text(path), re.DOTALL) if path.is_file() else None
    found = re.search(r"^license:\s*(.+?)\s*$", front[1], re.MULTILINE) if front else None
    return found[1].strip("\"'")[:80] if found else None


def _text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(20_000)
    except OSError:
        return ""
