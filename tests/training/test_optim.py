"""The learning rate by hand, and which parameters decay."""

import math

import pytest
import torch
from torch import nn

from distill_system.settings import Training
from distill_system.training.optim import empty_state, learning_rate, make_optimizer, parameter_groups


def rates(total, schedule="cosine", warmup=0.0, lr=1.0):
    return [learning_rate(step, total, lr=lr, schedule=schedule, warmup=warmup) for step in range(total)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_warm_up_and_decline_by_hand(schedule, expected):
    # 2 of 6 steps rise (0.3 * 6 = 1.8, rounded up), 4 decline from the full rate and would be 0 at step 6.
    assert rates(6, schedule, warmup=0.3) == pytest.approx(expected, abs=1e-12)
    assert learning_rate(6, 6, lr=1.0, schedule="linear", warmup=0.3) == 0.0


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert rates(4, "linear", lr=0.2) == pytest.approx([0.2, 0.15, 0.1, 0.05])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
def test_one_step_trains_with_the_full_rate(schedule, warmup):
    assert rates(1, schedule, warmup, lr=0.3) == [0.3]


def test_warm_up_of_all_steps_but_none_divides_by_zero():
    assert rates(4, "cosine", warmup=0.99) == [0.25, 0.5, 0.75, 1.0]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.frozen = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.again = self.linear  # the same module under a second name
        self.head.weight = self.embedding.weight  # a tied head is an embedding
        self.frozen.requires_grad_(False)


def names_of(model, group):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [known[id(parameter)] for parameter in group["params"]]


def test_norms_biases_and_embeddings_do_not_decay_and_frozen_ones_are_left_out():
    model = Model()
    decay, rest = parameter_groups(model, 0.1)
    assert (names_of(model, decay), decay["weight_decay"]) == (["linear.weight"], 0.1)
    assert rest["weight_decay"] == 0.0
    assert names_of(model, rest) == ["embedding.weight", "norm.weight", "norm.bias", "linear.bias"]


def test_an_empty_group_is_no_group():
    groups = parameter_groups(nn.LayerNorm(3), 0.1)
    assert [group["weight_decay"] for group in groups] == [0.0]


def test_the_optimizer_takes_every_setting_and_is_fused():
    training = Training(lr=0.5, beta1=0.7, beta2=0.8, eps=1e-3)
    optimizer = make_optimizer(parameter_groups(Model(), 0.1), training)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (0.5, (0.7, 0.8), 1e-3, True)


def test_state_made_before_the_first_step_is_what_adamw_makes_itself():
    after = []
    for prepared in (False, True):
        parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = make_optimizer([{"params": [parameter], "weight_decay": 0.1}], Training(lr=0.1))
        if prepared:
            state = empty_state(optimizer, parameter)
            assert empty_state(optimizer, parameter) is state
        parameter.grad = torch.tensor([0.3, 0.4])
        optimizer.step()
        after.append((parameter.detach().clone(), {k: v.clone() for k, v in optimizer.state[parameter].items()}))
    assert torch.equal(after[0][0], after[1][0])
    assert after[0][1].keys() == after[1][1].keys()
    assert all(torch.equal(after[0][1][name], after[1][1][name]) for name in after[0][1])
