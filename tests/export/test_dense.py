"""Writing models: plain `from_pretrained` gives the same outputs, shards stay small, tied weights are written once, a wrong copy is noticed."""

import gc
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill_system.export.dense import _own, load, named_tensors, save_model, tied_duplicates, verify, write_model
from distill_system.models.weights import folder_problems
from tests.models import tiny


@pytest.mark.parametrize(("architecture", "task"), tiny.TASKS)
@pytest.mark.parametrize("shard_bytes", [5e9, 20_000])
def test_reloading_gives_the_same_outputs_bit_for_bit(tmp_path, architecture, task, shard_bytes):
    model, tokenizer = tiny.build(architecture, task)
    inputs = tiny.batch(tokenizer)
    expected = tiny.logits(model, inputs)
    files = save_model(tmp_path, model, tokenizer, shard_bytes)
    assert (len(files) > 1) == (shard_bytes < 1e9)
    assert (
        verify(tmp_path, task, inputs | {"labels": torch.zeros(2), "valid": torch.ones(2)}, expected, 0.0, tokenizer)
        == 0
    )
    assert folder_problems(tmp_path, "m") == []
    reloaded = load(tmp_path, task)
    assert reloaded.dtype == torch.float32
    assert reloaded.config.architectures == [type(model).__name__]


def test_shards(tmp_path):
    model, tokenizer = tiny.build("bert")
    files = save_model(tmp_path, model, tokenizer, 20_000)
    count = len(files)
    assert [path.name for path in files] == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    sizes = {path: [t.nbytes for t in load_file(path).values()] for path in files}
    assert all(sum(size) <= 20_000 or len(size) == 1 for size in sizes.values())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert (
        index["metadata"]["total_size"]
        == sum(map(sum, sizes.values()))
        == sum(t.nbytes for _, t in named_tensors(model))
    )
    assert index["weight_map"].keys() == dict(named_tensors(model)).keys()


def test_writing_again_leaves_nothing_of_the_old_weights(tmp_path):
    model, tokenizer = tiny.build("bert")
    save_model(tmp_path, model, tokenizer, 20_000)
    save_model(tmp_path, model, tokenizer)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    save_model(tmp_path, model, tokenizer, 20_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.glob(".part-*"))


@pytest.mark.parametrize(("architecture", "tied"), [("gpt2", True), ("llama", False), ("llama", True)])
def test_tied_heads_are_written_once(tmp_path, architecture, tied):
    model, tokenizer = tiny.build(architecture, "causal_lm", tie_word_embeddings=tied)
    assert (tied_duplicates(model) == {"lm_head.weight"}) == tied
    save_model(tmp_path, model, tokenizer)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied
    reloaded = load(tmp_path, "causal_lm")
    assert (reloaded.lm_head.weight is reloaded.get_input_embeddings().weight) == tied
    assert torch.equal(reloaded.lm_head.weight, model.lm_head.weight)


def test_only_one_shard_is_held_at_a_time(tmp_path):
    model, tokenizer = tiny.build("bert")
    alive: list[weakref.ref] = []
    most = 0

    def stream():
        nonlocal most
        for name, tensor in named_tensors(model):
            fetched = tensor.clone()
            alive.append(weakref.ref(fetched))
            most = max(most, sum(t.nbytes for ref in alive if (t := ref()) is not None))
            yield name, fetched
            del fetched

    gc.collect()
    write_model(tmp_path, stream(), model.config, tokenizer, 8_000)
    total = sum(t.nbytes for _, t in named_tensors(model))
    largest = max(t.nbytes for _, t in named_tensors(model))
    assert most <= 8_000 + 2 * largest < total / 2


def test_views_do_not_keep_their_buffer_and_strides_do_not_matter(tmp_path):
    model, _ = tiny.build("bert")
    flat = torch.arange(100.0)
    tensors = [
        ("view", flat[10:20]),
        ("transposed", flat.view(10, 10).T),
        ("scalar", torch.tensor(3.0)),
        ("same", flat[10:20]),
    ]
    write_model(tmp_path, tensors, model.config, None)
    written = load_file(tmp_path / "model.safetensors")
    assert torch.equal(written["view"], torch.arange(10.0, 20.0))
    assert torch.equal(written["transposed"], flat.view(10, 10).T)
    assert written["scalar"].shape == ()
    assert (tmp_path / "model.safetensors").stat().st_size < 1500
    assert _own(flat[10:20]).untyped_storage().nbytes() == 40
    assert _own(flat).data_ptr() == flat.data_ptr()


@pytest.mark.parametrize("limit", [5e9, 1])
def test_a_name_that_comes_twice_is_refused_and_nothing_is_left(tmp_path, limit):
    model, _ = tiny.build("bert")
    with pytest.raises(ValueError, match="a was handed over twice"):
        write_model(tmp_path, [("a", torch.zeros(1)), ("a", torch.zeros(1))], model.config, None, limit)
    with pytest.raises(ValueError, match="without tensors"):
        write_model(tmp_path, [], model.config, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("architecture", "task"), [("bert", "classification"), ("llama", "causal_lm")])
def test_a_wrong_copy_is_noticed(tmp_path, architecture, task):
    model, tokenizer = tiny.build(architecture, task)
    inputs = tiny.batch(tokenizer)
    expected = tiny.logits(model, inputs)
    save_model(tmp_path, model, tokenizer)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "layer" in name and name.endswith("weight") and weights[name].ndim == 2)
    save_file(weights | {name: weights[name].flip(0)}, path, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="differ by up to"):
        verify(tmp_path, task, inputs, expected)
    save_file({n: w for n, w in weights.items() if n != name}, path, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=f"missing keys .*{name}"):
        verify(tmp_path, task, inputs, expected)
    save_file(weights | {"stray": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"unexpected keys .*stray"):
        verify(tmp_path, task, inputs, expected)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="differ by up to nan"):
        verify(tmp_path, task, inputs, expected * float("nan"))
    with pytest.raises(RuntimeError, match="expected"):
        verify(tmp_path, task, inputs, expected[:1])


def test_padded_positions_of_a_language_model_do_not_count(tmp_path):
    model, tokenizer = tiny.build("llama", "causal_lm")
    inputs = tiny.batch(tokenizer, "a", "longer text")
    save_model(tmp_path, model, tokenizer)
    expected = tiny.logits(model, inputs)
    expected[~inputs["attention_mask"].bool()] = 7.0
    assert verify(tmp_path, "causal_lm", inputs, expected) == 0


def test_a_tokenizer_that_comes_back_as_another_is_noticed(tmp_path):
    from transformers import ByT5Tokenizer

    model, tokenizer = tiny.build("bert")
    inputs = tiny.batch(tokenizer)
    save_model(tmp_path, model, tokenizer)
    with pytest.raises(RuntimeError, match="tokenizer"):
        verify(tmp_path, "classification", inputs, tiny.logits(model, inputs), tokenizer=ByT5Tokenizer())


def test_generation_settings_travel_with_a_language_model(tmp_path):
    model, tokenizer = tiny.build("llama", "causal_lm")
    save_model(tmp_path, model, tokenizer)
    assert load(tmp_path, "causal_lm").generation_config.eos_token_id == 1
