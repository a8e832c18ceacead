"""Which matrices are quantized: bodies of several families, patterns, embeddings and what is tied to them, refusals."""

import pytest
import torch
from torch import nn

from distill_system.errors import Refusal
from distill_system.models.from_config import FromConfig
from distill_system.quantization.base import Moment
from distill_system.quantization.prepare import prepare, targets_of
from distill_system.quantization.swap import quantized_modules
from tests.quantization.toys import Halves, Signs

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}


GPT2 = {"n_embd": 8, "n_layer": 2, "n_head": 2}


def model_of(architecture, task="classification", **more):
    sizes = (GPT2 if architecture == "gpt2" else SIZES) | more
    recipe = FromConfig(architecture, tokenizer="bytes", dropout=0.0, **sizes)
    return recipe.build(task=task, label_names=["a", "b"] if task == "classification" else None)[0]


def targets(model, embeddings=None, include=(), exclude=(), quantizer=None):
    return targets_of(model, quantizer or Signs(), embeddings, include, exclude, "phases.q")


def test_the_linears_of_the_body():
    names = [target.weight for target in targets(model_of("bert"))]
    assert len(names) == 12
    assert names[0] == "bert.encoder.layer.0.attention.self.query.weight"
    assert not any("classifier" in name or "pooler" in name or "embeddings" in name for name in names)


def test_a_conv1d_is_stored_the_other_way():
    found = targets(model_of("gpt2", "causal_lm"))
    assert {target.input_axis for target in found} == {0}
    fused = next(target for target in found if "c_attn" in target.weight)
    assert fused.shape == (8, 24)
    assert fused.matrix == (24, 8)


def test_a_tied_output_layer_goes_with_its_table():
    model = model_of("gpt2", "causal_lm")
    assert not any("lm_head" in target.weight for target in targets(model))
    found = targets(model, Halves())
    table = next(target for target in found if target.weight == "transformer.wte.weight")
    assert table.sharers == ("lm_head",)
    before = model.lm_head.weight
    prepare(model, found, Moment())
    assert model.lm_head.weight is before is model.transformer.wte.weight
    assert model.lm_head.site.number == model.transformer.wte.site.number
    ids = torch.tensor([[5, 6, 7]])
    logits = model(input_ids=ids).logits
    hidden = model.transformer(input_ids=ids).last_hidden_state
    table_VD = (before * 2).round().clamp(-4, 4) / 2
    torch.testing.assert_close(logits, hidden @ table_VD.t())


def test_an_untied_output_layer_is_only_taken_by_name():
    model = model_of("llama", "causal_lm", num_key_value_heads=1, tie_word_embeddings=False)
    assert not any("lm_head" in target.weight for target in targets(model))
    assert "lm_head.weight" in [target.weight for target in targets(model, include=["*"])]


def test_patterns():
    model = model_of("bert")
    assert len(targets(model, include=["*layer.0*"])) == 6
    assert len(targets(model, exclude=["*query*", "*key*"])) == 8
    assert [target.weight for target in targets(model, include=["classifier*"])] == ["classifier.weight"]
    with pytest.raises(Refusal, match=r"phases.q.include\[0\]: is '\*quarry\*', which matches none of"):
        targets(model, include=["*quarry*"])
    with pytest.raises(Refusal, match=r"phases.q.exclude\[1\]: is 'nothing'"):
        targets(model, exclude=["*query*", "nothing"])
    with pytest.raises(Refusal, match="leave nothing to quantize"):
        targets(model, exclude=["*"])


def test_embeddings_by_their_own_setting():
    found = [t for t in targets(model_of("bert"), Halves(), exclude=["*token_type*"]) if t.kind == "embedding"]
    assert [target.weight for target in found] == [
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.position_embeddings.weight",
    ]


def test_groups_that_do_not_divide_a_row():
    with pytest.raises(
        Refusal, match=r"phases.q.quantizer.group_size: is 3, which doesn't divide 8 inputs; nearest: 4"
    ):
        targets(model_of("bert"), quantizer=Signs("group", 3))
    with pytest.raises(Refusal, match=r"phases.q.embeddings.group_size: is 16, which doesn't divide 8 inputs"):
        targets(model_of("bert"), Halves("group", 16))


def test_works_without_memory():
    with torch.device("meta"):
        model = model_of("bert")
    assert len(targets(model, Halves())) == 15


def test_a_model_without_layers_needs_names():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)

    with pytest.raises(Refusal, match="name linears"):
        targets(Flat())
    assert [target.module for target in targets(Flat(), include=["*"])] == ["one"]


def test_every_target_is_swapped_once():
    model = model_of("bert")
    found = targets(model, Halves())
    prepare(model, found, Moment())
    assert [module.site.number for _, module in quantized_modules(model)].count(0) == 1
    assert len(list(quantized_modules(model))) == len(found) == 15
