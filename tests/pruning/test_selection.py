"""Selections against a stable sort of everything: any scores, any dealing of elements to ranks, any chunks."""

import math
import threading
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.pruning import selection
from distill_system.pruning.selection import n_of_m, select, select_units

# Rounded to float32, so that the reference sorts the same numbers.
STRANGE = torch.tensor(
    [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, -1.1754944e-38, math.inf, -math.inf, 3.4028234e38, 1.0, -1.0]
).tolist()
SCORES = st.one_of(st.sampled_from(STRANGE), st.floats(width=32, allow_nan=False))


class Ranks:
    """Threads that stand for ranks: `reduce` waits for all of them and gives each the sum."""

    def __init__(self, world):
        self.world = world
        self.barrier = threading.Barrier(world, timeout=60)
        self.given = [None] * world

    def run(self, work):
        """[work(rank, reduce)], or what it raised, of each rank."""
        found = [None] * self.world

        def one(rank):
            def reduce(tensor):
                self.given[rank] = tensor.clone()
                self.barrier.wait()
                total = sum(self.given[1:], self.given[0].clone())
                self.barrier.wait()
                return total

            try:
                found[rank] = work(rank, reduce)
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def by_sorting(values, prune):
    """The masks of a stable sort of all scores, in the order of keys."""
    flat = [score for scores in values.values() for score in scores]
    gone = set(sorted(range(len(flat)), key=lambda place: flat[place])[:prune])
    masks, start = {}, 0
    for key, scores in values.items():
        masks[key] = [place not in gone for place in range(start, start + len(scores))]
        start += len(scores)
    return masks


def chosen(values, prune, shares=None, world=1):
    """The masks that ranks put together, each from what it holds: (key, start, stop) of each share."""
    tensors = {key: torch.tensor(scores, dtype=torch.float32) for key, scores in values.items()}
    shares = shares or [[(key, 0, len(scores)) for key, scores in tensors.items()]]
    sizes = {key: len(scores) for key, scores in tensors.items()}

    def work(rank, reduce):
        def stream():
            yield from ((key, start, tensors[key][start:stop]) for key, start, stop in shares[rank])

        result = select(stream, prune, sizes, reduce=reduce)
        return [(key, start, result.keep(key, start, scores)) for key, start, scores in stream()]

    masks = {key: [None] * size for key, size in sizes.items()}
    for found in Ranks(world).run(work):
        if isinstance(found, Exception):
            raise found
        for key, start, keep in found:
            masks[key][start : start + len(keep)] = keep.tolist()
    return masks


def test_by_hand():
    values = {"a": [3.0, -1.0, 2.0], "b": [2.0, 0.5]}
    assert chosen(values, 2) == {"a": [True, False, True], "b": [True, False]}
    assert chosen(values, 3) == {"a": [True, False, False], "b": [True, False]}  # of two equal ones the earlier
    assert chosen(values, 0) == {"a": [True] * 3, "b": [True] * 2}
    assert chosen(values, 5) == {"a": [False] * 3, "b": [False] * 2}


def test_both_zeros_are_equal_and_a_denormal_is_more():
    assert chosen({"a": [0.0, -0.0, 1e-45, -1e-45]}, 2) == {"a": [False, True, True, False]}
    assert chosen({"a": [-0.0, 0.0, 0.0]}, 1) == {"a": [False, True, True]}


@given(data=st.data(), scores=st.lists(SCORES, min_size=1, max_size=60), chunk=st.sampled_from([1, 3, 16, 1 << 20]))
@settings(max_examples=150, deadline=None)
def test_any_dealing_gives_what_a_stable_sort_gives(data, scores, chunk):
    if data.draw(st.booleans(), label="many ties"):
        scores = [scores[place % 3] if place % 3 < len(scores) else 0.0 for place in range(len(scores))]
    keys = data.draw(st.integers(1, 4), label="keys")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(scores)), min_size=keys - 1, max_size=keys - 1)))
    edges = [0, *cuts, len(scores)]
    # Not in alphabetical order: what counts is the order of the sizes.
    values = {f"key {keys - i}": scores[edges[i] : edges[i + 1]] for i in range(keys)}
    world = data.draw(st.integers(1, 3), label="world")
    shares = [[] for _ in range(world)]
    for key, part in values.items():
        start = 0
        while start < len(part):
            stop = start + data.draw(st.integers(1, len(part) - start), label="share")
            shares[data.draw(st.integers(0, world - 1), label="rank")].append((key, start, stop))
            start = stop
    shares = [data.draw(st.permutations(share)) for share in shares]
    prune = data.draw(st.integers(0, len(scores)), label="prune")
    with mock.patch.object(selection, "CHUNK", chunk):
        assert chosen(values, prune, shares, world) == by_sorting(values, prune)


@pytest.mark.parametrize("kind", ["ties", "signed", "masked", "half precision"])
@pytest.mark.parametrize("share", [0.003, 0.5, 0.97])
def test_more_places_than_a_digit_has(kind, share):
    """Ties are broken beyond 65536 elements, across keys, chunks and ranks."""
    scores = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    scores = {
        "ties": (scores * 2).round(),
        "signed": scores,
        "masked": torch.where(scores < 0.2, -torch.inf, scores),
        "half precision": scores.bfloat16().float().abs(),
    }[kind]
    values = {"a": scores[:90_000], "b": scores[90_000:90_001], "c": scores[90_001:]}
    sizes = {key: len(part) for key, part in values.items()}
    prune = int(share * len(scores))
    expected = torch.ones(len(scores), dtype=torch.bool)
    expected[scores.argsort(stable=True)[:prune]] = False

    def work(rank, reduce):
        cut = 70_001
        held = {0: [("a", 0, cut), ("c", 30_000, sizes["c"])], 1: [("c", 0, 30_000), ("b", 0, 1), ("a", cut, 90_000)]}
        result = select(
            lambda: ((key, start, values[key][start:stop]) for key, start, stop in held[rank]),
            prune,
            sizes,
            reduce=reduce,
        )
        return result.threshold, result.last, {key: result.keep(key, 0, values[key]) for key in sizes}

    with mock.patch.object(selection, "CHUNK", 40_000):
        first, second = Ranks(2).run(work)
    assert first[:2] == second[:2]
    assert torch.equal(torch.cat(list(first[2].values())), expected)


def test_places_beyond_32_bits():
    """Of a model with more elements than a test can hold: the digits of places are those of the whole number."""
    equal_n = torch.zeros(100_000, dtype=torch.int32)
    first = (5 << 32) + (7 << 16) + 65_000
    assert selection._places(equal_n, 0, first, 32, 0).nonzero().tolist() == [[5]]
    assert int(selection._places(equal_n, 0, first, 32, 0)[5]) == 100_000
    middle = selection._places(equal_n, 0, first, 16, 5)
    assert {digit: int(count) for digit, count in enumerate(middle) if count} == {7: 536, 8: 65_536, 9: 33_928}
    lowest = selection._places(equal_n, 0, first, 0, (5 << 16) + 9)
    assert lowest.tolist() == [1] * 33_928 + [0] * (65_536 - 33_928)
    assert int(selection._places(equal_n, 1, first, 0, (5 << 16) + 9).sum()) == 0


def test_scores_that_are_no_numbers_are_refused_on_every_rank_with_their_key():
    quiet, loud = torch.tensor([math.nan]), torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)
    for strange in (quiet, -quiet, loud, -loud):
        held = [("fine", 0, torch.ones(3)), ("bad", 0, torch.cat([torch.tensor([1.0, math.inf]), strange]))]
        sizes = {"fine": 3, "bad": 3}
        found = Ranks(2).run(lambda rank, reduce: select(lambda: [held[rank]], 2, sizes, reduce=reduce))  # noqa: B023
        assert [type(error) for error in found] == [ValueError] * 2
        assert all("1 of bad" in str(error) and "fine" not in str(error).partition(";")[0] for error in found)


def test_too_many_are_refused_and_missing_elements_found():
    scores = torch.arange(4.0)
    for prune in (-1, 5):
        with pytest.raises(ValueError, match=f"{prune} of 4 elements"):
            select(lambda: [("a", 0, scores)], prune, {"a": 4})
    with pytest.raises(AssertionError, match="4 of 5"):
        select(lambda: [("a", 0, scores)], 1, {"a": 5})
    with pytest.raises(AssertionError, match="float64"):
        select(lambda: [("a", 0, scores.double())], 1, {"a": 4})


def test_strided_and_empty_chunks():
    matrix = torch.tensor([[1.0, 9.0], [3.0, 9.0], [2.0, 9.0]])
    result = select(lambda: [("a", 0, matrix[:, 0]), ("a", 3, matrix[:0, 0])], 2, {"a": 3})
    assert result.keep("a", 0, matrix[:, 0]).tolist() == [False, True, False]
    assert result.keep("a", 1, matrix[1:, 0]).tolist() == [True, False]
    assert result.keep("a", 3, torch.zeros(0)).tolist() == []


def test_n_of_m_by_hand():
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.0, 0.0, 0.0, -0.0, 5.0]])
    kept = [[True, False, True, False, False, False, True, True]]
    assert n_of_m(scores, 2, 4, 1).tolist() == kept
    assert n_of_m(scores.t(), 2, 4, 0).t().tolist() == kept
    assert n_of_m(scores, 0, 4, 1).any().item() is False
    assert n_of_m(scores, 4, 4, 1).all().item() is True


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    m=st.integers(1, 6),
    axis=st.integers(0, 1),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_n_of_m_keeps_the_best_of_each_group(shape, m, axis, seed, data):
    n = data.draw(st.integers(0, m))
    outputs, groups = shape
    scores = torch.randint(-3, 4, (outputs, groups * m), generator=torch.Generator().manual_seed(seed)).float()
    with mock.patch.object(selection, "CHUNK", data.draw(st.sampled_from([1, 1 << 20]))):
        keep = n_of_m(scores.t() if axis == 0 else scores, n, m, axis)
    keep = keep.t() if axis == 0 else keep
    for row, kept in zip(scores.tolist(), keep.tolist(), strict=True):
        for start in range(0, len(row), m):
            assert kept[start : start + m] == by_sorting({"": row[start : start + m]}, m - n)[""]


def test_n_of_m_refuses_what_it_cannot_divide():
    with pytest.raises(ValueError, match="6 inputs; m must divide them"):
        n_of_m(torch.ones(4, 6), 2, 4, 1)
    with pytest.raises(ValueError, match="n be at most m"):
        n_of_m(torch.ones(4, 8), 5, 4, 1)
    with pytest.raises(ValueError, match="NaN"):
        n_of_m(torch.full((4, 8), math.nan), 2, 4, 1)
    assert n_of_m(torch.ones(4, 6), 2, 4, 0).sum() == 12


def test_units_by_hand():
    scores = {"a": torch.tensor([1.0, 5.0, 2.0]), "b": torch.tensor([0.1, 0.2])}
    kept = {group: keep.tolist() for group, keep in select_units(scores, {"a": 2, "b": 0}).items()}
    assert kept == {"a": [False, True, False], "b": [True, True]}
    kept = {group: keep.tolist() for group, keep in select_units(scores, 2).items()}
    assert kept == {"a": [False, True, True], "b": [False, True]}  # b's last one stays, though it is the next lowest
    assert select_units({"a": torch.ones(3)}, 1)["a"].tolist() == [False, True, True]


def greedy(values, prune, minimum):
    left = {group: len(scores) for group, scores in values.items()}
    keep = {group: [True] * len(scores) for group, scores in values.items()}
    everything = [(score, group, unit) for group, scores in values.items() for unit, score in enumerate(scores)]
    for _, group, unit in sorted(everything, key=lambda entry: entry[0]):
        if prune and left[group] > minimum:
            keep[group][unit] = False
            left[group] -= 1
            prune -= 1
    return keep


@given(
    groups=st.lists(st.lists(SCORES, min_size=1, max_size=8), min_size=1, max_size=4),
    minimum=st.integers(0, 3),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_units_under_one_threshold(groups, minimum, data):
    values = {f"group {9 - number}": scores for number, scores in enumerate(groups)}
    may = sum(max(0, len(scores) - minimum) for scores in groups)
    prune = data.draw(st.integers(0, may))
    tensors = {group: torch.tensor(scores, dtype=torch.float32) for group, scores in values.items()}
    kept = {group: keep.tolist() for group, keep in select_units(tensors, prune, minimum).items()}
    assert kept == greedy(values, prune, minimum)
    with pytest.raises(ValueError, match=f"at most {may} go"):
        select_units(tensors, may + 1, minimum)


def test_units_that_must_not_go():
    with pytest.raises(ValueError, match="3 of 3 units of a can't be pruned"):
        select_units({"a": torch.ones(3)}, {"a": 3})
    with pytest.raises(ValueError, match=r"\(NaN\): b;"):
        select_units({"a": torch.ones(3), "b": torch.tensor([math.nan])}, 1)
