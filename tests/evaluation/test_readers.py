"""Evaluating a saved model of pictures: figures by hand, and models that the data's pictures don't fit, refused in words."""

import subprocess
import sys

import pytest
import torch

from distill_system.data.image_folder import ImageFolder
from distill_system.data.tokens import tokenise
from distill_system.errors import Refusal
from distill_system.evaluation.evaluate import evaluate_folder, prediction_rows
from distill_system.evaluation.predict import Predictions
from distill_system.evaluation.readers import model_problems, reader_for, saved_reader, teacher_problems
from distill_system.export.dense import save_model
from tests.data import pictures
from tests.models import images, tiny

CLASSES = ("bird", "cat", "dog")


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    root = pictures.folder(tmp_path / "pets", classes=CLASSES)
    return ImageFolder(str(root), size=8, channels=1, mean=[0.4], std=[0.25], test_fraction=0.4)


@pytest.fixture
def folder(tmp_path, source):
    save_model(tmp_path / "vit", images.build("vit"), source.preprocessing().processor())
    return tmp_path / "vit"


def test_evaluation(source, folder, tmp_path):
    save_model(tmp_path / "cnn", images.build("convnext", labels=["dog", "cat", "bird"]), None)
    figures = evaluate_folder(folder, source, teacher=tmp_path / "cnn", batch_size=3)
    store = tokenise(source, None)["test"]
    batch = {"pixel_values": torch.from_numpy(store.batch(range(len(store))))}
    own = images.logits(images.build("vit"), batch)[:, [2, 0, 1]]  # the model's labels are cat, dog, bird
    taught = images.logits(images.build("convnext", labels=["dog", "cat", "bird"]), batch)[:, [2, 1, 0]]
    right = (own.argmax(-1).numpy() == store.labels).mean()
    assert figures["metrics"]["accuracy"] == pytest.approx(right)
    assert figures["metrics"]["samples"] == len(store)
    same = (own.argmax(-1) == taught.argmax(-1)).double().mean().item()
    assert figures["teacher"]["teacher"]["agreement"] == pytest.approx(same)
    assert figures["latency"]["batch_32"]["samples_per_s"] > 0
    assert figures["size"]["parameters"] == images.build("vit").num_parameters()
    assert figures["warnings"] == []


def test_a_model_that_was_trained_on_other_pictures_is_a_warning(source, folder):
    source.mean = [0.9]
    assert "image_mean is [0.4], not [0.9]" in evaluate_folder(folder, source)["warnings"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 12}, "path.image_size: is 8, data.size is 12"),
        ({"channels": 3}, "path.num_channels: is 1, data.channels is 3"),
    ],
)
def test_pictures_that_do_not_fit(source, folder, changes, message):
    with pytest.raises(Refusal, match=message):
        evaluate_folder(folder, ImageFolder(source.path, **({"size": 8, "channels": 1} | changes)))


def test_models_of_texts_and_pictures(source, folder, tmp_path):
    text = tiny.folder(tmp_path / "bert")
    with pytest.raises(Refusal, match="path: is a bert, which takes no pictures"):
        evaluate_folder(text, source)
    with pytest.raises(Refusal, match="teacher: is a bert, which takes no pictures"):
        evaluate_folder(folder, source, teacher=text)


def test_a_tokenizer_is_handed_on(tmp_path):
    text = tiny.folder(tmp_path / "bert")
    tokenizer, config = saved_reader(text, "path"), tiny.build("bert")[0].config
    assert reader_for(object(), tokenizer, config, "m") == (tokenizer, [])
    with pytest.raises(Refusal, match="m: is a vit, which takes pictures, and the data is text"):
        reader_for(object(), None, images.build("vit").config, "m")


def test_batch_normalisation_is_a_warning(source):
    reader, warnings = reader_for(source, None, images.build("resnet").config, "m")
    assert list(reader.image_mean) == [0.4]
    assert "batch normalisation" in warnings[0]


def test_told_before_the_start(source, folder, tmp_path):
    assert model_problems(images.recipe("vit"), source, "m") == []
    assert [p.key for p in model_problems(images.recipe("vit", image_size=16), source, "m")] == ["m.image_size"]
    assert "and the data is text" in model_problems(images.recipe("vit"), object(), "m")[0].message
    assert teacher_problems(str(folder), source, "t") == []
    source.size = 12
    (problem,) = teacher_problems(str(folder), source, "t")
    assert problem.key == "t"
    assert f"is '{folder}', whose image_size is 8, data.size is 12" in problem.message
    source.size, source.std = 8, [0.5]
    (problem,) = teacher_problems(str(folder), source, "t")
    assert "image_std is [0.25], not [0.5]; set data.size=8 data.mean=[0.4] data.std=[0.25]" in problem.message
    code = "import sys, distill_system.evaluation.readers; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_predictions_of_pictures_show_them(source):
    store = tokenise(source, None)["test"]
    rows = len(store)
    logits, other = torch.eye(3)[torch.arange(rows) % 3], torch.eye(3)[torch.zeros(rows, dtype=torch.long)]
    labels = torch.from_numpy(store.labels)
    predictions = Predictions("classification", 3, torch.arange(rows), labels, logits, {"main": other})
    shown = prediction_rows(predictions, store, sorted(CLASSES))["rows"]
    assert [row["text"] for row in shown] == [store.text(i) for i in range(rows)]
    assert [row.get("picture") for row in shown] == [store.picture(i) if i % 3 else None for i in range(rows)]
