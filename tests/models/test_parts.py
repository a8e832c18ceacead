"""Attention and feed-forward of each family's layers, and which linears count as the model's matrices."""

import pytest
import torch
from torch import nn

from distill_system.models.anatomy import UnknownAnatomy
from distill_system.models.parts import find_parts, matrices, sizes, stored_shape
from tests.models import cuttable

PLACES = {  # prefix of the second layer; inputs and output of its feed-forward; q, k, v, out and module of its attention
    "bert": ("bert.encoder.layer.1", "intermediate.dense output.dense", "query key value", "attention.self"),
    "roberta": ("roberta.encoder.layer.1", "intermediate.dense output.dense", "query key value", "attention.self"),
    "distilbert": ("distilbert.transformer.layer.1", "ffn.lin1 ffn.lin2", "q_lin k_lin v_lin", "attention"),
    "llama": ("model.layers.1", "mlp.gate_proj mlp.up_proj mlp.down_proj", "q_proj k_proj v_proj", "self_attn"),
    "qwen2": ("model.layers.1", "mlp.gate_proj mlp.up_proj mlp.down_proj", "q_proj k_proj v_proj", "self_attn"),
    "gpt2": ("transformer.h.1", "mlp.c_fc mlp.c_proj", "c_attn c_attn c_attn", "attn"),
    "opt": ("model.decoder.layers.1", "fc1 fc2", "q_proj k_proj v_proj", "self_attn"),
    "vit": ("vit.layers.1", "mlp.fc1 mlp.fc2", "q_proj k_proj v_proj", "attention"),
}


@pytest.mark.parametrize("family", PLACES)
def test_parts_of_each_family(family):
    prefix, linears, projections, attention = PLACES[family]
    layers = find_parts(cuttable.build(family))
    assert len(layers) == 3
    layer = layers[1]
    assert layer.prefix == prefix
    assert [*layer.ffn.inputs, layer.ffn.output] == [f"{prefix}.{name}" for name in linears.split()]
    assert layer.ffn.size == (128 if family == "gpt2" else 48)
    assert not layer.ffn.halves
    found = layer.attention
    assert found.module == f"{prefix}.{attention}"
    assert [found.q, found.k, found.v] == [f"{prefix}.{attention}.{name}" for name in projections.split()]
    assert (found.heads, found.kv_heads, found.head_dim) == (4, 2 if family in ("llama", "qwen2") else 4, 8)
    assert found.fused == (found.q if family == "gpt2" else None)
    assert found.out.startswith(f"{prefix}.{attention.split('.')[0]}.")


def test_a_shared_layer_comes_once_and_halves_are_told():
    (layer,) = find_parts(cuttable.build("albert"))
    assert layer.prefix == "albert.encoder.albert_layer_groups.0.albert_layers.0"
    assert (layer.ffn.size, layer.attention.heads) == (48, 4)
    fused = find_parts(cuttable.build("phi3"))[0]
    assert fused.ffn.halves
    assert fused.ffn.inputs == ("model.layers.0.mlp.gate_up_proj",)
    assert (fused.ffn.size, fused.attention) == (48, None)


def test_sizes_come_from_modules_whose_parameters_are_sharded_away():
    model = cuttable.build("gpt2")
    whole = find_parts(model)
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    assert find_parts(model) == whole
    linear = model.get_submodule("transformer.h.0.mlp.c_fc")
    assert (sizes(linear), stored_shape(linear)) == ((128, 32), (32, 128))


def test_heads_with_parameters_of_their_own_are_left_alone():
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    values = cuttable.WIDTHS | cuttable.TOKENS
    normed = AutoModelForCausalLM.from_config(AutoConfig.for_model("olmo2", **values))
    assert {layer.attention for layer in find_parts(normed)} == {None}
    assert "q_norm.weight beside its projections" in find_parts(normed)[0].why
    biased = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("mpnet", **values))
    assert {layer.attention for layer in find_parts(biased)} == {None}
    assert "bias by position" in find_parts(biased)[0].why
    assert find_parts(biased)[0].ffn.size == 48
    per_head = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", head_dim=8, **cuttable.DECODER))
    assert find_parts(per_head)[0].attention.kv_heads == 2  # its norms are of one head's size and serve all alike


@pytest.mark.parametrize(("family", "per_layer"), [("bert", 6), ("llama", 7), ("gpt2", 4), ("vit", 6)])
def test_matrices_are_those_of_the_layers(family, per_layer):
    model = cuttable.build(family)
    found = matrices(model)
    assert len(found) == 3 * per_layer
    for name, module, axis in found:
        weight, linear = model.get_parameter(name), model.get_submodule(module)
        assert weight is linear.weight
        assert weight.shape[axis] == sizes(linear)[1]
        assert not any(word in name for word in ("embed", "norm", "classifier", "pooler", "lm_head", "wte"))
    assert {axis for _, _, axis in found} == {0 if family == "gpt2" else 1}


def test_tied_weights_are_no_matrices_and_models_without_layers_are_unknown():
    model = cuttable.build("bert")
    layer = model.bert.encoder.layer[0].attention.self
    model.classifier.weight = layer.query.weight
    names = [name for name, _, _ in matrices(model)]
    assert "bert.encoder.layer.0.attention.self.query.weight" not in names
    assert len(names) == 17
    for find in (find_parts, matrices):
        with pytest.raises(UnknownAnatomy, match="has no"):
            find(nn.Sequential(nn.Linear(2, 2)))


def test_linears_that_do_not_meet_are_told():
    model = cuttable.build("bert")
    model.bert.encoder.layer[0].output.dense = nn.Linear(40, 32)
    layer = find_parts(model)[0]
    assert layer.ffn is None
    assert "don't meet" in layer.why
    assert layer.attention is not None
