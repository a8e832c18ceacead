"""Models from sizes: random by the seed, sized by the tokenizer, wrong settings named with the nearest right one."""

import re

import pytest
import torch

from distill_system.errors import Refusal
from distill_system.models import architectures
from distill_system.models.from_config import FromConfig
from distill_system.models.tokenizers import byte_tokenizer
from distill_system.models.weights import max_positions
from tests.models import tiny


def messages(recipe, task="causal_lm"):
    return [str(problem) for problem in recipe.problems("m", task=task, artifacts_known={"teacher"})]


@pytest.mark.parametrize(("architecture", "task"), tiny.TASKS)
def test_each_family(architecture, task):
    recipe = tiny.recipe(architecture)
    assert messages(recipe, task) == []
    labels = tiny.LABELS if task == "classification" else None
    model, tokenizer = recipe.build(task=task, label_names=labels, seed=5)
    again, _ = recipe.build(task=task, label_names=labels, seed=5)
    other, _ = recipe.build(task=task, label_names=labels, seed=6)
    weights, same, different = (m.get_input_embeddings().weight for m in (model, again, other))
    assert torch.equal(weights, same)
    assert not torch.equal(weights, different)
    assert model.config.vocab_size == len(tokenizer) == 260
    assert (model.config.pad_token_id, model.config.eos_token_id, model.config.bos_token_id) == (0, 1, 259)
    inputs = tiny.batch(tokenizer, "a", "a longer text")
    alone = tiny.batch(tokenizer, "a")
    padded, single = tiny.logits(model, inputs)[0], tiny.logits(model, alone)[0]
    torch.testing.assert_close(padded[: len(single)], single, rtol=1e-5, atol=1e-5)  # padding changes nothing


def test_the_random_state_outside_is_left_alone():
    before = torch.random.get_rng_state()
    tiny.recipe("bert").build(task="classification", num_labels=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_labels_by_number():
    model, _ = tiny.recipe("bert").build(task="classification", num_labels=4)
    assert model.config.id2label == {i: f"LABEL_{i}" for i in range(4)}


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "roberta"])
def test_dropout_reaches_every_layer(architecture):
    recipe = FromConfig(
        architecture, tokenizer="bytes", dropout=0.3, max_position_embeddings=64, **tiny.SIZES[architecture]
    )
    model, _ = recipe.build(task="classification", num_labels=2)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"architecture": "lama"}, "m.architecture: is 'lama', .*did you mean 'llama'"),
        ({"architecture": "vit"}, "m.architecture: is 'vit', which has no model for causal_lm"),
        ({"hiden_size": 64}, "m.hiden_size: is not a setting of llama .*did you mean 'hidden_size'"),
        ({"hidden_size": "64"}, "m.hidden_size: is '64', must be a whole number"),
        ({"num_hidden_layers": 0}, "m.num_hidden_layers: is 0, must be >= 1"),
        ({"hidden_size": 66}, "m: is a llama that has hidden_size 66, which 4 attention heads don't divide"),
        ({"num_key_value_heads": 3}, "m: is a llama that has num_attention_heads 4, which num_key_value_heads 3"),
        ({"id2label": {0: "a"}}, "m.id2label: can't be set here"),
        ({"architecture": "bert"}, "m.is_decoder: is false: a bert that .*add m.is_decoder=true"),
        ({"architecture": "bert", "is_decoder": True}, None),
        ({"architecture": "gpt2"}, None),
        ({"tokenizer": None}, "m.tokenizer: or m.tokenizer_phase must be set"),
        ({"tokenizer_phase": "teacher"}, "m.tokenizer: or m.tokenizer_phase must be set, and not both"),
        ({"tokenizer": None, "tokenizer_phase": "techer"}, "m.tokenizer_phase: is 'techer', .*'teacher'"),
        ({"tokenizer": "./nowhere"}, "m.tokenizer: is './nowhere': there is no such folder"),
        ({"tokenizer": None, "tokenizer_phase": "teacher"}, None),
        ({"num_key_value_heads": None}, None),
    ],
)
def test_settings(settings, expected):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    found = messages(FromConfig(**{"architecture": "llama", "tokenizer": "bytes"} | sizes | settings))
    assert len(found) == (expected is not None), found
    assert expected is None or re.match(expected, found[0]), found


def test_several_problems_come_together():
    recipe = FromConfig("llama", tokenizer="bytes", hiden_size=1, num_hidden_layers=-1)
    assert len(messages(recipe)) == 2
    with pytest.raises(Refusal) as caught:
        recipe.build(task="causal_lm")
    assert len(caught.value.problems) == 2


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    with pytest.raises(Refusal, match="must be >= 260"):
        tiny.recipe("bert", vocab_size=100).build(task="classification", num_labels=2)
    model, _ = tiny.recipe("bert", vocab_size=320).build(task="classification", num_labels=2)
    assert model.get_input_embeddings().weight.shape[0] == 320


def test_the_tokenizer_of_a_phase(tmp_path):
    folder = tiny.folder(tmp_path / "teacher")
    recipe = FromConfig("bert", tokenizer_phase="teacher", **tiny.SIZES["bert"])
    assert recipe.depends_on() == ["teacher"]
    model, tokenizer = recipe.build(task="classification", num_labels=2, artifacts={"teacher": folder})
    assert tokenizer("naïve")["input_ids"] == byte_tokenizer()("naïve")["input_ids"]
    assert model.config.vocab_size == 260


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "llama"])
def test_the_longest_sequence_that_is_promised_works_and_no_longer_one(architecture):
    recipe = (
        tiny.recipe(architecture, max_position_embeddings=None) if architecture == "gpt2" else tiny.recipe(architecture)
    )
    limit = recipe.max_positions({})
    assert limit == {"bert": 64, "roberta": 62, "gpt2": 1024, "llama": 64}[architecture]
    model, _ = recipe.build(task="classification", num_labels=2)
    ids = torch.full((1, limit), 5)
    assert tiny.logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).isfinite().all()
    if architecture != "llama":  # rotary positions have no table to run out of
        longer = torch.full((1, limit + 2), 5)
        with pytest.raises((IndexError, RuntimeError)):
            tiny.logits(model, {"input_ids": longer, "attention_mask": torch.ones_like(longer)})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"n_positions": 1024}, 1024),
        ({"model_type": "t5"}, None),
    ],
)
def test_max_positions(config, expected):
    assert max_positions(config) == expected


def test_bytes():
    tokenizer = byte_tokenizer()
    text = "Hé  llo\n\t wörld 🙂"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 259
    assert ids[-1] == 1
    assert ids[1:-1] == [byte + 3 for byte in text.encode()]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("", add_special_tokens=False)["input_ids"] == []


def test_reading_the_sources_of_transformers():
    for name in ("bert", "roberta", "distilbert", "gpt2", "llama", "qwen3", "mistral"):
        settings = architectures.settings_of(name)
        assert settings is not None
        assert {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"} <= settings.keys(), name
    assert architectures.settings_of("gpt2")["n_embd"] is architectures.settings_of("gpt2")["hidden_size"]
    assert architectures.with_defaults("gpt2", {"n_embd": 8})["hidden_size"] == 8
    assert architectures.settings_of("no such thing") is None
    assert len(architectures.config_classes()) > 100
