"""Cut and sparse folders as what later phases build from: every recipe takes them, with the labels, layers and dropout that it says."""

import copy
import pickle

import pytest
import torch

import distill_system
from distill_system.export import dense
from distill_system.export.dense import named_tensors, verify
from distill_system.export.sparse import write_sparse
from distill_system.models.from_layers import FromLayers
from distill_system.models.from_phase import FromPhase
from distill_system.models.pretrained import Pretrained
from distill_system.models.reshape import reshape, reshaped
from distill_system.models.weights import weight_map
from distill_system.pruning.base import Surgery
from distill_system.pruning.cut import cut
from tests.models import cuttable, tiny

CLASSES = {"task": "classification", "label_names": tiny.LABELS}


def cut_bert(ragged: bool = False):
    """A BERT of four layers with one head of two, and its tokenizer; with `ragged` only the first layer is cut."""
    model, tokenizer = tiny.build("bert")
    cut(model, Surgery("heads", {f"layer {i} heads": [1] for i in range(1 if ragged else 4)}))
    return model, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, tokenizer = cut_bert()
    path = tmp_path_factory.mktemp("cut") / "model"
    dense.save_model(path, model, tokenizer)
    return path


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """Heads cut and most of the feed-forward zero."""
    model, tokenizer = cut_bert()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.dense.weight[:, 4:] = 0.0
    model.config.architectures = [type(model).__name__]
    path = tmp_path_factory.mktemp("sparse") / "model"
    write_sparse(path, named_tensors(model), {}, model.config, tokenizer)
    assert not (path / "model.safetensors").exists()
    return path


@pytest.fixture(params=["folder", "sparse"])
def source(request):
    return request.getfixturevalue(request.param)


def test_a_phase_goes_on_with_a_cut_model(source):
    recipe = FromPhase("first", dropout=0.3, frozen=["*embeddings*"])
    model, tokenizer = recipe.build(artifacts={"first": source}, **CLASSES)
    inputs = tiny.batch(tokenizer)
    whole = distill_system.load(source)
    assert torch.equal(tiny.logits(model, inputs), tiny.logits(whole, inputs))
    assert model.bert.encoder.layer[3].attention.self.query.weight.shape == (16, 32)
    assert model.config.hidden_dropout_prob == 0.3
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        n for n, _ in model.named_parameters() if "embeddings" in n
    }
    assert model.config.architectures == ["BertForSequenceClassification"]
    assert not hasattr(model.config, "auto_map")
    assert verify(source, "classification", inputs, tiny.logits(model, inputs)) == 0
    assert recipe.max_positions({"first": source}) == 64
    assert recipe.config({"first": source})["reshape"]


def test_other_labels_get_another_head_and_the_rest_stays(source):
    model, tokenizer = Pretrained(name=str(source)).build(task="classification", label_names=["up", "down"])
    assert model.classifier.out_features == 2
    name = "bert.encoder.layer.0.attention.self.value.weight"
    assert torch.equal(model.get_parameter(name), distill_system.load(source).get_parameter(name))
    reordered, _ = Pretrained(name=str(source)).build(task="classification", label_names=tiny.LABELS[::-1])
    inputs = tiny.batch(tokenizer)
    assert torch.equal(
        tiny.logits(reordered, inputs).flip(1), tiny.logits(distill_system.load(source, "classification"), inputs)
    )


def test_layers_of_a_cut_model(source, tmp_path):
    recipe = FromLayers(phase="first", layers=[3, 1])
    model, tokenizer = recipe.build(artifacts={"first": source}, **CLASSES)
    whole = distill_system.load(source)
    for place, layer in enumerate([3, 1]):
        expected = whole.bert.encoder.layer[layer].state_dict()
        found = model.bert.encoder.layer[place].state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert {name.split(".")[3] for name in model.config.reshape["modules"]} == {"0", "1"}
    dense.save_model(tmp_path, model, tokenizer)
    inputs = tiny.batch(tokenizer)
    assert torch.equal(tiny.logits(distill_system.load(tmp_path), inputs), tiny.logits(model, inputs))


def test_layers_that_were_never_cut_are_plain_again(tmp_path):
    model, tokenizer = cut_bert(ragged=True)
    dense.save_model(tmp_path / "ragged", model, tokenizer)
    rest, _ = FromLayers(phase="first", layers=[1, 2]).build(artifacts={"first": tmp_path / "ragged"}, **CLASSES)
    assert not hasattr(rest.config, "reshape")
    dense.save_model(tmp_path / "ragged", rest, tokenizer)  # over the cut one: its code goes
    assert not (tmp_path / "ragged" / dense.CODE).exists()


def test_problems_of_such_folders_are_told_without_torch(folder, sparse, tmp_path):
    for path in (folder, sparse):
        assert Pretrained(name=str(path)).problems("m", task="classification", artifacts_known=set()) == []
    assert weight_map(sparse).keys() == weight_map(folder).keys()
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in sparse.iterdir():
        data = path.read_bytes()
        (broken / path.name).write_bytes(data[:-5] if path.suffix == ".safetensors" else data)
    (problem,) = Pretrained(name=str(broken)).problems("m", task="classification", artifacts_known=set())
    assert problem.key == "m.name"
    assert "whose sparse.safetensors is truncated" in problem.message
    with pytest.raises(ValueError, match=r"sparse\.safetensors"):
        distill_system.load(broken)


def test_a_sparse_language_model_keeps_how_it_generates(tmp_path):
    model, tokenizer = tiny.build("llama", "causal_lm")
    model.generation_config.max_new_tokens = 3
    model.config.architectures = [type(model).__name__]
    write_sparse(tmp_path, named_tensors(model), {}, model.config, tokenizer, model.generation_config)
    loaded = distill_system.load(tmp_path, "causal_lm")
    assert loaded.generation_config.max_new_tokens == 3
    inputs = tiny.batch(tokenizer)
    assert torch.equal(tiny.logits(loaded, inputs), tiny.logits(model, inputs))


def test_an_empty_folder_and_an_unknown_one_are_no_models(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        distill_system.load(tmp_path)
    model, tokenizer = tiny.build("bert")
    dense.save_model(tmp_path, model, tokenizer)
    model.config.architectures = ["Unheard"]
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="name its task"):
        distill_system.load(tmp_path)
    assert distill_system.load(tmp_path, "classification").config.model_type == "bert"


def test_a_literal_record():
    model = cuttable.build("gpt2")
    linear = model.transformer.h[0].mlp.c_fc  # [inputs, outputs]
    before = linear.weight.detach().clone()
    linear.weight.requires_grad_(False)
    reshape(
        model,
        {"modules": {"transformer.h.0.mlp.c_fc": [5, 32]}, "attributes": {"transformer.h.0.attn": {"split_size": 24}}},
    )
    assert torch.equal(linear.weight, before[:, :5])
    assert not linear.weight.requires_grad
    assert (linear.nf, linear.nx, linear.bias.shape) == (5, 32, (5,))
    assert model.transformer.h[0].attn.split_size == 24


def test_cut_models_can_be_copied_and_pickled():
    model, tokenizer = cut_bert()
    assert type(model) is reshaped(type(model).plain)
    inputs = tiny.batch(tokenizer)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied) is type(model)
        assert torch.equal(tiny.logits(copied, inputs), tiny.logits(model, inputs))
