"""Training goes on in the smaller model as it would have gone on with masks: weights, moments and projectors come through the cut."""

import pytest
import torch

from distill_system.losses.task import HardLabel
from distill_system.models.from_config import FromConfig
from distill_system.phases.pruned import in_objective
from distill_system.pruning.base import Surgery, from_hex, to_hex
from distill_system.pruning.cut import cut, sources, unit_groups
from distill_system.settings import Training
from distill_system.training import checkpoint
from distill_system.training.engine import PlainEngine
from distill_system.training.masking import prepare, removed
from distill_system.training.objective import STUDENT, Objective
from distill_system.training.scoring import write_masks
from distill_system.training.store import Store

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 20}
TRAINING = Training(strategy="single", lr=3e-3, clip=0.5, weight_decay=0.1)


def model_of(architecture: str):
    sizes = SIZES | {"max_position_embeddings": 32} | ({"num_key_value_heads": 2} if architecture == "llama" else {})
    if architecture == "gpt2":
        sizes = {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 20, "n_positions": 32}
    recipe = FromConfig(architecture=architecture, tokenizer="bytes", dropout=0.0, **sizes)
    return recipe.build(task="classification", label_names=["a", "b"], artifacts={}, seed=1)[0]


def engine_of(model) -> PlainEngine:
    return PlainEngine(Objective(model, {"hard": HardLabel()}, task="classification"), TRAINING, torch.device("cpu"))


def train(engine: PlainEngine, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        ids_BT = torch.randint(5, 200, (8, 12), generator=generator)
        batch = {
            "input_ids": ids_BT,
            "attention_mask": torch.ones_like(ids_BT),
            "labels": ids_BT[:, 0] % 2,
            "valid": torch.ones(8, dtype=torch.bool),
        }
        loss, _ = engine.forward(batch, None, torch.tensor([1 / 8]), last=True)
        engine.backward(loss, last=True)
        engine.step(3e-3)
        losses.append(float(loss.detach()))
    return losses


def choice(model, kind: str) -> tuple[Surgery, dict[str, torch.Tensor]]:
    keep = {}
    for number, group in enumerate(unit_groups(model, kind)):
        stay = torch.randperm(group.units, generator=torch.Generator().manual_seed(number))[: max(1, group.units // 2)]
        keep[group.name] = sorted(stay.tolist())
    return Surgery(kind, keep), keep


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("kind", ["neurons", "heads"])
def test_masked_and_cut_models_learn_alike(architecture, kind, tmp_path):
    model = model_of(architecture)
    groups = unit_groups(model, kind)
    surgery, keep = choice(model, kind)
    prepare(model, groups, None)
    masked = engine_of(model)
    masks = {}
    for group in groups:
        for part in group.slices:
            lines = torch.ones(part.shape[part.axis], dtype=torch.bool)
            own = torch.zeros(group.units, dtype=torch.bool)
            own[keep[group.name]] = True
            lines[part.first : part.first + group.units * part.width] = own.repeat_interleave(part.width)
            name = f"roles.{STUDENT}.{part.name}_mask"
            masks[name] = (None, lines & masks[name][1] if name in masks else lines)
    write_masks(masked, masks)
    train(masked, range(3))
    checkpoint.save(tmp_path / "step_00000003", masked, {"identity": "x"})

    smaller = model_of(architecture)
    origin = in_objective(sources(smaller, surgery), surgery)
    cut(smaller, surgery)
    engine = engine_of(smaller)
    checkpoint.load(Store(tmp_path / "step_00000003"), engine, loading=checkpoint.Loading(origin=origin))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert train(engine, range(3, 8)) == pytest.approx(train(masked, range(3, 8)), rel=1e-5)


def test_layers_take_their_weights_and_moments_with_them(tmp_path):
    whole = engine_of(model_of("bert"))
    train(whole, range(3))
    checkpoint.save(tmp_path / "step_00000003", whole, {"identity": "x"})
    smaller, surgery = model_of("bert"), Surgery("layers", {"layers": [0, 2]})
    origin = in_objective(sources(smaller, surgery), surgery)
    cut(smaller, surgery)
    engine = engine_of(smaller)
    checkpoint.load(Store(tmp_path / "step_00000003"), engine, loading=checkpoint.Loading(origin=origin))
    before = {(piece.name, piece.part): piece.values for piece in whole.pieces()}
    for piece in engine.pieces():
        there = piece.name.replace("encoder.layer.1.", "encoder.layer.2.")
        assert torch.equal(piece.values, before[there, piece.part]), piece.name
    assert engine.scalars() == whole.scalars()


def test_a_projector_follows_its_layer():
    model, surgery = model_of("bert"), Surgery("layers", {"layers": [0, 2]})
    origin = in_objective(sources(model, surgery), surgery)
    assert origin("losses.hint.projectors.1-5.weight").name == "losses.hint.projectors.2-5.weight"


def test_a_tensor_from_nowhere_is_told(tmp_path):
    engine = engine_of(model_of("bert"))
    checkpoint.save(tmp_path / "step_00000000", engine, {"identity": "x"})
    loading = checkpoint.Loading(origin=lambda name: None)
    with pytest.raises(checkpoint.Damaged, match="doesn't know where"):
        checkpoint.load(Store(tmp_path / "step_00000000"), engine, loading=loading)


@pytest.mark.parametrize(
    ("units", "sparsity", "multiple_of", "gone"),
    [
        (10, 0.5, 1, 5),
        (10, 0.25, 1, 2),
        (10, 0.99, 1, 9),
        (10, 0.5, 4, 2),
        (12, 0.5, 4, 4),
        (3, 0.34, 1, 1),
        (3, 0.1, 1, 0),
    ],
)
def test_how_many_units_go(units, sparsity, multiple_of, gone):
    assert removed(units, sparsity, multiple_of) == gone


def test_bits_come_back():
    keep = torch.rand(77, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(from_hex(to_hex(keep), 77), keep)
    assert to_hex(torch.tensor([True, False, False, False, False, False, False, True, True])) == "8180"
