"""Which groups a prune phase works on: patterns of parameter names that take in and leave out, each of which must match something."""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from distill_system.errors import Problem, Refusal
from distill_system.pruning.base import Group


def chosen(groups: Sequence[Group], include: Sequence[str], exclude: Sequence[str], key: str) -> list[Group]:
    """The groups of which every matrix matches some pattern of `include`, and none matches one of `exclude`.

    Args:
        groups: all that this kind of pruning could work on; norms, biases, embeddings and the task's head aren't among them.
        include: patterns such as `*layer.0.*`; empty: all.
        exclude: patterns.
        key: of the pruner in the config.

    Raises:
        Refusal: a pattern that matches nothing, or nothing is left.
    """
    names = [part.name for group in groups for part in group.slices]
    problems = [
        Problem(
            f"{key}.{setting}[{place}]",
            f"is '{pattern}', which matches none of the {len(names)} matrices{_close(pattern, names)}",
        )
        for setting, patterns in (("include", include), ("exclude", exclude))
        for place, pattern in enumerate(patterns)
        if not any(fnmatch.fnmatch(name, pattern) for name in names)
    ]
    if problems:
        raise Refusal(problems)
    found = [
        group
        for group in groups
        if all(_any(part.name, include or ["*"]) for part in group.slices)
        and not any(_any(part.name, exclude) for part in group.slices)
    ]
    if not found:
        raise Refusal([Problem(f"{key}.include", "and exclude together leave nothing to prune")])
    return found


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _close(pattern: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(pattern.strip("*"), names, n=1, cutoff=0.75)
    return f" (did you mean '{close[0]}'?)" if close else f" (such as {names[0]})" if names else ""
