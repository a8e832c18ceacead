"""Composes a run's config with Hydra and hands it on as plain dictionaries; the only module that knows Hydra's ways.

Every value is let through (`++`), known to Hydra or not, and judged by the schema afterwards, which knows the right key; so all problems of a command
line come out together, each with the nearest fix.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_system.config import leftovers
from distill_system.errors import Problem, Refusal, nearest

MISSING = "???"


@dataclass
class Composition:
    """What came out: the config as plain values, the experiment's name, the overrides that Hydra refused, and notes on what was left out."""

    config: dict[str, Any]
    experiment: str | None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def conf_folder() -> Path:
    """`conf` inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def import_beside(config_dir: str | None) -> None:
    """Lets this process, and the ranks it starts, import a user's own modules that lie beside the user's config."""
    if config_dir is None:
        return
    folder = str(Path(config_dir).expanduser().resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
        above = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{above}" if above else folder


def choices(group: str) -> list[str]:
    """Names of the shipped yaml files of a group."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def compose(overrides: Sequence[str], config_dir: str | None = None) -> Composition:
    """Composes `config.yaml` with overrides in Hydra's grammar, and with a user's own config folder beside the shipped one.

    Raises:
        Refusal: nothing can be composed at all.
    """
    extra, folders = [], [conf_folder()]
    if config_dir is not None:
        folder = Path(config_dir).expanduser().resolve()
        if not folder.is_dir():
            raise Refusal([Problem("--config-dir", f"is '{config_dir}', which is no folder")])
        extra = [f"hydra.searchpath=['file://{folder}']"]
        folders.insert(0, folder)
    words = [text if text[:1] in "+~" or _is_group(text, folders) else f"++{text}" for text in overrides]
    accepted = words
    problems: list[Problem] = []
    try:
        config = _compose([*extra, *words])
    except refusals():  # found out one override at a time
        config, accepted, problems = _one_by_one(words, extra)
    composition = _finished(config, problems)
    swaps = [text for text in accepted if text[:1] not in "+~" and _is_group(text, folders)]
    swaps = [text for text in swaps if leftovers.may_have_any(composition.config, text)]
    composition.notes = _without_leftovers(composition.config, swaps, accepted, extra, folders) if swaps else []
    return composition


def refusals() -> tuple[type[Exception], ...]:
    """What Hydra raises at a wrong override."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return (HydraException, OmegaConfBaseException, ValueError)


def _is_group(text: str, folders: Sequence[Path]) -> bool:
    key = text.lstrip("+~").partition("=")[0]
    return "@" in key or "/" in key or any((folder / key).is_dir() for folder in folders if key)


def _compose(overrides: Sequence[str]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)


def _one_by_one(words: Sequence[str], extra: Sequence[str]) -> tuple[Any, list[str], list[Problem]]:
    """The config of all overrides that can be taken, these overrides, and a problem for each of the others."""
    accepted: list[str] = []
    refused = {text: Exception() for text in sorted(words, key=lambda text: not text.startswith("experiment="))}
    config = _compose(extra)
    progress = True
    while progress and refused:  # an override may need another that stands behind it
        progress = False
        for text in list(refused):
            try:
                config = _compose([*extra, *accepted, text])
            except refusals() as error:
                refused[text] = error
                continue
            accepted.append(text)
            del refused[text]
            progress = True
    if any(
        text.startswith("experiment=") for text in refused
    ):  # what swaps its parts, or removes them, follows from that
        refused = {text: error for text, error in refused.items() if "@" not in text and text[:1] != "~"}
    return config, accepted, [_explain(text, error, config) for text, error in refused.items()]


def _without_leftovers(
    config: dict[str, Any], swaps: list[str], accepted: list[str], extra: list[str], folders: list[Path]
) -> list[str]:
    refused: tuple[type[Exception], ...] = (*refusals(), Refusal)
    try:
        before = _finished(_compose([*extra, *(text for text in accepted if text not in swaps)]), []).config
    except refused:
        return []
    return leftovers.drop_leftovers(config, before, swaps, accepted, leftovers.own_keys_in(folders))


def _finished(config: Any, problems: list[Problem]) -> Composition:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    experiment = config.hydra.runtime.choices.get("experiment")
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        problem = Problem(error.full_key or "", f"can't be resolved: {str(error).splitlines()[0]}")
        raise Refusal([*problems, problem]) from error
    assert isinstance(plain, dict)
    return Composition(plain, None if experiment in (None, "null") else experiment, problems)


def _explain(override: str, error: Exception, config: Any) -> Problem:
    """Hydra's refusal of one override as one sentence."""
    key, equals, value = override.lstrip("+~").partition("=")
    text = " ".join(str(error.__cause__ or error).split())
    groups = [name for name in config.hydra.runtime.choices if not name.startswith("hydra/")]
    options = re.search(r"Available options in '([^']*)':\n((?:\s+\S+\n?)+)", str(error))
    if not key:
        return Problem(override.lstrip("+"), "can't be read; write KEY=VALUE")
    if not equals and override[:1] != "~":
        return Problem(key, "has no value; write KEY=VALUE")
    if options:
        fix = nearest(value, options[2].split())
        return Problem(key, f"is '{value}', which is no choice of group {options[1]}{fix}")
    if "Config group override must be" in text:
        return Problem(key, f"is {value}, must be the name of a choice{nearest(value, choices(key))}")
    if "No match in the defaults list" in text or "Could not override" in text:
        return Problem(key, f"names no group that can be swapped here{nearest(key, groups)}")
    if "Could not delete" in text:
        known = leftovers.at(_finished(config.copy(), []).config, key.rpartition(".")[0]) if "." in key else groups
        return Problem(key, f"isn't there, so it can't be removed{nearest(key.rpartition('.')[2], known or ())}")
    if "Ambiguous value" in text:
        return Problem(key, f"is {value}: several values are a sweep (distill run -m), a list is [{value}]")
    if "See https" in text:
        text = f"is {value}, which can't be read ({text.partition(' See https')[0]}); put it in quotes: {key}='\"...\"'"
    return Problem(key, text)


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The members of a sweep: `a=1,2 b=x,y` gives four lists of overrides, the last key fastest.

    Raises:
        Refusal: an override that can't be parsed.
    """
    import itertools

    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    columns: list[list[str]] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise Refusal([Problem(text, f"can't be read: {' '.join(str(error).split())}")]) from error
        if override.is_sweep_override():
            prefix = text.partition("=")[0]
            columns.append([f"{prefix}={value}" for value in override.sweep_string_iterator()])
        else:
            columns.append([text])
    return [list(member) for member in itertools.product(*columns)]
