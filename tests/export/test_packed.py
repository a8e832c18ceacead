"""Packed folders: the model that was packed, in few bytes; refused where weights lie on no grid, and where somebody would train or half load it."""

import dataclasses
import json
import shutil

import pytest
import torch
from torch import nn

import distill_system
from distill_system.artifacts import digest_artifact, write_passport
from distill_system.errors import Refusal
from distill_system.evaluation.load import load_model
from distill_system.evaluation.size import size
from distill_system.export.dense import load, named_tensors, save_model, verify
from distill_system.export.packed import grids_of, is_packed, pack, stored_tensors
from distill_system.export.sparse import write_sparse
from distill_system.models.grids_file import GRIDS, read_grids, write_grids
from distill_system.models.lstm import LstmConfig, LstmForSequenceClassification
from distill_system.models.packed_file import write_packed
from distill_system.models.packed_modules import PackedEmbedding, PackedLinear, packed_modules
from distill_system.models.pretrained import Pretrained
from distill_system.models.reading import folder_config, from_folder
from distill_system.models.weights import PACKED, weight_map
from distill_system.pruning.cut import cut
from tests.models import cuttable, on_grids, tiny
from tests.models.on_grids import same


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setenv("DISTILL_PACKED_KERNELS", "0")


def both(root, model, tokenizer=None, **how):
    """(plain folder, packed folder) of a model."""
    on_grids.folder(root / "model", model, tokenizer, **how)
    pack(root / "model", root / "packed")
    return root / "model", root / "packed"


def cut_model(family: str):
    model = cuttable.build(family)
    cut(model, cuttable.surgery(model, "neurons", ragged=True))
    assert model.config.reshape
    return model


def masked_language_model():
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**cuttable.WIDTHS | cuttable.TOKENS))


def lstm():
    return LstmForSequenceClassification(LstmConfig(vocab_size=64, embedding_size=32, hidden_size=16, num_labels=3))


MODELS = {
    **{family: lambda family=family: cuttable.build(family) for family in cuttable.FAMILIES},
    "llama tied": lambda: cuttable.build("llama", tie_word_embeddings=True),
    "llama untied": lambda: cuttable.build("llama", tie_word_embeddings=False),
    "bert cut": lambda: cut_model("bert"),
    "gpt2 cut": lambda: cut_model("gpt2"),
    "masked lm": masked_language_model,
    "lstm": lstm,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_model_is_the_dense_one(name, tmp_path):
    source, packed = both(tmp_path, MODELS[name]().eval())
    expected = load(source)
    found = from_folder(type(expected), packed, folder_config(packed))[0]
    assert type(found) is type(expected)
    assert packed_modules(found)
    assert not any(module.training for module in found.modules())
    for place, module in packed_modules(found).items():
        there = expected.get_submodule(place)
        assert isinstance(module, PackedEmbedding) == isinstance(there, nn.Embedding)
        assert getattr(module, "padding_idx", None) == getattr(there, "padding_idx", None)
    before, after = expected.state_dict(), found.state_dict()
    assert before.keys() == after.keys()
    assert all(same(after[key], tensor) for key, tensor in before.items())
    buffers = dict(found.named_buffers())
    assert all(same(buffers[key], tensor) for key, tensor in expected.named_buffers())  # also those that no file holds
    inputs = cuttable.inputs("vit" if name == "vit" else "bert")
    with torch.no_grad():
        one, other = expected(**inputs).logits, found(**inputs).logits
    assert float((one - other).abs().max()) <= 1e-5 * float(one.abs().max())
    assert {**size(source), "size_bytes": 0, "folder_bytes": 0} == {**size(packed), "size_bytes": 0, "folder_bytes": 0}


def test_outputs_of_texts_and_of_what_is_generated(tmp_path):
    model, tokenizer = tiny.build("gpt2", "causal_lm")
    source, packed = both(tmp_path, model.eval(), tokenizer)
    expected, found = load(source, "causal_lm"), distill_system.load(packed, "causal_lm")
    inputs = tiny.batch(tokenizer, "one", "another text")
    assert verify(packed, "causal_lm", inputs, tiny.logits(expected, inputs), tokenizer=tokenizer) <= 1e-4
    told = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(found.generate(**inputs, **told), expected.generate(**inputs, **told))
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()
    assert (found.dtype, found.device) == (expected.dtype, expected.device)
    assert found.num_parameters() > 0


def test_ties_share_one_packed_storage(tmp_path):
    for family, more in [("gpt2", {}), ("llama", {"tie_word_embeddings": True})]:
        root = tmp_path / family
        source, packed = both(root, cuttable.build(family, **more))
        assert "lm_head.weight" not in weight_map(packed)
        model = distill_system.load(packed)
        table, head = model.get_input_embeddings(), model.lm_head
        assert (type(table), type(head)) == (PackedEmbedding, PackedLinear)
        assert head.packed.data_ptr() == table.packed.data_ptr()
        assert head.scale.data_ptr() == table.scale.data_ptr()
        assert same(model.lm_head.weight, load(source).lm_head.weight.detach())


def test_memory_is_that_of_the_file(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(vocab_size=2000, **cuttable.WIDTHS | {"hidden_size": 128}))
    source, packed = both(tmp_path, model)
    loaded = distill_system.load(packed)
    tensors = [*loaded.parameters(), *loaded.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    zeros = sum(module.zero.nbytes for module in packed_modules(loaded).values())  # the file holds a byte of each
    assert sum(storages.values()) <= (packed / PACKED).stat().st_size + zeros + 20_000  # and position ids
    assert sum(storages.values()) < 0.2 * (source / "model.safetensors").stat().st_size


def test_what_lies_in_the_folder(tmp_path):
    model, tokenizer = tiny.build("llama", "causal_lm")
    on_grids.folder(tmp_path / "model", model, tokenizer)
    write_passport(tmp_path / "model", task="causal_lm", lineage=[], settings={}, metrics={})
    before = digest_artifact(tmp_path / "model")
    report = pack(tmp_path / "model", tmp_path / "packed")
    assert digest_artifact(tmp_path / "model") == before
    old, new = ({path.name for path in (tmp_path / name).iterdir()} for name in ("model", "packed"))
    assert new == old - {"model.safetensors", GRIDS, "compression.json", "README.md"} | {PACKED}
    assert {"tokenizer.json", "generation_config.json"} < new
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config == json.loads((tmp_path / "model" / "config.json").read_text()) | {"packed": 1}
    assert report.files == [tmp_path / "packed" / PACKED]
    assert report.bytes == report.files[0].stat().st_size == sum(report.by_kind.values())
    assert report.parameters == size(tmp_path / "model")["parameters"]
    assert report.ratio == report.bytes / (4 * report.parameters)
    assert (is_packed(tmp_path / "packed"), is_packed(tmp_path / "model")) == (True, False)


def test_code_of_cut_models_goes_along(tmp_path):
    _, packed = both(tmp_path, cut_model("bert"))
    assert (packed / "modeling_cut.py").is_file()


def test_grids_come_back_out_of_a_packed_folder(tmp_path):
    source, packed = both(tmp_path, cuttable.build("gpt2"))
    grids = read_grids(source)
    again = grids_of(packed)
    assert again.keys() == grids.keys()
    for name, on in grids.items():
        assert (again[name].granularity, again[name].input_axis) == (on.granularity, on.input_axis)
        assert all(same(again[name].grid.tensors()[part], tensor) for part, tensor in on.grid.tensors().items())
    assert grids_of(source).keys() == grids.keys()
    plain = dict(stored_tensors(source))
    assert all(same(plain[name], tensor) for name, tensor in stored_tensors(packed))


def test_sharded_and_sparse_sources(tmp_path):
    model = cuttable.build("bert")
    grids = on_grids.quantize(model)
    save_model(tmp_path / "shards", model, None, max_shard_bytes=8000)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    write_sparse(tmp_path / "sparse", named_tensors(model), {}, model.config, None)
    for name in ("shards", "sparse"):
        write_grids(tmp_path / name, grids)
        pack(tmp_path / name, tmp_path / f"packed {name}")
        state = distill_system.load(tmp_path / f"packed {name}").state_dict()
        assert all(same(state[key], tensor) for key, tensor in model.state_dict().items())
    one, other = (tmp_path / f"packed {name}" / PACKED for name in ("shards", "sparse"))
    assert one.read_bytes() == other.read_bytes()
    assert size(tmp_path / "sparse")["size_bytes"] == (tmp_path / "sparse" / "sparse.safetensors").stat().st_size


def test_saved_by_the_library_it_is_plain_again(tmp_path):
    from transformers import AutoModelForCausalLM

    source, packed = both(tmp_path, cuttable.build("gpt2"))
    distill_system.load(packed).save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(same(again[name], tensor) for name, tensor in load(source).state_dict().items())
    assert "packed" not in json.loads((tmp_path / "again" / "config.json").read_text())
    save_model(tmp_path / "ours", distill_system.load(packed), None)
    assert all(same(tensor, again[name]) for name, tensor in load(tmp_path / "ours").state_dict().items())


def test_tables_with_code_of_their_own_have_their_values_at_once(tmp_path):
    """OPT's positions are shifted by its own code: no packed module would do so."""
    _, packed = both(tmp_path, cuttable.build("opt"))
    model = distill_system.load(packed)
    assert type(model.model.decoder.embed_positions).__name__ == "OPTLearnedPositionalEmbedding"
    assert "model.decoder.embed_tokens" in packed_modules(model)


def test_plain_from_pretrained_finds_no_weights(tmp_path):
    from transformers import AutoModelForSequenceClassification

    _, packed = both(tmp_path, cuttable.build("bert"))
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(packed)


def test_what_can_not_be_packed(tmp_path):
    source, packed = both(tmp_path, cuttable.build("bert"))
    shutil.copytree(source, tmp_path / "off")
    model = load(source)
    model.bert.encoder.layer[1].output.dense.weight.data[3, 4] += 1e-4
    save_model(tmp_path / "off", model, None)
    write_grids(tmp_path / "off", read_grids(source))
    save_model(tmp_path / "without", model, None)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "model-00001-of-00002.safetensors").write_text("")
    for folder, target, words in [
        (packed, "new", "is packed already"),
        (tmp_path / "without", "new", f"without has no {GRIDS}: its weights lie on no grids"),
        (tmp_path / "off", "new", r"layer\.1\.output\.dense\.weight has 1 values that aren't on its grid"),
        (source, "model", r"model holds grids\.safetensors, beside which a packed model must not lie"),
        (source, "taken", "holds model-00001-of-00002"),
    ]:
        with pytest.raises(ValueError, match=words):
            pack(folder, tmp_path / target)
    assert not list((tmp_path / "new").glob("*"))
    assert sorted(path.name for path in source.iterdir()) == ["config.json", GRIDS, "model.safetensors"]


def test_zeros_with_a_sign_are_told(tmp_path):
    model = cuttable.build("bert")
    grids = on_grids.quantize(model)
    weight = model.bert.encoder.layer[0].output.dense.weight.data
    zeros = int((weight == 0).sum())
    weight[weight == 0] = -0.0
    save_model(tmp_path / "model", model, None)
    write_grids(tmp_path / "model", grids)
    assert pack(tmp_path / "model", tmp_path / "packed").negative_zeros == zeros > 0
    assert torch.equal(distill_system.load(tmp_path / "packed").bert.encoder.layer[0].output.dense.weight, weight)


def test_it_is_not_trained(tmp_path):
    model, tokenizer = tiny.build("bert")
    _, packed = both(tmp_path, model, tokenizer)
    recipe = Pretrained(str(packed))
    words = "a packed model, whose few bits can't be trained; take the model it was packed from"
    (problem,) = recipe.problems("phases.a.model", task="classification", artifacts_known=set())
    assert (problem.key, words in problem.message) == ("phases.a.model.name", True)
    with pytest.raises(Refusal, match=words):
        recipe.build(task="classification", label_names=tiny.LABELS)
    assert not any(parameter.requires_grad for parameter in distill_system.load(packed).parameters())


def test_models_and_files_that_don_t_belong_together(tmp_path):
    source, packed = both(tmp_path, cuttable.build("bert"))
    for changes, words in [
        ({"hidden_size": 64}, r"of shape \[512, 32\], its config says \[512, 64\]"),
        ({"vocab_size": 65}, r"word_embeddings.weight of shape \[64, 32\], its config says \[65, 32\]"),
        ({"num_hidden_layers": 4}, "no whole model: missing keys"),
        ({"num_hidden_layers": 2}, "no whole model: unexpected keys"),
    ]:
        config = json.loads((source / "config.json").read_text())
        (packed / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises((ValueError, RuntimeError), match=words):
            distill_system.load(packed)
    grids = read_grids(source)
    shutil.copyfile(source / "config.json", packed / "config.json")
    more = on_grids.quantize(nn.Sequential(nn.Linear(4, 4)))
    tensors = {**dict(stored_tensors(source)), "0.weight": more["0.weight"].grid.decode(torch.ones(4, 4))}
    write_packed(packed, tensors.items(), grids | more)
    with pytest.raises(RuntimeError, match=r"no whole model: unexpected keys \['0.weight'\]"):
        distill_system.load(packed)
    name = "bert.encoder.layer.0.attention.self.query.weight"  # square: its shape is the same the other way round
    weight, on = load(source).get_parameter(name).detach(), grids[name]
    turned = dataclasses.replace(on, input_axis=0)
    tensors = dict(stored_tensors(source)) | {name: weight.t().contiguous()}
    write_packed(packed, tensors.items(), grids | {name: turned})
    with pytest.raises(ValueError, match="the other way round"):
        distill_system.load(packed)


def test_a_damaged_folder_is_refused_by_everyone(tmp_path):
    _, packed = both(tmp_path, cuttable.build("bert"))
    content = bytearray((packed / PACKED).read_bytes())
    content[-100] ^= 1
    (packed / PACKED).write_bytes(bytes(content))
    for read in (distill_system.load, size, lambda folder: load_model(folder, "classification")):
        with pytest.raises(ValueError, match="has another checksum than when it was written"):
            read(packed)


def test_another_head_is_not_made_up(tmp_path):
    _, packed = both(tmp_path, cuttable.build("bert"))
    with pytest.raises(Refusal, match="has no weights for"):
        load_model(packed, "causal_lm")
    assert isinstance(load_model(packed, "classification"), nn.Module)
