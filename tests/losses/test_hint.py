"""Hints: worked by hand, against plain sums; projectors that are seeded, trained, saved and made anew when layers change; what doesn't fit."""

import copy
import math

import pytest
import torch

from distill_system.errors import Refusal
from distill_system.losses.hint import Hint, hint
from distill_system.signals import Signals, Targets
from tests.losses.samples import example

KEY = "phases.p.losses.hint"


def states(*widths: int, tokens: int = 3, seed: int = 0, rows: int = 2) -> Signals:
    """The first is the embeddings' output."""
    generator = torch.Generator().manual_seed(seed)
    hidden = tuple(torch.randn(rows, tokens, width, generator=generator, dtype=torch.float64) for width in widths)
    return Signals(torch.zeros(rows, 2), hidden=hidden)


ALL = Targets(torch.zeros(2, dtype=torch.long), torch.tensor([True, True]))


def test_by_hand():
    student = torch.tensor([[[1.0, 2.0], [0.0, 1.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[1.0, 4.0], [1.0, 0.0], [0.0, 0.0]]])
    tokens = torch.tensor([[True, True, False]])
    assert hint(student, teacher, tokens).item() == pytest.approx(((0 + 4) / 2 + (1 + 1) / 2) / 2)
    cosine = (1 - 9 / math.sqrt(5 * 17) + 1 - 0) / 2
    assert hint(student, teacher, tokens, "cosine").item() == pytest.approx(cosine, abs=1e-6)
    # Without mean and scale (a, b) is (-1, 1) or (1, -1): the first token is equal, the second opposite.
    assert hint(student, teacher, tokens, normalise=True).item() == pytest.approx((0 + 4) / 2, abs=1e-3)


@pytest.mark.parametrize("measure", ["mse", "cosine"])
def test_against_plain_sums(measure):
    student, teacher, targets = example("token_classification")
    student = Signals(student.logits, hidden=tuple(state[..., :12] for state in student.hidden))
    teacher = Signals(teacher.logits, hidden=tuple(state[..., :12] for state in teacher.hidden))
    loss = Hint([[0, 2], [1, 0]], measure)
    loss.bind(student, teacher, key=KEY, seed=0)
    expected = 0.0
    for b in range(6):
        real = [t for t in range(5) if targets.tokens[b, t]]
        for i, j in ((0, 2), (1, 0)):
            for t in real:
                s, r = student.hidden[i + 1][b, t].tolist(), teacher.hidden[j + 1][b, t].tolist()
                if measure == "mse":
                    value = sum((x - y) ** 2 for x, y in zip(s, r, strict=True)) / 12
                else:
                    dot = sum(x * y for x, y in zip(s, r, strict=True))
                    value = 1 - dot / math.sqrt(sum(x * x for x in s) * sum(y * y for y in r))
                expected += value / len(real) / 2
    total, count = loss(student, teacher, targets)
    assert total.item() == pytest.approx(expected, rel=1e-9)
    assert count.item() == 5


def test_layers_are_outputs_of_transformer_layers():
    student, teacher = states(4, 4, 4), states(4, 4, 4, 4, 4, 4, 4, seed=1)
    loss = Hint()
    assert loss.bind(student, teacher, key=KEY, seed=0) == {"pairs": [[0, 2], [1, 5]], "projectors": 0}
    by_hand = [(student.hidden[i] - teacher.hidden[j]).square().mean() for i, j in ((1, 3), (2, 6))]
    torch.testing.assert_close(loss(student, teacher, ALL)[0], 2 * torch.stack(by_hand).mean())


def test_projectors_where_widths_differ():
    student, teacher = states(4, 4, 6), states(6, 6, 6, seed=1)
    loss = Hint()
    assert loss.bind(student, teacher, key=KEY, seed=0)["projectors"] == 1
    loss.double()
    (projector,) = loss.projectors.values()
    assert projector.weight.shape == (6, 4)
    first = (student.hidden[1] @ projector.weight.T - teacher.hidden[1]).square().mean()
    second = (student.hidden[2] - teacher.hidden[2]).square().mean()
    total, _ = loss(student, teacher, ALL)
    torch.testing.assert_close(total, 2 * (first + second) / 2)
    total.backward()
    assert torch.count_nonzero(projector.weight.grad) > 0
    always = Hint(projector="always")
    assert always.bind(student, teacher, key=KEY, seed=0)["projectors"] == 2


def test_projectors_depend_on_the_seed_and_their_pair_alone():
    student, teacher = states(4, 4, 4), states(6, 6, 6, seed=1)
    drawn = []
    for seed, burn in ((5, 0), (5, 3), (6, 0)):
        torch.manual_seed(0)
        torch.rand(burn)
        before = torch.get_rng_state()
        loss = Hint()
        loss.bind(student, teacher, key=KEY, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append([p.weight for p in loss.projectors.values()])
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][0], drawn[2][0])
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert drawn[0][0].abs().max() <= 0.5


def test_a_bound_loss_is_copied_and_restored_with_its_projectors():
    student, teacher = states(4, 4), states(6, 6, seed=1)
    loss = Hint()
    loss.bind(student, teacher, key=KEY, seed=1)
    twin, other = copy.deepcopy(loss), Hint()
    other.bind(student, teacher, key=KEY, seed=2)
    other.load_state_dict(loss.state_dict())
    values = [one.double()(student, teacher, ALL)[0] for one in (loss, twin, other)]
    assert values[0] == values[1] == values[2]


def test_bound_anew_after_a_layer_is_removed_and_widths_are_cut():
    teacher = states(8, 8, 8, 8, 8, seed=1)
    loss = Hint()
    assert loss.bind(states(6, 6, 6, 6), teacher, key=KEY, seed=0)["pairs"] == [[0, 0], [1, 2], [2, 3]]
    told = loss.bind(states(4, 4, 4), teacher, key=KEY, seed=0)
    assert told == {"pairs": [[0, 1], [1, 3]], "projectors": 2}
    assert {name: tuple(p.weight.shape) for name, p in loss.projectors.items()} == {"0-1": (8, 4), "1-3": (8, 4)}
    loss.double()(states(4, 4, 4), teacher, ALL)[0].backward()
    told = loss.bind(states(8, 8), teacher, key=KEY, seed=0)
    assert told == {"pairs": [[0, 3]], "projectors": 0}
    assert not list(loss.parameters())


def test_maps_of_a_cnn():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, width, size, size, generator=generator) for width, size in ((3, 4), (5, 8), (5, 4))]
    student, teacher = (
        Signals(torch.zeros(2, 2), hidden=(maps[0],) * 2),
        Signals(torch.zeros(2, 2), hidden=(maps[1],) * 2),
    )
    loss = Hint()
    assert loss.bind(student, teacher, key=KEY, seed=0) == {"pairs": [[0, 0]], "projectors": 1}
    total, count = loss(student, teacher, ALL)
    pooled = torch.nn.functional.avg_pool2d(maps[1], 2)
    weight = loss.projectors["0-0"].weight
    expected = (torch.einsum("bchw,dc->bdhw", maps[0], weight) - pooled).square().mean(dim=(1, 2, 3)).sum()
    torch.testing.assert_close(total, expected)
    assert count.item() == 2


@pytest.mark.parametrize(
    ("loss", "teacher", "said"),
    [
        (Hint(projector="never"), states(6, 6), r"hint.projector: is never, but the student's layer 0 is 4 wide and the teacher's layer 0 6; take"),
        (Hint([[0, 3]]), states(6, 6, 6), r"hint.layers\[0\]: is \[0, 3\], but the teacher has no layer 3, only 0 to 1; the nearest pair is \[0, 1\]"),
        (Hint(), states(6, 6, tokens=4), "hint: compares states token by token, but of the same rows the student sees 3 and the teacher 4"),
    ],
)  # fmt: skip
def test_what_does_not_fit(loss, teacher, said):
    with pytest.raises(Refusal, match=said):
        loss.bind(states(4, 4), teacher, key=KEY, seed=0)
