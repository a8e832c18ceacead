"""`distill export`: what it refuses, before anything is written, and what lies in the folder then."""

import importlib.util
import json
import sys

import pytest
import torch

from distill_system import cli
from distill_system.artifacts import Artifact, write_passport
from distill_system.export.dense import load, save_model
from distill_system.export.sparse import is_sparse, read_layout, read_tensors, write_sparse
from tests.config.files import model_folder
from tests.models import images, tiny


def run_folder(root, *phases: str):
    """A run whose phases each left a model, and one that is still at work."""
    run = root / "run"
    for phase in phases:
        model_folder(run / phase / "model")
    (run / "student").mkdir(parents=True)
    states = dict.fromkeys(phases, "finished") | {"student": "running"}
    (run / "manifest.json").write_text(json.dumps({"phases": {name: {"state": s} for name, s in states.items()}}))
    return run


CASES = [
    (
        [],
        "PATH: must be one phase of a run, or a model folder: distill export runs/NAME/PHASE format=dense|sparse|packed|onnx|torchao",
    ),
    (["{run}/teacher", "{run}/teacher", "format=dense"], "PATH: must be one phase of a run"),
    (["{run}/teacher"], "format: is not given, must be one of dense, sparse, packed, onnx, torchao"),
    (["{run}/teacher", "format="], "format: is ''"),
    (
        ["{run}/teacher", "format=onxn"],
        "format: is 'onxn' (did you mean 'onnx'?), must be one of dense, sparse, packed, onnx, torchao",
    ),
    (["{run}/teacher", "format=dense", "format=onnx"], "format: is given twice, as 'dense' and 'onnx'"),
    (["{run}/teacher", "fromat=dense"], "fromat: is not a setting here (did you mean 'format'?)"),
    (["{run}/teacher", "format=dense", "--fast"], "--fast: is no option here"),
    (["{run}", "format=dense"], "PATH: is '{run}', a run; name one of its phases: {run}/many, {run}/teacher"),
    (["{run}/student", "format=dense"], "a phase without a model (its state is running): finish it by `distill run`"),
    (["{run}/techer", "format=dense"], "PATH: is '{run}/techer', which doesn't exist (did you mean 'teacher'?)"),
    (["{run}/many/member-2", "format=dense"], "which doesn't exist (did you mean 'member-1'?)"),
    (
        ["{run}/several", "format=dense"],
        "which holds several models; name one: {run}/several/member-0, {run}/several/m",
    ),
    (["{root}/nothing/at/all", "format=dense"], "PATH: is '{root}/nothing/at/all', which doesn't exist"),
    (["{root}", "format=dense"], "PATH: is '{root}', which holds no model (no config.json); give a phase of a run"),
    (["{root}/file", "format=dense"], "PATH: is '{root}/file', which holds no model"),
    (["{root}/cut", "format=dense"], "PATH: is '{root}/cut', whose model.safetensors is truncated"),
    (["{root}/pickle", "format=sparse"], "holds only pytorch_model.bin, a pickle"),
    (["{root}/forged", "format=dense"], "PATH: is '{root}/forged', whose sparse.safetensors is no safetensors file"),
    (["{root}/stranger", "format=dense"], "is no sparse model of distill_system"),
    (["{root}/passport", "format=dense"], "PATH: is '{root}/passport', whose passport can't be read"),
    (["{root}/quantized", "format=dense"], "a quantized model"),
    (
        ["{root}/bert", "format=packed"],
        "PATH: is '{root}/bert', which can't be packed: {root}/bert has no grids.safetensors",
    ),
    (["{root}/torn", "format=dense"], "PATH: is '{root}/torn', whose packed.safetensors is no safetensors file"),
    (["{root}/bert", "format=onnx"], "PATH: is '{root}/bert', which can't be loaded: "),
    (["{run}/teacher", "format=dense", "out="], "out: is empty, must be a folder to write"),
    (["{run}/teacher", "format=dense", "out={run}/teacher"], "out: is '{run}/teacher', which exists already"),
    (["{run}/teacher", "format=dense", "out={root}/file"], "out: is '{root}/file', which exists already; remove it"),
    (["{run}/teacher", "format=dense", "out={root}/file/x"], "out: is '{root}/file/x', which can't be made"),
    (["{run}/teacher", "format=dense", "out={run}/teacher/model/x"], "inside the model '{run}/teacher/model'"),
]


@pytest.mark.parametrize(("words", "said"), CASES)
def test_is_refused(words, said, tmp_path, capsys):
    run = run_folder(tmp_path, "teacher", "many")
    model_folder(run / "many" / "member-1" / "model")
    for member in ("member-0", "member-1"):
        model_folder(run / "several" / member / "model")
    (tmp_path / "file").write_text("")
    weights = model_folder(tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (model_folder(tmp_path / "pickle") / "model.safetensors").rename(tmp_path / "pickle" / "pytorch_model.bin")
    (model_folder(tmp_path / "forged") / "sparse.safetensors").write_bytes(b"forged")
    (model_folder(tmp_path / "torn") / "packed.safetensors").write_bytes(b"forged")
    stranger = model_folder(tmp_path / "stranger") / "model.safetensors"
    stranger.rename(stranger.with_name("sparse.safetensors"))
    (model_folder(tmp_path / "passport") / "compression.json").write_text("{")
    model_folder(tmp_path / "quantized", quantization_config={"bits": 4})
    model_folder(tmp_path / "bert")
    before = sorted(tmp_path.rglob("*"))
    place = {"{root}": str(tmp_path), "{run}": str(run)}
    for name, value in place.items():
        words, said = [word.replace(name, value) for word in words], said.replace(name, value)
    assert cli.main(["export", *words]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_onnx_without_its_packages_is_refused(monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    assert cli.main(["export", str(model_folder(tmp_path / "model")), "format=onnx"]) == 2
    err = capsys.readouterr().err
    assert (
        "format: is onnx, which needs onnxscript; install distill_system with the extra: pip install '.[onnx]'" in err
    )


def test_torchao_where_it_is_not_installed_is_refused(monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else find(name))
    assert cli.main(["export", str(model_folder(tmp_path / "model")), "format=torchao"]) == 2
    err = capsys.readouterr().err
    assert (
        "format: is torchao, which needs torchao; install distill_system with the extra: pip install '.[torchao]'"
        in err
    )


def phase(root, architecture: str = "bert", *, sparse: bool = False, passport: bool = True, task="classification"):
    """A finished phase whose model has many zeros, half of them with a minus sign."""
    model, tokenizer = tiny.build(architecture, task, intermediate_size=256)
    with torch.no_grad():
        for i, parameter in enumerate(p for p in model.parameters() if p.dim() == 2):
            kept = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(i)) < 0.1
            parameter.mul_(kept)
    folder = root / "run" / "prune" / "model"
    save_model(folder, model, tokenizer)
    if sparse:
        tensors = {name: tensor + 0.0 for name, tensor in load(folder, task).state_dict().items()}
        write_sparse(folder, tensors.items(), {}, model.config, tokenizer)
    if passport:
        lineage = [{"phase": "prune", "kind": "prune"}]
        more = {"extra": {"sparsity": 0.9}}
        write_passport(folder, task=task, lineage=lineage, settings={"lr": 1}, metrics={"accuracy": 0.5}, **more)
    return folder.parent


def same_outputs(one, other, task="classification") -> bool:
    model, tokenizer = load(one, task), tiny.build("bert")[1]
    inputs = tiny.batch(tokenizer)
    return torch.equal(tiny.logits(model, inputs), tiny.logits(load(other, task), inputs))


def test_sparse_and_back_to_dense(tmp_path, capsys):
    source = phase(tmp_path)
    assert cli.main(["export", str(source), "format=sparse"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{source / 'sparse'}:\n")
    assert "zeros with a minus sign, which is not kept: " in out
    sparse = source / "sparse"
    assert is_sparse(sparse)
    assert not (sparse / "model.safetensors").exists()
    weights = sum(path.stat().st_size for path in (source / "model").glob("*.safetensors"))
    assert (sparse / "sparse.safetensors").stat().st_size < 0.5 * weights
    assert read_layout(sparse)["bert.encoder.layer.0.intermediate.dense.weight"].kept is not None
    assert same_outputs(source / "model", sparse)
    names = {path.name for path in (source / "model").iterdir()} - {"model.safetensors"}
    assert {path.name for path in sparse.iterdir()} == names | {"sparse.safetensors"}
    assert (sparse / "config.json").read_bytes() == (source / "model" / "config.json").read_bytes()

    assert cli.main(["export", str(sparse), "format=dense", f"out={tmp_path / 'again'}"]) == 0
    assert same_outputs(sparse, tmp_path / "again")
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(plain[name], tensor) for name, tensor in read_tensors(sparse).items())
    assert not list(tmp_path.rglob(".part-*"))


def test_passport_and_card_are_of_the_new_files(tmp_path):
    source = phase(tmp_path)
    assert cli.main(["export", str(source), "format=sparse"]) == 0
    artifact, before = Artifact.read(source / "sparse"), Artifact.read(source / "model")
    assert artifact.is_intact()
    assert before.is_intact()
    assert artifact.digest != before.digest
    assert artifact.passport["format"] == "sparse"
    assert artifact.passport["exported_from"] == before.digest
    assert artifact.passport["command"] == f"distill export {source} format=sparse"
    assert artifact.passport["size_bytes"] < before.passport["size_bytes"]
    kept = ("task", "lineage", "settings", "metrics", "sparsity")
    assert {name: artifact.passport[name] for name in kept} == {name: before.passport[name] for name in kept}
    card = (source / "sparse" / "README.md").read_text()
    assert "# prune, sparse" in card
    assert 'model = distill_system.load("path/to/this/folder")\n```' in card
    assert "from_pretrained" not in card
    assert "## Lineage" in card


@pytest.mark.parametrize("sparse", [False, True])
def test_onnx_of_a_phase(sparse, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    source = phase(tmp_path, "llama", sparse=sparse, passport=not sparse, task="causal_lm")
    assert cli.main(["export", str(source), "format=onnx", f"out={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    assert "inputs input_ids, attention_mask" in out
    assert "onnxruntime gives torch's logits within" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "generation_config.json"} <= names
    assert not [name for name in names if name.endswith(".safetensors")]
    assert ("compression.json" in names) == (not sparse)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = tiny.batch(tiny.build("llama", "causal_lm")[1], "one", "another")
    found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    expected = tiny.logits(load(source / "model", "causal_lm"), inputs)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(torch.from_numpy(found)[real], expected[real], rtol=0, atol=1e-4)


def test_onnx_of_a_folder_of_pictures_without_passport_or_processor(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    save_model(tmp_path / "vit", images.build("vit"), None)
    assert cli.main(["export", str(tmp_path / "vit"), "format=onnx"]) == 0
    assert "inputs pixel_values" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "vit-onnx").iterdir()) == ["config.json", "model.onnx"]


def test_a_model_without_zeros_is_no_smaller_as_sparse(tmp_path, capsys):
    folder = tiny.folder(tmp_path / "model")
    assert cli.main(["export", str(folder), "format=sparse", f"out={tmp_path / 'sparse'}"]) == 2
    assert f"format: is sparse, but no tensor of '{folder}' holds zeros enough" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    source = phase(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def fail(folder, *arguments):
        (folder / "half").write_text("")
        raise RuntimeError("the disk went away")

    monkeypatch.setattr("distill_system.export.sparse.write_sparse", fail)
    with pytest.raises(RuntimeError, match="went away"):
        cli.main(["export", str(source), "format=sparse"])
    assert sorted(tmp_path.rglob("*")) == before


def test_refusing_needs_no_torch(tmp_path):
    import subprocess

    run = run_folder(tmp_path, "teacher")
    code = "import sys; from distill_system import cli; cli.main(['export', sys.argv[1], 'format=dense']);"
    code += "print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"
    assert "a run; name one of its phases" in done.stderr
