"""The plain engine against PyTorch's own clipping and AdamW, step by step."""

import pytest
import torch

from distill_system.losses.task import HardLabel
from distill_system.signals import Signals
from distill_system.training.engine import named_state
from tests.training.tiny import CPU, Net, batch, engine, equal, state, train_step


def reference_step(one, number, clip):
    """What a plain loop would do with the same losses."""
    torch.manual_seed(number)
    whole = batch(number)
    student = one.objective.student.train()
    logits = student(whole["input_ids"], whole["attention_mask"]).logits
    loss = torch.nn.functional.cross_entropy(logits, whole["labels"], ignore_index=-100)
    one.optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(one.parameters, clip or float("inf"))
    return loss, norm


@pytest.mark.parametrize("clip", [0.05, 100.0, 0.0])
def test_a_step_is_a_plain_loop_s_step(clip):
    one, other = (engine(losses={"hard": HardLabel()}, clip=clip) for _ in range(2))
    for number in range(3):
        loss, norm = reference_step(other, number, clip)
        for group in other.optimizer.param_groups:
            group["lr"] = 0.02
        other.optimizer.step()
        assert train_step(one, number) == pytest.approx((float(loss.detach()), float(norm)), rel=1e-6)
    for name, tensor in state(one).items():
        torch.testing.assert_close(tensor, state(other)[name], rtol=1e-5, atol=1e-7)
    assert float(norm) > 0.05  # so that the smallest clip does something


def test_the_learning_rate_is_the_one_given():
    one = engine(weight_decay=0.0)
    before = state(one)
    train_step(one, 0, lr=0.0)
    after = state(one)
    assert all(torch.equal(after[n], before[n]) for n in before if n.endswith("|weight") and "seen" not in n)
    train_step(one, 1, lr=0.01)  # Adam's first steps are about the learning rate
    change = (state(one)["roles.student.head.weight|weight"] - before["roles.student.head.weight|weight"]).abs().max()
    assert 0.002 < float(change) < 0.02


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_norm_that_is_not_finite_changes_nothing(poison, clip):
    one = engine(clip=clip)
    train_step(one, 0)
    before = state(one)
    loss, _ = one.forward(batch(1), {"main": Signals(torch.zeros(8, 3))}, torch.ones(2), last=True)
    one.backward(loss, last=True)
    one.objective.student.head.bias.grad[0] = poison
    assert not torch.isfinite(one.step(0.02))
    after = state(one)
    seen = "roles.student.seen|weight"
    assert after.pop(seen) != before.pop(seen)
    assert equal(after, before)  # weights, moments and the count of updates
    undisturbed = engine(clip=clip)
    train_step(undisturbed, 0)
    assert train_step(one, 2) == train_step(undisturbed, 2)


def test_two_micro_batches_are_one_batch():
    one, other = engine(dropout=0.0), engine(dropout=0.0)
    for number in range(3):
        assert train_step(one, number) == pytest.approx(train_step(other, number, micro=2), rel=1e-5)
    torch.testing.assert_close(
        one.objective.student.head.weight, other.objective.student.head.weight, rtol=1e-5, atol=1e-6
    )


def test_weights_decay_and_norms_do_not():
    one = engine(weight_decay=0.5)
    for parameter in one.parameters:
        parameter.grad = torch.zeros_like(parameter)
    before = {name: tensor.clone() for name, tensor in one.objective.student.named_parameters()}
    one.step(0.1)
    for name, tensor in one.objective.student.named_parameters():
        factor = 0.95 if name == "head.weight" else 1.0
        torch.testing.assert_close(tensor, before[name] * factor, msg=name)


def test_bf16_computes_in_bf16_and_keeps_weights_and_logits_apart_from_it():
    one, other = engine(autocast=("cpu", torch.bfloat16), precision="bf16", dropout=0.0), engine(dropout=0.0)
    assert one.evaluate(batch(0)).dtype == torch.bfloat16
    losses = [train_step(one, number)[0] for number in range(3)]
    assert losses == pytest.approx([train_step(other, number)[0] for number in range(3)], rel=0.05)
    assert losses[0] != train_step(engine(dropout=0.0), 0)[0]
    assert {parameter.dtype for parameter in one.objective.parameters()} == {torch.float32}


def test_fp16_scales_its_loss_and_skips_what_overflows():
    one = engine(autocast=("cpu", torch.float16), precision="fp16", dropout=0.0)
    assert one.scalars()["loss_scale"] == 2.0**16
    _, norm = train_step(one, 0)
    _, expected = train_step(engine(dropout=0.0), 0)
    assert norm == pytest.approx(expected, rel=0.05)  # the norm is told without the scale
    before = one.objective.student.head.weight.clone()
    loss, _ = one.forward(batch(1), {"main": Signals(torch.zeros(8, 3))}, torch.full((2,), 1e30), last=True)
    one.backward(loss, last=True)
    one.step(0.02)
    assert torch.equal(one.objective.student.head.weight, before)
    assert one.scalars() == {"updates": 1.0, "loss_scale": 2.0**15, "good_steps": 0}
    train_step(one, 2)
    assert one.scalars() == {"updates": 2.0, "loss_scale": 2.0**15, "good_steps": 1}
    fresh = engine(autocast=("cpu", torch.float16), precision="fp16")
    fresh.restore(one.scalars())
    assert fresh.scalars() == one.scalars()
    train_step(fresh, 3)
    assert fresh.scalars() == {"updates": 3.0, "loss_scale": 2.0**15, "good_steps": 2}


def test_names_of_the_state():
    net = Net()
    net.again = net.head  # shared modules come once
    names = [name for name, _ in named_state(net)]
    assert names == [
        "embedding.weight",
        "frozen.weight",
        "frozen.bias",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
        "seen",
    ]


def test_whole_weights_have_the_student_s_own_names():
    one = engine()
    weights = dict(one.whole_weights())
    assert weights.keys() == one.objective.student.state_dict().keys()
    assert all(tensor.device == CPU and not tensor.requires_grad for tensor in weights.values())
