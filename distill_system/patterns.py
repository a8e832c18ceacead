"""Patterns of parameter names (`*layer.0.*`) that take matrices in and leave them out; one that matches nothing is a mistake, and is told."""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from distill_system.errors import Problem


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether some pattern matches."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def idle_patterns(names: Sequence[str], include: Sequence[str], exclude: Sequence[str], key: str) -> list[Problem]:
    """A problem for each pattern that matches no name.

    Args:
        names: of all matrices that could be chosen.
        include: patterns.
        exclude: patterns.
        key: of the node in the config that has both.
    """
    return [
        Problem(
            f"{key}.{setting}[{place}]",
            f"is '{pattern}', which matches none of the {len(names)} matrices{_close(pattern, names)}",
        )
        for setting, patterns in (("include", include), ("exclude", exclude))
        for place, pattern in enumerate(patterns)
        if not any(fnmatch.fnmatch(name, pattern) for name in names)
    ]


def _close(pattern: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(pattern.strip("*"), names, n=1, cutoff=0.75)
    return f" (did you mean '{close[0]}'?)" if close else f" (such as {names[0]})" if names else ""
