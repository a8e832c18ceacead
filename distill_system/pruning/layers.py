"""Whole layers: which go next, by a rule or by how little the output changes without them."""

from collections.abc import Callable, Sequence
from typing import Literal

from distill_system.schema import Count


class Layers:
    """Removes transformer layers, a few in each round, so that the network shrinks while it trains.

    Args:
        by: `rule`, or `effect`: the layer without which the output changes least goes first, measured anew after each removal.
        rule: of what remains `every` n-th goes, or always the first, the last, or the middle one.
        every: n of that rule; 2: every second one.
        measure: of the effect: `kl`: KL divergence from the whole model's output to the one without the layer (nats a position); `loss`: rise of
            the loss on labels; `similarity`: 1 - cosine between what goes into a layer and what comes out of it (block influence, Men et al. 2024,
            https://arxiv.org/abs/2403.03853), which needs one pass for all layers.
    """

    kind = "layers"
    cuts = True

    def __init__(
        self,
        by: Literal["rule", "effect"] = "effect",
        rule: Literal["every", "first", "last", "middle"] = "every",
        every: Count = 2,
        measure: Literal["kl", "loss", "similarity"] = "kl",
    ) -> None:
        self.by, self.rule, self.every, self.measure = by, rule, every, measure


def by_rule(rule: str, remaining: Sequence[int], original: int, every: int) -> int:
    """The layer (its number in the original model) that a rule removes next.

    `every`: layers n-1, 2n-1, ... of the original first, from the front; when none of them is left, of what remains.

    >>> [by_rule("every", [0, 1, 2, 3, 4, 5], 6, 3), by_rule("every", [0, 1, 3, 4, 5], 6, 3), by_rule("middle", [0, 1, 2, 3], 4, 2)]
    [2, 5, 2]
    """
    assert remaining, "no layer left"
    if rule == "first":
        return remaining[0]
    if rule == "last":
        return remaining[-1]
    if rule == "middle":
        return remaining[len(remaining) // 2]
    due = [layer for layer in remaining if layer % every == every - 1 and layer < original]
    return due[0] if due else remaining[min(every, len(remaining)) - 1]


def by_effect(candidates: Sequence[int], effect: Callable[[int], float]) -> tuple[int, dict[int, float]]:
    """The layer whose removal has the smallest effect (of equal ones the last), and all effects."""
    effects = {layer: effect(layer) for layer in candidates}
    least = min(effects.values())
    return max(layer for layer, value in effects.items() if value == least), effects


def count_removed(sparsity: float, layers: int) -> int:
    """How many of `layers` are gone at a sparsity: the nearest whole number, halves rounded down, at least one stays.

    >>> count_removed(0.5, 6), count_removed(0.34, 3), count_removed(0.9, 2)
    (3, 1, 1)
    """
    return min(layers - 1, int(sparsity * layers + 0.5 - 1e-9))
