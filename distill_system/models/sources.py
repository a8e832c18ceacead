"""What a setting that names a model or tokenizer points at: a folder, a file, or a name on the hub; told without torch and without a request."""

import difflib
import importlib.util
import re
from pathlib import Path

from distill_system.errors import Problem
from distill_system.models.gguf_header import as_config, read_metadata
from distill_system.models.tokenizers import BYTES
from distill_system.models.weights import Unsound, config_faults, has_tokenizer

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def tokenizer_problems(name: str | None, key: str) -> list[Problem]:
    """What is wrong with the setting `tokenizer` (a folder, a hub name, or the word `bytes`)."""
    if name is None or name == BYTES:
        return []
    path = Path(name).expanduser()
    if path.is_dir():
        return (
            [] if has_tokenizer(path) else [Problem(f"{key}.tokenizer", f"is {name!r}, a folder without a tokenizer")]
        )
    if path.exists() or not HUB_NAME.fullmatch(name):
        return [
            Problem(
                f"{key}.tokenizer",
                f"is {name!r}: there is no such folder{nearby(path)}, and a hub name looks like owner/model",
            )
        ]
    return []


def needs_gguf(key: str, setting: str) -> list[Problem]:
    if importlib.util.find_spec("gguf") is not None:
        return []
    return [
        Problem(
            f"{key}.{setting}",
            "is a GGUF file, which needs the package gguf; install distill_system with the extra: pip install '.[gguf]'",
        )
    ]


def gguf_problems(folder: Path, file: str, key: str, setting: str) -> list[Problem]:
    problems = needs_gguf(key, setting)
    if not (folder / file).is_file():
        there = sorted(path.name for path in folder.glob("*.gguf"))
        return [
            *problems,
            Problem(
                f"{key}.{setting}",
                f"is {file!r}, which {str(folder)!r} doesn't hold (GGUF files there: {', '.join(there) or 'none'})",
            ),
        ]
    try:
        config = as_config(read_metadata(folder / file))
    except Unsound as error:
        return [*problems, Problem(f"{key}.{setting}", f"is {file!r}, which {error}")]
    return problems + [
        Problem(f"{key}.{setting}", f"is {file!r}, whose metadata {text}") for text in config_faults(config)
    ]


def nearby(path: Path) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f" (did you mean {str(path.parent / close[0])!r}?)" if close else ""


def hub_cache(name: str, revision: str | None) -> Path | None:
    """The hub's snapshot of `name` in this machine's cache, looked up without a request."""
    if not HUB_NAME.fullmatch(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None
