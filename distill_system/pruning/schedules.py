"""When a phase prunes, and how much is pruned then: pure functions of its settings, so that a resumed run can't drift."""

from dataclasses import dataclass, replace

from distill_system.settings import Pruning


@dataclass(frozen=True)
class Round:
    number: int  # from 1
    step: int  # finished steps at which it takes place
    sparsity: float  # share of the units that are pruned from then on


def resolved(settings: Pruning, kind: str) -> Pruning:
    """With a shape that fits what is pruned: layers go one after another, of smaller units most go early."""
    return replace(settings, shape="linear" if kind == "layers" else "cubic") if settings.shape == "auto" else settings


def sparsity_at(share: float, settings: Pruning) -> float:
    """Sparsity when `share` in (0, 1] of the rounds are done.

    linear: s = s_i + (s_f - s_i) x. cubic: s = s_f + (s_i - s_f) (1 - x)^3 (Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878, equation 1): most goes
    early, while there is much to choose from. exponential: 1 - s = (1 - s_i) ((1 - s_f) / (1 - s_i))^x: each round takes the same share of what is
    left, as iterative magnitude pruning does (Frankle and Carbin 2019, https://arxiv.org/abs/1803.03635).

    >>> half = Pruning(shape="cubic", final_sparsity=0.8)
    >>> round(sparsity_at(0.5, half), 6), sparsity_at(1.0, half)
    (0.7, 0.8)
    """
    first, last = settings.initial_sparsity, settings.final_sparsity
    if settings.shape == "one_shot" or share >= 1:
        return last
    if settings.shape == "linear":
        return first + (last - first) * share
    if settings.shape == "cubic":
        return last + (first - last) * (1 - share) ** 3
    return 1 - (1 - first) * ((1 - last) / (1 - first)) ** share


def count_of(settings: Pruning, total_steps: int) -> int:
    """How many rounds there are."""
    if settings.shape == "one_shot":
        return 1
    if settings.every is None:
        return settings.rounds
    return (last_step(settings, total_steps) - first_step(settings, total_steps)) // settings.every + 1


def first_step(settings: Pruning, total_steps: int) -> int:
    return round(settings.begin * total_steps)


def last_step(settings: Pruning, total_steps: int) -> int:
    return max(first_step(settings, total_steps), round(settings.end * total_steps))


def rounds_of(settings: Pruning, total_steps: int) -> list[Round]:
    """All rounds of a phase with `total_steps` optimizer steps.

    >>> [(r.step, round(r.sparsity, 3)) for r in rounds_of(Pruning(shape="linear", final_sparsity=0.6, begin=0.1, end=0.5, rounds=3), 100)]
    [(10, 0.2), (30, 0.4), (50, 0.6)]
    """
    first, last = first_step(settings, total_steps), last_step(settings, total_steps)
    count = count_of(settings, total_steps)
    found = []
    for number in range(1, count + 1):
        if settings.every is not None:
            step = first + (number - 1) * settings.every
        else:
            step = first if count == 1 else first + round((last - first) * (number - 1) / (count - 1))
        found.append(Round(number, step, sparsity_at(number / count, settings)))
    return found


def problems_of(settings: Pruning, total_steps: int | None) -> list[tuple[str, str]]:
    """(setting, what is wrong with it); what hangs on the number of steps only where it is known."""
    found = []
    if settings.final_sparsity < settings.initial_sparsity:
        text = f"is {settings.final_sparsity:g}, below initial_sparsity {settings.initial_sparsity:g}: sparsity can only grow"
        found.append(("final_sparsity", text))
    if settings.final_sparsity == 0:
        found.append(("final_sparsity", "is 0: nothing would be pruned; set it above 0"))
    if settings.shape != "one_shot" and settings.end < settings.begin:
        found.append(("end", f"is {settings.end:g}, before begin {settings.begin:g}; nearest: end={settings.begin:g}"))
    if total_steps is None or found:
        return found
    rounds = rounds_of(settings, total_steps)
    steps = last_step(settings, total_steps) - first_step(settings, total_steps) + 1
    if len(rounds) > 1 and len(rounds) > steps:
        text = f"is {settings.rounds}, but between begin and end lie only {steps} of the phase's {total_steps} steps"
        found.append(("rounds", f"{text}; nearest: rounds={steps}"))
    return found
