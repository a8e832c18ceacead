"""Which units are pruned: exactly the k lowest scores of a model whose parts lie on many ranks, with nothing gathered; and choices among few.

`select` is a radix selection. Floats are read as integers of the same order, the first pass over the scores counts their upper 16 bits, the second
the lower 16 bits of those that share the k-th's upper ones: histograms, which ranks sum, whatever they hold. Equal scores are pruned in the order of
keys and elements, which takes the same two passes over their places, only where a tie must be broken. So the outcome is that of a stable sort of
everything, to the bit, however the elements are dealt out.

Shapes: n elements of a chunk, O outputs, I inputs of a matrix (as stored), U units of a group.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_system import distributed

CHUNK = 1 << 17  # elements that are looked at together: what is made of them stays in the cache of a core
DIGIT = 16  # bits that a pass tells apart
BINS = 1 << DIGIT
INFINITY = 0x7F800000  # the bits of +inf; what lies beyond is no number
LOWEST = -(1 << 31)  # below every number's place in the order

Stream = Callable[[], Iterable[tuple[str, int, Tensor]]]
Count = Callable[[str, int, Tensor], Tensor]  # (key, offset, `_ordered` scores) of a chunk -> how many have each digit


@dataclass(frozen=True)
class Selection:
    """A threshold, and the last of the elements equal to it that are pruned."""

    threshold: int  # in the order of `_ordered`
    last: int  # place among all elements of the last one at the threshold that is pruned
    starts: Mapping[str, int]  # place of each key's first element

    def keep(self, key: str, offset: int, scores_n: Tensor) -> Tensor:
        """Which of these elements stay, `[n]` bool; their scores must be those that were selected from.

        Args:
            key: whose elements they are.
            offset: of the first of them.
            scores_n: float32.
        """
        keep_n = torch.empty(scores_n.shape, dtype=torch.bool, device=scores_n.device)
        for start in range(0, scores_n.numel(), CHUNK):
            ordered_n = _ordered(scores_n[start : start + CHUNK])
            chunk_n = keep_n[start : start + CHUNK]
            torch.gt(ordered_n, self.threshold, out=chunk_n)
            spared = self.last + 1 - (self.starts[key] + offset + start)  # those at the threshold stay from here on
            if spared < ordered_n.numel():
                spared = max(spared, 0)
                chunk_n[spared:] |= ordered_n[spared:] == self.threshold
        return keep_n


def select(
    stream: Stream,
    prune: int,
    sizes: Mapping[str, int],
    *,
    reduce: Callable[[Tensor], Tensor] = distributed.sum_over_data_ranks,
    device: torch.device | str = "cpu",
) -> Selection:
    """The `prune` lowest of all scores that the ranks hold together; of equal ones the earlier key's and element's go first.

    Args:
        stream: gives (key, offset, float32 scores `[n]`) of what this rank holds, no element on two ranks; called twice, of a tie that must be broken
            two to four times more, and has to say the same each time.
        prune: how many go.
        sizes: elements of each key, all ranks' together; the same in the same order on every rank.
        reduce: sums a tensor over ranks, in place or not.
        device: on which it can.

    Raises:
        ValueError: a score is no number, on any rank: raised on all of them; or there are fewer elements than must go.
    """
    total = sum(sizes.values())
    if not 0 <= prune <= total:
        raise ValueError(f"{prune} of {total} elements can't be pruned")
    starts, place = {}, 0
    for key, size in sizes.items():
        starts[key] = place
        place += size

    def total_of(count: Count) -> Tensor:
        counts = torch.zeros(BINS, dtype=torch.int64, device=device)
        for key, offset, scores_n in _chunks(stream):
            counts += count(key, offset, _ordered(scores_n)).to(device)
        return reduce(counts).cpu()

    strange = torch.zeros(len(sizes), dtype=torch.int64, device=device)  # scores that are no numbers, by key
    order = {key: number for number, key in enumerate(sizes)}

    def of_upper(key: str, offset: int, ordered_n: Tensor) -> Tensor:
        least, most = ordered_n.aminmax()
        if int(most) > INFINITY or int(least) < -INFINITY:
            strange[order[key]] += ((ordered_n > INFINITY) | (ordered_n < -INFINITY)).sum().to(device)
        return torch.bincount((ordered_n >> DIGIT).add_(BINS // 2), minlength=BINS)

    upper_counts = total_of(of_upper)
    # Ranks learn of it together: one that stopped alone would leave the others waiting.
    wrong = [f"{number} of {key}" for key, number in zip(sizes, reduce(strange).tolist(), strict=True) if number]
    if wrong:
        raise ValueError(
            f"scores are no numbers (NaN): {', '.join(wrong)}; the weights or what was seen of them aren't finite"
        )
    assert int(upper_counts.sum()) == total, f"ranks hold {int(upper_counts.sum())} of {total} elements"
    if prune == 0:
        return Selection(LOWEST, -1, starts)
    found, below = _bin_of(upper_counts, prune)
    upper = found - BINS // 2
    left = prune - below

    def of_lower(key: str, offset: int, ordered_n: Tensor) -> Tensor:
        return torch.bincount(ordered_n[ordered_n >> DIGIT == upper] & (BINS - 1), minlength=BINS)

    lower_counts = total_of(of_lower)
    lower, below = _bin_of(lower_counts, left)
    threshold, left = (upper << DIGIT) + lower, left - below
    if left == int(lower_counts[lower]):  # all that lie at the threshold go
        return Selection(threshold, total, starts)

    last = 0  # place of the last that goes, of which each pass tells 16 bits, the highest first
    for shift in reversed(range(0, max(total - 1, 1).bit_length(), DIGIT)):

        def of_places(key: str, offset: int, ordered_n: Tensor, shift: int = shift, last: int = last) -> Tensor:
            return _places(ordered_n, threshold, starts[key] + offset, shift, last)

        digit, below = _bin_of(total_of(of_places), left)
        last, left = (last << DIGIT) + digit, left - below
    return Selection(threshold, last, starts)


def _chunks(stream: Stream) -> Iterator[tuple[str, int, Tensor]]:
    for key, offset, scores_n in stream():
        assert scores_n.dtype == torch.float32, f"scores of {key} are {scores_n.dtype}"
        for start in range(0, scores_n.numel(), CHUNK):
            yield key, offset + start, scores_n[start : start + CHUNK]


def _ordered(scores_n: Tensor) -> Tensor:
    """Floats as int32 of the same order, both zeros as 0: the bits themselves, of negative numbers the negated bits of their absolute value.

    The result may share the scores' memory.
    """
    bits_n = scores_n.contiguous().view(torch.int32)
    if int(bits_n.min()) >= 0:
        return bits_n
    sign_n = bits_n >> 31  # -1 or 0
    return bits_n.bitwise_and(0x7FFFFFFF).bitwise_xor_(sign_n).sub_(sign_n)


def _places(ordered_n: Tensor, threshold: int, first: int, shift: int, known: int) -> Tensor:
    """How many elements at the threshold lie in places with each digit, `[BINS]`, of those places whose higher digits are `known`.

    Args:
        ordered_n: a chunk.
        threshold: in the same order.
        first: place of its first element.
        shift: bits below the digit.
        known: the place's bits above the digit.
    """
    counts = torch.zeros(BINS, dtype=torch.int64, device=ordered_n.device)
    start = 0
    while start < ordered_n.numel():  # from one multiple of BINS to the next: what differs there is the lowest digit
        place = first + start
        stop = min(ordered_n.numel(), start + BINS - place % BINS)
        if place >> (shift + DIGIT) == known:
            equal_n = ordered_n[start:stop] == threshold
            if shift:
                counts[(place >> shift) % BINS] += equal_n.sum()
            else:
                counts[place % BINS : place % BINS + stop - start] += equal_n
        start = stop
    return counts


def _bin_of(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin in which the `rank`-th element (from 1) lies, and how many lie in those before it."""
    running = counts.cumsum(0)
    found = int(torch.searchsorted(running, rank))
    return found, int(running[found] - counts[found])


def n_of_m(scores: Tensor, n: int, m: int, input_axis: int) -> Tensor:
    """Which weights stay if n of each m consecutive inputs do (of 2:4 sparsity n = 2, m = 4); of equal scores the earlier go first.

    Mishra et al. 2021, https://arxiv.org/abs/2104.08378, section 3: hardware skips the zeros if each output's weights have them in this pattern.

    Args:
        scores: of a matrix, `[O, I]` or as it is stored.
        n: weights that stay in a group.
        m: size of a group.
        input_axis: along which a group's weights lie: 1 in a Linear, 0 in a Conv1D.

    Returns:
        Bool, shaped as the scores.

    Raises:
        ValueError: inputs that m doesn't divide, n that isn't within 0 and m, a score that is no number.
    """
    inputs = scores.shape[input_axis]
    if not 0 <= n <= m or inputs % m:
        raise ValueError(f"{n} of each {m} can't stay of {inputs} inputs; m must divide them, and n be at most m")
    if bool(scores.isnan().any()):
        raise ValueError("a score is no number (NaN); the weights or what was seen of them aren't finite")
    keep = torch.ones_like(scores, dtype=torch.bool)
    scores_OI, keep_OI = (tensor.movedim(input_axis, 1) for tensor in (scores, keep))
    rows = max(1, CHUNK // max(1, inputs))
    for scores_oI, keep_oI in zip(scores_OI.split(rows), keep_OI.split(rows), strict=True):
        order = scores_oI.unflatten(1, (-1, m)).argsort(dim=-1, stable=True)
        chosen = torch.ones_like(order, dtype=torch.bool).scatter_(-1, order[..., : m - n], False)
        keep_oI.copy_(chosen.flatten(1))
    return keep


def select_units(scores: Mapping[str, Tensor], prune: int | Mapping[str, int], minimum: int = 1) -> dict[str, Tensor]:
    """Which units of each group stay, of scores that every rank holds; of equal ones the earlier group's and unit's go first.

    Args:
        scores: `[U]` of each group.
        prune: how many go in each group; or in all together, under one threshold, but for the best `minimum` of each group.
        minimum: units that stay in every group.

    Returns:
        Bool `[U]` by group.

    Raises:
        ValueError: more must go than may, or a score is no number.
    """
    wrong = [group for group, scores_U in scores.items() if bool(scores_U.isnan().any())]
    if wrong:
        raise ValueError(
            f"scores are no numbers (NaN): {', '.join(wrong)}; the weights or what was seen of them aren't finite"
        )
    if isinstance(prune, int):
        may_go = {group: _lowest(scores_U, max(0, len(scores_U) - minimum)) for group, scores_U in scores.items()}
        may = torch.cat(list(may_go.values()))
        flat = torch.cat([scores_U.flatten() for scores_U in scores.values()])
        places = may.nonzero().squeeze(1)
        if not 0 <= prune <= len(places):
            text = (
                f"{prune} of {len(flat)} units can't be pruned: at least {minimum} stay in each of {len(scores)} groups"
            )
            raise ValueError(f"{text}, so at most {len(places)} go")
        keep = torch.ones_like(may)
        keep[places[_lowest(flat[places], prune)]] = False
        return dict(zip(scores, keep.split([len(part) for part in scores.values()]), strict=True))
    kept = {}
    for group, scores_U in scores.items():
        if not 0 <= prune[group] <= max(0, len(scores_U) - minimum):
            text = f"{prune[group]} of {len(scores_U)} units of {group} can't be pruned: at least {minimum} must stay"
            raise ValueError(text)
        kept[group] = ~_lowest(scores_U, prune[group])
    return kept


def _lowest(scores_U: Tensor, count: int) -> Tensor:
    """Bool `[U]`: the `count` lowest, of equal ones the earlier."""
    lowest_U = torch.zeros(len(scores_U), dtype=torch.bool, device=scores_U.device)
    lowest_U[scores_U.argsort(stable=True)[:count]] = True
    return lowest_U
