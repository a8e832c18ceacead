"""Masks that rounds write, on one rank: what stays out, which gradients go through, and what is set again after a resume."""

import pytest
import torch

from distill_system.losses.task import HardLabel
from distill_system.models.from_config import FromConfig
from distill_system.phases.pruned import straight_through
from distill_system.pruning.blocks import Blocks
from distill_system.pruning.neurons import Neurons
from distill_system.pruning.schedules import Round
from distill_system.pruning.scores.magnitude import Magnitude
from distill_system.pruning.scores.movement import Movement
from distill_system.pruning.weights import Weights
from distill_system.settings import Training
from distill_system.training.engine import PlainEngine
from distill_system.training.masking import Masking, prepare
from distill_system.training.objective import STUDENT, Objective
from distill_system.training.scoring import bake

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def made(pruner):
    recipe = FromConfig(architecture="bert", tokenizer="bytes", dropout=0.0, **SIZES)
    model = recipe.build(task="classification", label_names=["a", "b"], artifacts={}, seed=1)[0]
    groups = pruner.groups(model, "pruner")
    prepare(model, groups, 1.0 if pruner.score.learned else None)
    objective = Objective(model, {"hard": HardLabel()}, task="classification")
    engine = PlainEngine(objective, Training(strategy="single"), torch.device("cpu"))
    return model, engine, Masking(pruner, groups, STUDENT, allocation=None, calibrate=lambda engine, watcher: None)


def masks(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("_mask")}


@pytest.mark.parametrize("pruner", [Weights(Magnitude()), Blocks(Magnitude(), block=[4, 4])])
def test_what_is_out_stays_out(pruner):
    """Also where what is left has become smaller than what went."""
    model, engine, surgeon = made(pruner)
    surgeon.apply(engine, Round(1, 0, 0.3), {})
    first = masks(model)
    with torch.no_grad():
        for name, mask in first.items():
            weight = model.get_parameter(name.removesuffix("_mask"))
            weight.copy_(torch.where(mask, weight * 1e-3, weight))
    surgeon.apply(engine, Round(2, 1, 0.5), {})
    for name, mask in masks(model).items():
        assert not (mask & ~first[name]).any(), name
    tally = surgeon.count(engine, {})
    total = sum(group.elements for group in surgeon.groups)
    assert tally.alive / total == pytest.approx(0.5, abs=0.002)


def test_what_moves_may_come_back():
    model, engine, surgeon = made(Weights(Movement()))
    scorer = surgeon.scorer(engine)
    for sign in (1, -1):
        for name in scorer.slices:
            run = scorer.run_of(name)
            scorer.seen[name] = sign * torch.arange(run.values_n.numel(), dtype=torch.float32)
        surgeon.apply(engine, Round(1, 0, 0.5), {})
        (name, mask), *_ = masks(model).items()
        assert bool(mask.flatten()[-1]) == (sign == 1)
        assert bool(mask.flatten()[0]) == (sign == -1)


@pytest.mark.parametrize(
    ("pruner", "dense"),
    [
        (Weights(Magnitude()), False),
        (Weights(Movement()), True),
        (Weights(Movement(mode="learned")), False),
        (Neurons(Movement()), True),
    ],
)
def test_only_accumulated_movement_trains_what_is_masked(pruner, dense):
    model, _, surgeon = made(pruner)
    straight_through(model, surgeon.groups, pruner.score)
    flags = {
        model.get_submodule(part.name.rpartition(".")[0]).dense_gradient for g in surgeon.groups for part in g.slices
    }
    assert flags == {dense}


def test_a_penalty_acts_again_after_a_resume():
    model, engine, surgeon = made(Weights(Movement(mode="learned", threshold="soft", penalty=8.0)))
    module = model.get_submodule(surgeon.groups[0].name.rpartition(".")[0])
    assert module.penalty is None
    surgeon.begin(engine, 0.5)
    total = sum(group.elements for group in surgeon.groups)
    assert module.penalty(torch.zeros(2)).tolist() == pytest.approx([0.5 * 8.0 * 0.25 / total] * 2)


def test_baked_weights_are_plain_zeros():
    pruner = Weights(Magnitude())
    model, engine, surgeon = made(pruner)
    surgeon.apply(engine, Round(1, 0, 0.5), {})
    found = {f"roles.{STUDENT}.{name.removesuffix('_mask')}": model.get_parameter(name) for name in masks(model)}
    bake(engine, found)
    for name, mask in masks(model).items():
        weight = model.get_parameter(name.removesuffix("_mask"))
        assert (weight[~mask] == 0).all()
        assert not torch.signbit(weight[~mask]).any()
        assert (weight[mask] != 0).all()


def test_n_of_m_holds_in_every_group_of_inputs_also_half_way():
    model, engine, surgeon = made(Weights(Magnitude(), pattern=[2, 4]))
    for number, sparsity in ((1, 0.25), (2, 0.5)):
        surgeon.apply(engine, Round(number, 0, sparsity), {})
        for mask in masks(model).values():
            kept = mask.view(-1, 4).sum(1)
            assert kept.min() >= 2
            assert sparsity < 0.5 or (kept == 2).all()
