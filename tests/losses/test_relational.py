"""Relational distillation: worked by hand, against plain sums, equal points, and two ranks that together give the loss and gradient of one."""

import math

import pytest
import torch

from distill_system.losses.relational import Relational, cosines, distances, relational
from distill_system.signals import Signals, Targets
from tests.distributed.launch import run_ranks
from tests.losses.ranks import one_process
from tests.losses.samples import bound, example, make

F64 = torch.float64
ALL3 = torch.ones(3, dtype=torch.bool)
HERE3 = torch.arange(3)


def points(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=F64)


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def plain(student, teacher, rows, distance, angle):
    """Sum over anchors, written as in the docstring."""
    real = [i for i, keep in enumerate(rows) if keep]

    def norm(a, b):
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))

    def cosine(side, i, j, k):
        a = [(x - y) / norm(side[j], side[i]) for x, y in zip(side[j], side[i], strict=True)]
        b = [(x - y) / norm(side[k], side[i]) for x, y in zip(side[k], side[i], strict=True)]
        return sum(x * y for x, y in zip(a, b, strict=True))

    means = []
    for side in (student, teacher):
        between = [norm(side[i], side[j]) for i in real for j in real if i != j]
        means.append(sum(between) / len(between))
    total = 0.0
    for i in real:
        others = [j for j in real if j != i]
        for j in others:
            difference = huber(norm(student[i], student[j]) / means[0], norm(teacher[i], teacher[j]) / means[1])
            total += distance * difference / len(others)
        pairs = [(j, k) for j in others for k in others if j != k]
        for j, k in pairs:
            total += angle * huber(cosine(student, i, j, k), cosine(teacher, i, j, k)) / len(pairs)
    return total


def test_by_hand():
    # A right angle with legs 3 and 4: distances 3, 4, 5, mean 4; a straight line 0, 1, 3: distances 1, 3, 2, mean 2.
    triangle, line = points((0, 0), (3, 0), (0, 4)), points((0,), (1,), (3,))
    assert distances(triangle, HERE3, ALL3)[0].tolist() == pytest.approx([0, 0.75, 1])
    assert distances(line, HERE3, ALL3)[0].tolist() == pytest.approx([0, 0.5, 1.5])
    # First anchor: h(3/4, 1/2) and h(1, 3/2).
    found = relational(line, triangle, ALL3, HERE3, 1.0, 0.0)
    assert found[0].item() == pytest.approx((0.25**2 / 2 + 0.5**2 / 2) / 2)
    assert cosines(triangle, HERE3)[0, 1, 2].item() == pytest.approx(0)
    assert cosines(triangle, HERE3)[1, 0, 2].item() == pytest.approx(3 / 5)
    assert cosines(line, HERE3)[0, 1, 2].item() == pytest.approx(1)
    assert relational(line, triangle, ALL3, HERE3, 0.0, 1.0)[0].item() == pytest.approx(0.5)


@pytest.mark.parametrize(("distance", "angle"), [(1.0, 0.0), (0.0, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("which", ["hidden", "logits"])
def test_against_plain_sums(distance, angle, which):
    student, teacher, targets = example("classification")
    sides = []
    for side in (student, teacher):
        if which == "logits":
            sides.append(side.logits.tolist())
        else:
            length = targets.tokens.sum(dim=1).tolist()
            sides.append([side.hidden[-1][b, :n].sum(dim=0).div(max(n, 1)).tolist() for b, n in enumerate(length)])
    loss = bound(make("relational", points=which, distance=distance, angle=angle))
    total, count = loss(student, teacher, targets)
    assert total.item() == pytest.approx(plain(*sides, targets.rows.tolist(), distance, angle), rel=1e-9)
    assert count.item() == 5
    assert loss.needs == (which,)


def test_it_does_not_see_where_the_points_lie_nor_how_large_they_are():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, 3, generator=generator, dtype=F64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=F64))
    found = relational(7 * teacher @ turn + 2, teacher, torch.ones(5, dtype=torch.bool), torch.arange(5))
    assert found.abs().max().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rows", [(True, True, True), (True, True, False), (True, False, False)])
def test_equal_points_and_few_partners_have_a_finite_gradient(rows):
    student = points((1, 2), (1, 2), (1, 2)).requires_grad_()
    loss = relational(student, points((0, 0), (1, 0), (0, 5)), torch.tensor(rows), HERE3)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    assert torch.count_nonzero(loss).item() == (sum(rows) if sum(rows) > 1 else 0)


def test_words_that_do_not_exist_have_no_place_in_a_distance():
    cut = -math.inf
    targets = Targets(torch.tensor([0, 1, 0]), ALL3)
    student, teacher = points((0, 1, cut), (2, 1, cut), (5, 3, cut)), points((0, 1), (2, 2), (1, 3))
    loss = Relational("logits")
    total, _ = loss(Signals(student.requires_grad_()), Signals(teacher), targets)
    torch.testing.assert_close(total, loss(Signals(student[:, :2]), Signals(teacher), targets)[0])
    assert torch.isfinite(torch.autograd.grad(total, student)[0]).all()


def test_two_ranks_give_the_loss_and_the_gradient_of_one(tmp_path):
    two, one = run_ranks("tests.losses.ranks:main", world=2, folder=tmp_path), one_process()
    assert two["count"] == one["count"] == 6
    assert two["total"] == pytest.approx(one["total"], rel=1e-6)
    assert two["parts"][0] != pytest.approx(one["total"], rel=1e-2)  # the first rank alone has only a part of it
    torch.testing.assert_close(torch.tensor(two["gradient"]), torch.tensor(one["gradient"]), rtol=1e-5, atol=1e-6)
