"""Which groups a prune phase works on: patterns of parameter names that take in and leave out, each of which must match something."""

from collections.abc import Sequence

from distill_system.errors import Problem, Refusal
from distill_system.patterns import idle_patterns, matches
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
    if problems := idle_patterns(names, include, exclude, key):
        raise Refusal(problems)
    found = [
        group
        for group in groups
        if all(matches(part.name, include or ["*"]) for part in group.slices)
        and not any(matches(part.name, exclude) for part in group.slices)
    ]
    if not found:
        raise Refusal([Problem(f"{key}.include", "and exclude together leave nothing to prune")])
    return found
