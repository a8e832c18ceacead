"""ONNX files: onnxruntime gives torch's outputs for other numbers of rows and lengths than were shown, and a file that doesn't is not left behind."""

import pytest
import torch

from distill_system.export.onnx import export_onnx, missing_packages
from tests.models import images, tiny

onnxruntime = pytest.importorskip("onnxruntime")  # without the extra there is nothing to run the file in


def run(path, inputs) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0])


@pytest.mark.parametrize(("architecture", "task"), [("bert", "classification"), ("llama", "causal_lm")])
def test_texts(architecture, task, tmp_path):
    model, tokenizer = tiny.build(architecture, task)
    model.train()
    shown = tiny.batch(tokenizer, "one")
    exported = export_onnx(model, tmp_path / "model.onnx", shown | {"labels": torch.zeros(1)})
    assert exported.files == [tmp_path / "model.onnx"]
    assert exported.inputs == ["input_ids", "attention_mask"]
    assert exported.difference <= 1e-4
    assert list(tmp_path.iterdir()) == exported.files
    assert model.training
    model.eval()
    for texts in [("a fine film", "dull"), ("a",), ("the longest of all these texts, by far", "b", "cc", "ddd", "e")]:
        inputs = tiny.batch(tokenizer, *texts)
        found, expected = run(tmp_path / "model.onnx", inputs), tiny.logits(model, inputs)
        assert found.shape == expected.shape
        real = inputs["attention_mask"].bool() if task == "causal_lm" else slice(None)
        torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-4)


def test_pictures(tmp_path):
    model = images.build("vit")
    exported = export_onnx(model, tmp_path / "vit.onnx", images.batch(1))
    assert exported.inputs == ["pixel_values"]
    inputs = images.batch(5)
    torch.testing.assert_close(run(tmp_path / "vit.onnx", inputs), images.logits(model, inputs), rtol=0, atol=1e-4)


def test_outputs_that_differ_are_refused_and_nothing_is_written(tmp_path):
    """A model that gives something else each time it is asked."""
    model = images.build("resnet")
    head = model.classifier
    model.classifier = Wandering(head)
    with pytest.raises(ValueError, match=r"does not give torch's outputs of ResNet.* differ by up to .*, allowed is"):
        export_onnx(model, tmp_path / "model.onnx", images.batch())
    assert list(tmp_path.iterdir()) == []
    model.classifier = head
    with pytest.raises(ValueError, match="differ by up to nan"):
        export_onnx(model, tmp_path / "model.onnx", {"pixel_values": images.batch()["pixel_values"] * float("nan")})
    with pytest.raises(ValueError, match=r"takes none of \['input_ids'\]"):
        export_onnx(model, tmp_path / "model.onnx", {"input_ids": torch.zeros(1, 1)})
    assert list(tmp_path.iterdir()) == []


class Wandering(torch.nn.Module):
    """Adds the number of its calls, which an exported graph keeps as it was."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x) + self.calls


def test_a_model_that_torch_can_not_export_is_refused_in_words(tmp_path):
    model = images.build("resnet")
    model.classifier = Branching(model.classifier)
    with pytest.raises(ValueError, match=r"ResNetForImageClassification can't be exported to ONNX \("):
        export_onnx(model, tmp_path / "model.onnx", images.batch())
    assert list(tmp_path.iterdir()) == []


class Branching(torch.nn.Module):
    """Asks for a value while it is traced."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if float(x.sum()) > 0 else self.inner(-x)


def test_missing_packages(monkeypatch):
    assert missing_packages() == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    assert missing_packages() == ["onnxscript"]


def test_large_weights_lie_beside_the_file_which_names_no_source(tmp_path, monkeypatch):
    monkeypatch.setattr("distill_system.export.onnx.ONE_FILE", 100)
    model = images.build("vit")
    exported = export_onnx(model, tmp_path / "model.onnx", images.batch())
    assert exported.files == [tmp_path / "model.onnx", tmp_path / "model.onnx.data"]
    torch.testing.assert_close(
        run(tmp_path / "model.onnx", images.batch(4)), images.logits(model, images.batch(4)), rtol=0, atol=1e-4
    )
    assert b"modeling_vit.py" not in exported.files[0].read_bytes()
