"""How members of a cohort that live on ranks of their own hear each other: logits of the shared batch, sent between the ranks that see the same rows."""

from collections.abc import Callable, Mapping

from distill_system import distributed
from distill_system.signals import Signals


def exchange_logits(roles: list[str]) -> Callable[[Mapping[str, Signals]], dict[str, Signals]]:
    """A function from this rank's own signals to those of all members, without a gradient.

    Args:
        roles: of all members, in the order of the parts that they live in.
    """

    def exchange(own: Mapping[str, Signals]) -> dict[str, Signals]:
        (mine,) = own.values()
        return {
            role: Signals(logits) for role, logits in zip(roles, distributed.gather_peers(mine.logits), strict=True)
        }

    return exchange
