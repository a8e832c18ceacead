"""Models from another model's layers: equal to a model cut by hand, for every family; wrong choices refused in words."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distill_system.errors import Refusal
from distill_system.models.anatomy import UnknownAnatomy, cut_config, even_layers, find_anatomy
from distill_system.models.from_layers import FromLayers, cut_model
from distill_system.models.pretrained import Pretrained
from tests.models import tiny

NAMES = {"task": "classification", "artifacts_known": {"teacher", "helper"}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("model") / "bert")


def messages(recipe, **more):
    return [str(problem) for problem in recipe.problems("m", **NAMES | more)]


@pytest.mark.parametrize(
    ("source_layers", "wanted", "expected"),
    [
        (6, 2, [1, 4]),
        (12, 6, [1, 3, 5, 7, 9, 11]),
        (12, 3, [2, 6, 10]),
        (6, 4, [0, 2, 3, 5]),
        (4, 4, [0, 1, 2, 3]),
        (5, 1, [2]),
    ],
)
def test_even_layers(source_layers, wanted, expected):
    assert even_layers(source_layers, wanted) == expected


@pytest.mark.parametrize(("architecture", "task"), tiny.TASKS)
@pytest.mark.parametrize("layers", [[1, 3], [2, 0, 1]])
def test_equal_to_a_model_cut_by_hand(architecture, task, layers):
    model, tokenizer = tiny.build(architecture, task)
    cut = cut_model(model, layers, task=task)
    stack = tiny.STACKS[architecture]
    by_hand = copy.deepcopy(model)
    kept = nn.ModuleList(by_hand.get_submodule(stack)[i] for i in layers)
    by_hand.set_submodule(stack, kept)
    by_hand.config.num_hidden_layers = len(layers)
    for position, layer in enumerate(kept):  # keys of the cache
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position
    inputs = tiny.batch(tokenizer)
    assert torch.equal(tiny.logits(cut, inputs), tiny.logits(by_hand, inputs))
    assert not torch.equal(tiny.logits(cut, inputs), tiny.logits(model, inputs))
    assert cut.config.num_hidden_layers == len(layers)
    assert find_anatomy(cut).count == len(layers)
    assert model.config.num_hidden_layers == 4, "the source was changed"


@pytest.mark.parametrize(
    ("architecture", "task", "embeddings", "head"),
    [
        ("bert", "classification", ("bert.embeddings",), ("classifier",)),
        ("roberta", "classification", ("roberta.embeddings",), ("classifier",)),
        ("distilbert", "classification", ("distilbert.embeddings",), ("pre_classifier", "classifier")),
        ("gpt2", "causal_lm", ("transformer.wte", "transformer.wpe"), ("lm_head",)),
        ("llama", "causal_lm", ("model.embed_tokens",), ("lm_head",)),
        ("llama", "classification", ("model.embed_tokens",), ("score",)),
    ],
)
def test_anatomy(architecture, task, embeddings, head):
    model, _ = tiny.build(architecture, task)
    found = find_anatomy(model)
    assert (found.layers, found.count) == (tiny.STACKS[architecture], 4)
    assert found.embeddings == embeddings
    assert found.head == head


def test_a_vision_transformer():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(ViTConfig(image_size=28, patch_size=14, num_channels=1, **sizes))
    found = find_anatomy(model)
    assert found.count == 3
    assert found.embeddings == ("vit.embeddings",)
    assert found.head == ("classifier",)


def test_shared_layers_are_refused_in_words():
    from transformers import AlbertConfig, AlbertForSequenceClassification

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "embedding_size": 8,
    }
    model = AlbertForSequenceClassification(AlbertConfig(vocab_size=20, **sizes))
    with pytest.raises(UnknownAnatomy, match="shares weights between its 3 layers"):
        find_anatomy(model)


def test_two_stacks_are_refused_in_words():
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    model = BartForConditionalGeneration(BartConfig(vocab_size=20, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes))
    with pytest.raises(UnknownAnatomy, match="several stacks"):
        find_anatomy(model)


def test_lists_in_the_config_are_cut_too():
    from transformers import Qwen2Config

    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = Qwen2Config(
        num_hidden_layers=4, layer_types=kinds, sliding_window=8, use_sliding_window=True, eos_token_id=[1, 2, 3, 4]
    )
    cut = cut_config(config, [1, 2])
    assert cut.layer_types == ["sliding_attention", "full_attention"]
    assert cut.eos_token_id == [1, 2, 3, 4]
    assert cut.num_hidden_layers == 2
    assert config.layer_types == kinds


def test_a_phase_is_cut_with_its_embeddings_and_head(source):
    recipe = FromLayers(phase="teacher", num_layers=2, dropout=0.0)
    assert messages(recipe) == []
    assert recipe.depends_on() == ["teacher"]
    assert recipe.max_positions({}) is None
    assert recipe.max_positions({"teacher": source}) == 64
    model, tokenizer = recipe.build(task="classification", label_names=tiny.LABELS, artifacts={"teacher": source})
    teacher, _ = tiny.build("bert")
    expected = cut_model(teacher, [1, 3], task="classification")
    assert model.config.id2label == dict(enumerate(tiny.LABELS))
    assert model.config.hidden_dropout_prob == 0.0
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert len(tokenizer) == 260
    assert not model.training


def test_a_nested_recipe_and_shared_embeddings(source):
    recipe = FromLayers(source=Pretrained(str(source)), layers=[3], share_embeddings=True, frozen=["classifier.*"])
    assert messages(recipe) == []
    model, _ = recipe.build(task="classification", label_names=tiny.LABELS)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "bert.embeddings.word_embeddings.weight" in frozen
    assert "classifier.weight" in frozen
    assert all(name.startswith(("bert.embeddings.", "classifier.")) for name in frozen)


def test_tied_heads_stay_tied():
    model, _ = tiny.build("gpt2", "causal_lm")
    cut = cut_model(model, [0], task="causal_lm")
    assert cut.lm_head.weight is cut.transformer.wte.weight


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, r"m: has no source; add m.phase"),
        ({"phase": "teacher", "name": "x"}, r"m: phase and name are set"),
        ({"phase": "techer"}, r"m.phase: is 'techer', .*did you mean 'teacher'"),
        ({"phase": "teacher", "num_layers": None}, r"m.num_layers: is null"),
        ({"phase": "teacher", "layers": [1, 4]}, None),
        ({"phase": "teacher", "layers": [1, 4, 5]}, r"m.num_layers: is 2, and m.layers names 3"),
        ({"phase": "teacher", "layers": [4, 4]}, r"m.layers: .*twice"),
        ({"phase": "teacher", "layers": [], "num_layers": None}, r"m.layers: is empty"),
        ({"phase": "teacher", "layers": [-1, 0]}, r"m.layers\[0\]: is -1, must be >= 0"),
        ({"name": "SOURCE", "layers": [1, 4]}, r"m.layers\[1\]: is 4, the source has 4 layers: 0 to 3"),
        ({"name": "SOURCE", "num_layers": 5}, r"m.num_layers: is 5, the source has 4 layers"),
        ({"name": "./nowhere"}, r"m.name: .*no such folder"),
    ],
)
def test_wrong_choices(source, settings, expected):
    settings = {"num_layers": 2} | settings
    if settings.get("name") == "SOURCE":
        settings["name"] = str(source)
    found = messages(FromLayers(**settings))
    assert len(found) == (expected is not None), found
    assert expected is None or re.match(expected, found[0]), found


def test_layers_of_a_phase_are_checked_when_it_is_there(source):
    with pytest.raises(Refusal, match=r"m.layers\[1\]: is 7, the source has 4 layers"):
        FromLayers(phase="teacher", layers=[0, 7]).build(
            task="classification", label_names=tiny.LABELS, artifacts={"teacher": source}, key="m"
        )


def test_a_model_without_layers():
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(num_hidden_layers=2)
    with pytest.raises(UnknownAnatomy, match="no list of"):
        find_anatomy(model)
