"""How much of each layer should go, from what each was seen to bear alone."""

from collections.abc import Mapping, Sequence

GRAIN = 0.01  # share of a group that is given away at once


def rise_at(share: float, levels: Sequence[float], rises: Sequence[float]) -> float:
    """Rise of the loss when `share` of a group goes: straight lines from (0, 0) through what was measured, never falling."""
    before, low = 0.0, 0.0
    for level, rise in zip(levels, rises, strict=True):
        high = max(low, rise)
        if share <= level:
            return low + (high - low) * (share - before) / (level - before)
        before, low = level, high
    return low


def allocate(
    levels: Sequence[float], rises: Mapping[str, Sequence[float]], sizes: Mapping[str, int], target: float
) -> dict[str, float]:
    """Shares of the groups that together make `target` of all their weights, with the least sum of rises, as if these added up.

    Greedy, a hundredth of a group after another where the next costs least for each weight; exact where rises are convex. No group goes beyond the
    highest level that was measured.

    Args:
        levels: ascending shares at which each group was pruned alone.
        rises: of the loss at these levels, by group.
        sizes: weights of each group.
        target: share of all weights that is to go, at most the highest level.

    >>> allocate([0.5, 1.0], {"soft": [0.0, 0.1], "hard": [1.0, 4.0]}, {"soft": 10, "hard": 10}, 0.5)
    {'soft': 1.0, 'hard': 0.0}
    """
    shares = dict.fromkeys(rises, 0.0)
    steps = dict.fromkeys(rises, 0)
    wanted = target * sum(sizes.values())
    given = 0.0
    most = round(levels[-1] / GRAIN)
    while given < wanted - 1e-9:
        prices = {
            name: (
                rise_at((steps[name] + 1) * GRAIN, levels, rises[name])
                - rise_at(steps[name] * GRAIN, levels, rises[name])
            )
            / sizes[name]
            for name in rises
            if steps[name] < most
        }
        if not prices:
            break
        cheapest = min(prices, key=prices.__getitem__)
        steps[cheapest] += 1
        given += GRAIN * sizes[cheapest]
        too_much = max(0.0, given - wanted) / sizes[cheapest]
        shares[cheapest] = round(steps[cheapest] * GRAIN - too_much, 6)
    return shares
