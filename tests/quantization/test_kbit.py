"""k bits: steps and offsets by hand, LSQ's gradients against autograd in float64, ranges that clip nothing, and bits that fall."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.errors import Refusal
from distill_system.quantization.base import Moment
from distill_system.quantization.kbit import Kbit, schedule_problem
from tests.quantization.samples import DRAW, NOW, matrices, row


def test_learned_step_by_hand():
    quantizer, weight_GN = Kbit(bits=2), row(0.0, 0.6, -0.6, 9.0, -9.0, -1.2)
    own = {"step": row(-1.0)}  # its sign doesn't matter; sqrt(Qp) = 1: codes -2, -1, 0, 1
    code_GN, grid = quantizer.encode(weight_GN, own, NOW, DRAW)
    assert code_GN.tolist() == [[2, 3, 1, 3, 0, 1]]
    assert (grid.count, grid.scale_G1.tolist(), grid.zero_G1.tolist()) == (4, [[1.0]], [[2.0]])
    assert quantizer.quantize(weight_GN, own, NOW, DRAW).tolist() == [[0.0, 1.0, -1.0, 1.0, -2.0, -1.0]]
    gradient_GN, found = quantizer.gradients(row(1.0, 1.0, 1.0, 2.0, 3.0, 5.0), weight_GN, own, NOW, DRAW)
    assert gradient_GN.tolist() == [[1.0, 1.0, 1.0, 0.0, 0.0, 5.0]]
    by_step = 0.4 - 0.4 + 2 * 1 + 3 * -2 + 5 * 0.2
    assert found["step"].item() == pytest.approx(-by_step)


def test_offset_by_hand():
    quantizer, weight_GN = Kbit(bits=2, symmetric=False), row(0.0, 1.1, 2.6, -0.6, -9.0)
    own = {"step": row(1.0), "offset": row(1.2)}  # z = round(2 - 1.2) = 1: values -1, 0, 1, 2
    code_GN, grid = quantizer.encode(weight_GN, own, NOW, DRAW)
    assert code_GN.tolist() == [[1, 2, 3, 0, 0]]
    assert grid.zero_G1.tolist() == [[1.0]]
    assert quantizer.quantize(weight_GN, own, NOW, DRAW).tolist() == [[0.0, 1.0, 2.0, -1.0, -1.0]]
    gradient_GN, found = quantizer.gradients(row(1.0, 2.0, 4.0, 8.0, 16.0), weight_GN, own, NOW, DRAW)
    assert gradient_GN.tolist() == [[1.0, 2.0, 0.0, 8.0, 0.0]]
    assert found["offset"].item() == 4.0 + 16.0
    assert found["step"].item() == pytest.approx(2 * -0.1 + 4 * 1 + 8 * -0.4 + 16 * -2)


def test_first_step_is_that_of_lsq_and_knows_no_bits():
    weight_GN = torch.tensor([[1.0, -3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for bits, root in ((2, 1.0), (4, 7**0.5), (8, 127**0.5)):
        quantizer = Kbit(bits=bits, symmetric=False)
        own = quantizer.initial(weight_GN)
        assert {name: tensor.tolist() for name, tensor in own.items()} == {
            "step": [[4.0], [0.0]],  # 2 mean|w|; pruned weights don't count
            "offset": [[-1.0], [0.0]],
        }
        assert quantizer.encode(weight_GN, own, NOW, DRAW)[1].scale_G1[0].item() == pytest.approx(4.0 / root)


def rounded(x):
    """Rounding that autograd passes straight through."""
    return x + (x.round() - x).detach()


def lsq(weight_GN, gamma_G1, offset_G1, bits):
    """LSQ (equation 1), and LSQ+ with its offset: below and above the codes of the whole zero stand the ends of the learned range."""
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step_G1 = gamma_G1.abs() / most**0.5
    zero_G1 = (-least - offset_G1 / step_G1).detach().round().clamp(0, most - least)
    code_GN = (weight_GN / step_G1).detach()
    inner_GN = rounded(weight_GN / step_G1) * step_G1
    low_GN, high_GN = step_G1 * least + offset_G1, step_G1 * most + offset_G1
    ends_GN = torch.where(code_GN < -zero_G1, low_GN, torch.where(code_GN > most - least - zero_G1, high_GN, inner_GN))
    value_GN = code_GN.round().clamp(-zero_G1, most - least - zero_G1) * step_G1
    return ends_GN + (value_GN - ends_GN).detach()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("factor", [1.0, 0.2, -0.7])
def test_gradients_are_those_of_autograd(bits, symmetric, factor):
    generator = torch.Generator().manual_seed(bits)
    weight_GN = torch.randn(5, 60, generator=generator, dtype=torch.float64).add_(0.2).requires_grad_()
    upstream_GN = torch.randn(5, 60, generator=generator, dtype=torch.float64)
    quantizer = Kbit(bits=bits, symmetric=symmetric)
    own = quantizer.initial(weight_GN.detach())
    own["step"] *= factor
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in own.items()}
    expected_GN = lsq(weight_GN, leaves["step"], leaves.get("offset", torch.zeros(5, 1)), bits)
    (expected_GN * upstream_GN).sum().backward()
    assert torch.allclose(quantizer.quantize(weight_GN.detach(), own, NOW, DRAW), expected_GN, rtol=1e-12, atol=1e-15)
    gradient_GN, found = quantizer.gradients(upstream_GN, weight_GN.detach(), own, NOW, DRAW)
    assert torch.allclose(gradient_GN, weight_GN.grad, rtol=1e-12)
    assert set(found) == set(leaves)
    for name, tensor in leaves.items():
        assert torch.allclose(found[name], tensor.grad, rtol=1e-9, atol=1e-12)


def test_gradient_of_the_step_is_a_finite_difference_where_all_is_clipped():
    quantizer, weight_GN = Kbit(bits=3), torch.tensor([[90.0, -80.0, 70.0]], dtype=torch.float64)
    upstream_GN, step = torch.tensor([[1.0, 2.0, -5.0]], dtype=torch.float64), torch.tensor([[0.3]]).double()

    def loss(by):
        return (quantizer.quantize(weight_GN, {"step": step + by}, NOW, DRAW) * upstream_GN).sum()

    _, found = quantizer.gradients(upstream_GN, weight_GN, {"step": step}, NOW, DRAW)
    assert found["step"].item() == pytest.approx(((loss(1e-6) - loss(-1e-6)) / 2e-6).item(), rel=1e-7)


def test_range_of_the_weights_by_hand():
    even = Kbit(bits=2, range="weights")
    assert even.quantize(row(-2.0, 0.9, 1.1, 2.0), {}, NOW, DRAW).tolist() == [[-2.0, 0.0, 2.0, 2.0]]
    uneven, weight_GN = Kbit(bits=2, range="weights", symmetric=False), row(-1.0, 2.0, 0.4, 0.0)
    code_GN, grid = uneven.encode(weight_GN, {}, NOW, DRAW)
    assert (grid.scale_G1.item(), grid.zero_G1.item(), code_GN.tolist()) == (1.0, 1.0, [[0, 3, 1, 1]])
    positive_GN = row(5.0, 6.0, 3.0)  # 0 counts among the weights
    assert uneven.quantize(positive_GN, {}, NOW, DRAW).tolist() == [
        [4.0, 6.0, 4.0]
    ]  # 5 / 2 is halfway: to the even code
    upstream_GN = row(1.0, 2.0, 3.0)
    for quantizer in (even, uneven):
        assert quantizer.names == quantizer.trained == ()
        gradient_GN, own = quantizer.gradients(upstream_GN, positive_GN, {}, NOW, DRAW)
        assert torch.equal(gradient_GN, upstream_GN)
        assert own == {}


@settings(max_examples=100, deadline=None)
@given(matrices(), st.integers(2, 8), st.booleans())
def test_range_of_the_weights_clips_nothing(weight_GN, bits, symmetric):
    quantizer = Kbit(bits=bits, symmetric=symmetric, range="weights")
    grid = quantizer.encode(weight_GN, {}, NOW, DRAW)[1]
    error_GN = (quantizer.quantize(weight_GN, {}, NOW, DRAW) - weight_GN).abs()
    worst = 0.5 if symmetric else 1.0  # the rounding of the zero moves an end by half a step
    assert (error_GN <= worst * grid.scale_G1 * (1 + 1e-4)).all()


def test_bits_fall_on_schedule():
    quantizer = Kbit(bits=2, schedule=[8, 4, 2], schedule_until=0.5)
    moments = (0.0, 0.24, 0.25, 0.49, 0.5, 1.0)
    assert [quantizer.levels(progress) for progress in moments] == [256, 256, 16, 16, 4, 4]
    assert [Kbit(bits=3).levels(progress) for progress in moments] == [8] * 6
    weight_GN = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    own = quantizer.initial(weight_GN)
    assert set(own) == {"step"}
    for progress, bits in ((0.0, 8), (0.3, 4), (0.7, 2)):
        value_GN = quantizer.quantize(weight_GN, own, Moment(progress=progress), DRAW)
        assert torch.equal(value_GN, Kbit(bits=bits).quantize(weight_GN, own, NOW, DRAW))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(2, 8), min_size=1, max_size=5).map(lambda bits: sorted(bits, reverse=True)),
    st.floats(0.01, 0.99),
    st.floats(0, 1),
)
def test_every_entry_of_a_schedule_has_its_share(schedule, until, progress):
    quantizer = Kbit(bits=schedule[-1], schedule=schedule, schedule_until=until)
    place = sum(progress >= until * i / (len(schedule) - 1) - 1e-12 for i in range(1, len(schedule)))
    near = any(abs(progress - until * i / max(1, len(schedule) - 1)) < 1e-9 for i in range(len(schedule)))
    assert near or quantizer.bits_at(progress) == schedule[place]
    assert quantizer.bits_at(1.0) == schedule[-1]


@pytest.mark.parametrize(
    ("schedule", "clause"),
    [
        ([8, 4, 2], None),
        ([2], None),
        ([8, 8, 2], None),
        ([], "is [], which names no bits; must end with bits=2, or be null"),
        ([2, 4, 2], "is [2, 4, 2], which raises bits from 2 to 4, but bits must fall; nearest: [4, 2, 2]"),
        ([8, 4], "is [8, 4], which ends with 4, but bits=2; nearest: bits=4"),
        ([16, 2], "is [16, 2], whose 16 isn't within 2 and 8 bits; nearest: 8"),
    ],
)
def test_schedule_that_does_not_fall_to_the_bits_is_refused(schedule, clause):
    assert schedule_problem(2, schedule) == clause
    if clause is None:
        assert Kbit(bits=2, schedule=schedule).levels(1.0) == 4
    else:
        with pytest.raises(Refusal) as refused:
            Kbit(bits=2, schedule=schedule)
        assert [problem.message for problem in refused.value.problems] == [clause]
