"""`distill export` of quantized phases: packed, plain, sparse, ONNX with codes, torchao."""

import json
import re

import pytest
import torch

from distill_system import cli
from distill_system.artifacts import Artifact, write_passport
from distill_system.evaluation.size import size as size_of
from distill_system.export.dense import load, save_model
from distill_system.export.packed import pack
from distill_system.models.grid import Granularity, Grid, OnGrid
from distill_system.models.grids_file import read_grids, write_grids
from distill_system.models.input_steps import detach_steps
from distill_system.models.packing import pack_rows
from tests.models import on_grids, tiny


def quantized_phase(root, architecture: str = "bert", task: str = "classification", quantized=None, **how):
    """A finished phase whose model lies on grids."""
    model, tokenizer = tiny.build(architecture, task)
    folder = root / "run" / "quantize" / "model"
    if quantized:
        model.config.quantized = quantized
    on_grids.folder(folder, model, tokenizer, **how)
    write_passport(folder, task=task, lineage=[{"phase": "quantize"}], settings={"lr": 1}, metrics={"accuracy": 0.5})
    return folder.parent


def test_packed_and_back_to_dense(tmp_path, capsys):
    source = quantized_phase(tmp_path)
    assert cli.main(["export", str(source), "format=packed"]) == 0
    out = capsys.readouterr().out
    packed, dense = source / "packed", source / "model"
    size, whole = (packed / "packed.safetensors").stat().st_size, 4 * size_of(dense)["parameters"]
    assert out.startswith(
        f"{packed}:\n  {size:,} bytes of weights, {size / whole:.4f} (1/{whole / size:.1f}) of the {whole:,}"
    )
    assert "28 of 73 tensors are packed" in out
    assert sum(int(n.replace(",", "")) for n in re.findall(r"(?:codes|scales|whole|header) ([\d,]+)", out)) == size
    assert not list(packed.glob("model*.safetensors"))
    artifact, before = Artifact.read(packed), Artifact.read(dense)
    assert (artifact.is_intact(), before.is_intact()) == (True, True)
    assert artifact.passport["format"] == "packed"
    assert artifact.passport["exported_from"] == before.digest
    assert artifact.passport["size_bytes"] < before.passport["size_bytes"]
    assert 'model = distill_system.load("path/to/this/folder")\n```' in (packed / "README.md").read_text()

    assert cli.main(["export", str(packed), "format=dense", f"out={tmp_path / 'again'}"]) == 0
    for name in ("model.safetensors", "grids.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (dense / name).read_bytes()
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config == json.loads((dense / "config.json").read_text())
    assert cli.main(["export", str(tmp_path / "again"), "format=packed"]) == 0
    assert (tmp_path / "again-packed" / "packed.safetensors").read_bytes() == (
        packed / "packed.safetensors"
    ).read_bytes()
    assert not list(tmp_path.rglob(".part-*"))


def test_what_a_packed_folder_can_not_become(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    source = quantized_phase(tmp_path)
    assert cli.main(["export", str(source), "format=packed"]) == 0
    packed = source / "packed"
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    for form, words in [
        ("packed", f"PATH: is '{packed}', which can't be packed: {packed} is packed already"),
        (
            "onnx",
            f"PATH: is '{packed}', a packed model, of which onnx can't be made; take the model it was packed from",
        ),
    ]:
        assert cli.main(["export", str(packed), f"format={form}"]) == 2
        assert words in capsys.readouterr().err
    content = bytearray((packed / "packed.safetensors").read_bytes())
    content[-1] ^= 1
    (packed / "packed.safetensors").write_bytes(bytes(content))
    assert cli.main(["export", str(packed), "format=dense"]) == 2
    assert f"PATH: is '{packed}', whose weights can't be read: " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_grids_go_along_into_plain_and_sparse_copies(tmp_path):
    source = quantized_phase(tmp_path)
    weight = "bert.embeddings.word_embeddings.weight"
    for form in ("dense", "sparse"):
        model = load(source / "model", "classification")
        model.get_parameter(weight).data.zero_()  # zeros enough for a sparse copy
        save_model(source / "model", model, None)
        zeros = OnGrid(Grid(3, torch.ones(1, 1), torch.ones(1, 1)), Granularity("tensor"))
        write_grids(source / "model", {weight: zeros})
        assert cli.main(["export", str(source), f"format={form}"]) == 0
        assert list(read_grids(source / form)) == [weight]
        pack(source / form, tmp_path / f"packed-{form}")
        assert not load(tmp_path / f"packed-{form}").get_submodule(weight.removesuffix(".weight")).weight.any()


def test_onnx_of_a_quantized_phase_that_rounds_its_inputs(tmp_path, capsys):
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    inputs = {"bits": 3, "steps": {"bert.pooler.dense": 0.5}}
    source = quantized_phase(tmp_path, body=256, quantized={"activations": inputs})
    weight, folder = "bert.encoder.layer.1.output.dense.weight", source / "model"
    grids, model = read_grids(folder), load(folder)
    row = Granularity("row")
    grids[weight] = OnGrid(on_grids.nearest(model.get_parameter(weight).detach(), 3, levels=True), row)
    on_grids.put(model.get_parameter(weight), grids[weight], (torch.arange(32 * 48).view(32, 48) % 3).to(torch.uint8))
    save_model(folder, model, tiny.build("bert")[1])
    write_grids(folder, grids)
    assert cli.main(["export", str(source), "format=onnx"]) == 0
    out = capsys.readouterr().out
    assert "27 of 28 quantized matrices lie in it as codes\n" in out
    assert f"as floats, because it has levels that aren't evenly spaced: {weight}\n" in out
    path = source / "onnx" / "model.onnx"
    nodes = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert nodes.count("Round") == 1
    assert nodes.count("DequantizeLinear") >= 27
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = tiny.batch(tiny.build("bert")[1], "one", "another")
    found = torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0])
    rounds, plain = load(folder), load(folder)
    torch.testing.assert_close(found, tiny.logits(rounds, inputs), rtol=0, atol=1e-4)
    detach_steps(plain)
    assert float((tiny.logits(plain, inputs) - found).abs().max()) > 1e-3


def test_torchao_of_a_quantized_phase(tmp_path, capsys):
    pytest.importorskip("torchao")
    from distill_system.export.torchao_export import read_torchao

    source = quantized_phase(tmp_path, body=256)
    assert cli.main(["export", str(source), "format=torchao"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{source / 'torchao'}:\n")
    assert "25 of 28 quantized matrices lie in it as codes\n" in out
    assert "as floats, because it belongs to Embedding, where torchao only has products of linears: " in out
    inputs = tiny.batch(tiny.build("bert")[1])
    expected = tiny.logits(load(source / "model"), inputs)
    torch.testing.assert_close(tiny.logits(read_torchao(source / "torchao"), inputs), expected, rtol=0, atol=1e-4)
    artifact = Artifact.read(source / "torchao")
    assert artifact.is_intact()
    assert artifact.passport["format"] == "torchao"
    card = (source / "torchao" / "README.md").read_text()
    assert 'model = read_torchao("path/to/this/folder")\n```' in card
    assert "from_pretrained" not in card
    plain = tiny.folder(tmp_path / "plain")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["export", str(plain), "format=torchao"]) == 2
    words = f"PATH: is '{plain}', of which torchao's can't be made: {plain} has no grids.safetensors: "
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_copy_that_is_not_the_same_is_not_left(tmp_path, monkeypatch):
    source = quantized_phase(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("distill_system.models.packed_file.pack_rows", lambda codes, count: pack_rows(codes * 0, count))
    with pytest.raises(RuntimeError, match=r"does not give .* back after reloading"):
        cli.main(["export", str(source), "format=packed"])
    assert sorted(tmp_path.rglob("*")) == before
