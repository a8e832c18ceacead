"""Self-attention relations: worked by hand, against plain sums, causal, grouped keys and values, widths that can't be split."""

import math

import pytest
import torch

from distill_system.errors import Refusal
from distill_system.losses.relation import Relation, relation
from distill_system.signals import Signals
from tests.losses.samples import bound, example, make

KEY = "phases.p.losses.relation"


def softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def plain(student, teacher, heads, causal=False):
    """Of one row without padding, written as sums; `[T][D]` lists."""
    total, length = 0.0, len(student)
    for head in range(heads):
        for query in range(length):
            rows = []
            for states in (teacher, student):
                size = len(states[0]) // heads
                part = [state[head * size : (head + 1) * size] for state in states]
                keys = part[: query + 1] if causal else part
                rows.append(
                    softmax(
                        [sum(a * b for a, b in zip(part[query], key, strict=True)) / math.sqrt(size) for key in keys]
                    )
                )
            total += sum(p * math.log(p / q) for p, q in zip(*rows, strict=True))
    return total / heads / length


def test_by_hand():
    # One head of width 1: scores x_i * x_j. Student (0, 0): all even. Teacher (0, sqrt(ln 3)): the second token looks 3:1 at itself.
    student = torch.zeros(1, 2, 1, dtype=torch.float64)
    teacher = torch.tensor([[[0.0], [math.sqrt(math.log(3))]]], dtype=torch.float64)
    found = relation(student, teacher, torch.ones(1, 2, dtype=torch.bool), heads=1)
    assert found.item() == pytest.approx((0 + 0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2)


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_against_plain_sums(task):
    """Widths differ (16 and 32), and so do layers; the three kinds and the two pairs are averaged."""
    student, teacher, targets = example(task)
    loss = bound(make("relation", relation_heads=4, layers=[[0, 2], [1, 0]]), task)
    expected = 0.0
    for b in range(6):
        real = int(targets.tokens[b].sum())
        for i, j in ((0, 2), (1, 0)):
            for kind in range(3):
                sides = [side[kind][b, :real].tolist() for side in (student.projections[i], teacher.projections[j])]
                expected += plain(*sides, 4, task == "causal_lm") / 6 if real else 0.0
    total, count = loss(student, teacher, targets)
    assert total.item() == pytest.approx(expected, rel=1e-9)
    assert count.item() == 5


def test_kinds_are_chosen():
    student, teacher, targets = example("classification")
    each = [
        bound(make("relation", relations=[kind]))(student, teacher, targets)[0]
        for kind in ("queries", "keys", "values")
    ]
    together = bound(make("relation"))(student, teacher, targets)[0]
    torch.testing.assert_close(together, torch.stack(each).mean())


def projections(*widths: int, tokens: int = 3) -> Signals:
    return Signals(torch.zeros(2, 2), projections=(tuple(torch.ones(2, tokens, width) for width in widths),))


def test_grouped_keys_and_values_are_split_on_their_own():
    told = Relation(relation_heads=4).bind(projections(16, 4, 4), projections(32, 8, 8), key=KEY, seed=0)
    assert told == {"pairs": [[0, 0]]}


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (Relation(relation_heads=5), "relation.relation_heads: is 5, must divide the widths 8, 12, 24; the nearest that does is 4"),
        (Relation(relations=["queries"], relation_heads=5), "is 5, must divide the widths 12, 24; the nearest that does is 6"),
        (Relation([[0, 2]]), r"relation.layers\[0\]: is \[0, 2\], but the teacher has no layer 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit(loss, said):
    with pytest.raises(Refusal, match=said):
        loss.bind(projections(12, 12, 12), projections(24, 8, 8), key=KEY, seed=0)


def test_other_tokens_and_no_kind():
    with pytest.raises(Refusal, match="relation: compares states token by token"):
        Relation(relation_heads=1).bind(projections(4, 4, 4), projections(4, 4, 4, tokens=5), key=KEY, seed=0)
    for kinds in ([], ["keys", "keys"]):
        with pytest.raises(Refusal, match=r"relations: is .* must hold some of queries, keys, values"):
            Relation(relations=kinds)
