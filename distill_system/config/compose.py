"""Composes a run's config with Hydra and hands it on as plain dictionaries; the only module that knows Hydra's ways.

A key that Hydra doesn't know is let through (`++`) and judged by the schema afterwards, which knows the right one; so all problems of a command line
come out together, each with the nearest fix.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_system.errors import Problem, Refusal, nearest

MISSING = "???"


@dataclass
class Composition:
    """What came out: the config as plain values, the experiment's name, and the overrides that Hydra refused."""

    config: dict[str, Any]
    experiment: str | None
    problems: list[Problem] = field(default_factory=list)


def conf_folder() -> Path:
    """`conf` inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def choices(group: str) -> list[str]:
    """Names of the shipped yaml files of a group."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def compose(overrides: Sequence[str], config_dir: str | None = None) -> Composition:
    """Composes `config.yaml` with overrides in Hydra's grammar, and with a user's own config folder beside the shipped one.

    Raises:
        Refusal: nothing can be composed at all.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    extra = []
    if config_dir is not None:
        folder = Path(config_dir).expanduser().resolve()
        if not folder.is_dir():
            raise Refusal([Problem("--config-dir", f"is '{config_dir}', which is no folder")])
        extra = [f"hydra.searchpath=['file://{folder}']"]
    refusals = (HydraException, OmegaConfBaseException)
    try:
        return _finished(_compose([*extra, *overrides]), [])
    except refusals:
        pass  # found out below, one override at a time
    accepted, problems = list(extra), []
    config = _compose(accepted)
    for override in sorted(overrides, key=lambda text: not text.startswith("experiment=")):
        attempts = [override] if override[:1] in "+~" or "@" in override.split("=")[0] else [override, f"++{override}"]
        refusal: Exception | None = None
        for attempt in attempts:
            try:
                config = _compose([*accepted, attempt])
                accepted.append(attempt)
                break
            except refusals as error:
                refusal = refusal or error
        else:
            assert refusal is not None
            problems.append(_explain(override, refusal, config))
    return _finished(config, problems)


def _compose(overrides: Sequence[str]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)


def _finished(config: Any, problems: list[Problem]) -> Composition:
    from omegaconf import OmegaConf

    experiment = config.hydra.runtime.choices.get("experiment")
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except Exception as error:  # an interpolation that leads nowhere
        raise Refusal(
            [*problems, Problem("", f"the config can't be resolved: {str(error).splitlines()[0]}")]
        ) from error
    assert isinstance(plain, dict)
    return Composition(plain, None if experiment in (None, "null") else experiment, problems)


def _explain(override: str, error: Exception, config: Any) -> Problem:
    """Hydra's refusal of one override as one sentence."""
    key, _, value = override.lstrip("+~").partition("=")
    text = str(error.__cause__ or error)
    options = re.search(r"Available options in '([^']*)':\n((?:\s+\S+\n?)+)", str(error))
    if options:
        return Problem(
            key, f"is '{value}', which is no choice of group {options[1]}{nearest(value, options[2].split())}"
        )
    if "No match in the defaults list" in text or "Could not override" in text:
        known = list(config.hydra.runtime.choices)
        return Problem(
            key,
            f"names no group that can be swapped here{nearest(key, [k for k in known if not k.startswith('hydra/')])}",
        )
    return Problem(key, " ".join(text.split()))


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
