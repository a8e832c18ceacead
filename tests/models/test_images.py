"""Models of pictures: built, saved, loaded, cut; told from models of texts; checked against the data's pictures."""

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForImageClassification

from distill_system.config.compose import conf_folder
from distill_system.data.pictures import Preprocessing
from distill_system.errors import Refusal
from distill_system.export.dense import save_model, verify
from distill_system.models.alignment import check_tokenizers
from distill_system.models.anatomy import UnknownAnatomy, find_anatomy
from distill_system.models.common import auto_class
from distill_system.models.from_config import FromConfig
from distill_system.models.from_layers import FromLayers
from distill_system.models.images import (
    differences,
    input_problems,
    load_processor,
    load_reader,
    read_processor,
    sees_pictures,
    warnings_of,
)
from distill_system.models.pretrained import Pretrained
from distill_system.models.tokenizers import byte_tokenizer
from tests.models import images

PREPARED = Preprocessing(8, 1, "stretch", (0.3,), (0.4,))


def saved(path, architecture="vit", processor=True, **more):
    save_model(path, images.build(architecture, **more), PREPARED.processor() if processor else None)
    return path


def problems(recipe):
    return [(p.key, p.message) for p in recipe.problems("m", task="classification", artifacts_known=set())]


@pytest.mark.parametrize("architecture", images.SIZES)
def test_built_saved_and_loaded_by_plain_transformers(tmp_path, architecture):
    assert problems(images.recipe(architecture)) == []
    model, batch = images.build(architecture), images.batch()
    expected = images.logits(model, batch)
    assert expected.shape == (3, 3)
    processor = PREPARED.processor()
    save_model(tmp_path, model, processor)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(images.logits(plain, batch), expected)
    assert plain.config.id2label == dict(enumerate(images.LABELS))
    assert verify(tmp_path, "classification", batch, expected, tokenizer=processor) == 0.0
    other = Preprocessing(8, 1, "stretch", (0.2,), (0.4,)).processor()
    with pytest.raises(RuntimeError, match="image processor back"):
        verify(tmp_path, "classification", batch, expected, tokenizer=other)
    again, reader = Pretrained(name=str(tmp_path)).build(task="classification", label_names=images.LABELS)
    assert torch.equal(images.logits(again, batch), expected)
    assert differences(reader.to_dict(), processor.to_dict()) == []
    assert len(model(**batch, output_hidden_states=True).hidden_states) >= 3


@pytest.mark.parametrize("architecture", images.SIZES)
def test_labels_in_another_order_and_other_labels(tmp_path, architecture):
    model, batch = images.build(architecture), images.batch()
    save_model(tmp_path, model, None)
    turned, reader = Pretrained(name=str(tmp_path)).build(task="classification", label_names=["bird", "Cat", "dog"])
    assert reader is None
    assert torch.equal(images.logits(turned, batch), images.logits(model, batch)[:, [2, 0, 1]])
    other, _ = Pretrained(name=str(tmp_path)).build(task="classification", label_names=["a", "b"])
    assert images.logits(other, batch).shape == (3, 2)


def test_the_seed_decides_the_weights():
    one, same, other = (images.build("vit", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_a_student_from_the_layers_of_a_vit(tmp_path):
    folder = saved(tmp_path)
    recipe = FromLayers(name=str(folder), layers=[1, 3])
    assert problems(recipe) == []
    student, reader = recipe.build(task="classification", label_names=images.LABELS)
    teacher = images.build("vit")
    assert find_anatomy(teacher).embeddings == ("vit.embeddings",)
    assert student.config.num_hidden_layers == 2
    for mine, theirs in ((0, 1), (1, 3)):
        state = teacher.vit.layers[theirs].state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in student.vit.layers[mine].state_dict().items())
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert reader is not None
    frozen, _ = FromLayers(name=str(folder), num_layers=2, share_embeddings=True).build(
        task="classification", label_names=images.LABELS
    )
    still = {name for name, parameter in frozen.named_parameters() if not parameter.requires_grad}
    assert still == {name for name, _ in frozen.named_parameters() if name.startswith("vit.embeddings.")}
    assert problems(FromLayers(name=str(folder), layers=[1, 4]))[0][0] == "m.layers[1]"


@pytest.mark.parametrize("architecture", ["resnet", "convnext"])
def test_a_convolutional_network_has_no_layers_to_choose_from(tmp_path, architecture):
    with pytest.raises(UnknownAnatomy, match="stages of different widths"):
        find_anatomy(images.build(architecture))
    folder = saved(tmp_path, architecture)
    with pytest.raises(Refusal, match=f"m.name: is a {architecture}, which has stages") as refused:
        FromLayers(name=str(folder), num_layers=1).build(task="classification", label_names=images.LABELS, key="m")
    assert refused.value.problems[0].key == "m.name"


def test_which_models_see_pictures():
    for architecture in ("vit", "resnet", "convnext", "swin", "deit"):
        assert sees_pictures({"model_type": architecture})
        assert sees_pictures(AutoConfig.for_model(architecture))
    for architecture in ("bert", "gpt2", "llama", "perceiver", "no_such_thing"):
        assert not sees_pictures({"model_type": architecture})
    assert sees_pictures({"model_type": "perceiver", "architectures": ["PerceiverForImageClassificationLearned"]})
    assert auto_class("classification", {"model_type": "vit"}) is AutoModelForImageClassification
    assert auto_class("classification", {"model_type": "bert"}) is auto_class("classification")


@pytest.mark.parametrize(
    ("architecture", "changes", "size", "channels", "keys", "words"),
    [
        ("vit", {}, 8, 1, [], ""),
        ("vit", {}, 9, 3, ["m.num_channels", "m.image_size"], "is 1, data.channels is 3"),
        ("vit", {"patch_size": 16, "image_size": 8}, 8, 1, ["m.patch_size"], "at most data.size=8"),
        ("vit", {}, None, None, ["m"], "takes pictures, and the data is text"),
        ("convnext", {}, 50, 1, [], ""),
        ("convnext", {"depths": [1, 1, 1, 1]}, 8, 1, ["m.patch_size"], "leave nothing of 8 pixels"),
        ("resnet", {}, 8, 3, ["m.num_channels"], "must be the same"),
    ],
)
def test_pictures_of_another_kind(architecture, changes, size, channels, keys, words):
    found = input_problems(images.recipe(architecture, **changes).config(), "m", size=size, channels=channels)
    assert [problem.key for problem in found] == keys
    assert words in " ".join(problem.message for problem in found)


def test_a_model_of_texts_takes_no_pictures():
    found = input_problems(FromConfig("bert").config(), "m", size=8, channels=1)
    assert "takes no pictures" in found[0].message
    assert input_problems(FromConfig("bert").config(), "m", size=None, channels=None) == []


def test_a_tokenizer_is_refused():
    assert problems(images.recipe("vit", tokenizer="bytes"))[0][0] == "m.tokenizer"
    assert problems(images.recipe("vit", tokenizer_phase="teacher"))[0][0] == "m.tokenizer_phase"
    assert "is not a setting of vit" in problems(images.recipe("vit", pach_size=2))[0][1]
    assert problems(images.recipe("vit", image_size=0))[0] == ("m.image_size", "is 0, must be >= 1")


def test_a_saved_model_needs_no_processor(tmp_path):
    folder = saved(tmp_path, processor=False)
    assert problems(Pretrained(name=str(folder))) == []
    assert problems(Pretrained(name=str(folder), tokenizer="bytes"))[0][0] == "m.tokenizer"
    assert load_processor(folder, "m") is None
    assert read_processor(folder) is None


def test_a_damaged_processor(tmp_path):
    folder = saved(tmp_path)
    assert read_processor(folder)["image_mean"] == [0.3]
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(Refusal, match="whose image processor can't be loaded"):
        load_reader(folder, {"model_type": "vit"}, "m")


def test_teacher_and_student_see_the_same_pictures():
    own = PREPARED.processor()
    assert check_tokenizers(own, PREPARED.processor(), "t") == []
    assert check_tokenizers(None, own, "t") == []  # nothing is known of it
    other = Preprocessing(16, 1, "stretch", (0.5,), (0.5,)).processor()
    (problem,) = check_tokenizers(other, own, "t")
    assert problem.key == "t"
    assert "image_mean is [0.5], not [0.3]" in problem.message
    assert "have 16 pixels a side, not 8" in problem.message
    assert problem.message.endswith("set data.size=16 data.mean=[0.5] data.std=[0.5]")
    assert "reads texts, the student reads pictures" in check_tokenizers(byte_tokenizer(), own, "t")[0].message


def test_batch_normalisation_is_told():
    assert "depend on the number of ranks" in warnings_of({"model_type": "resnet"})[0]
    assert warnings_of({"model_type": "convnext"}) == []


@pytest.mark.parametrize("name", ["tiny_vit", "small_cnn", "tiny_resnet"])
def test_shipped_models_fit_fashion_mnist(name):
    values = yaml.safe_load((conf_folder() / "models" / f"{name}.yaml").read_text())
    values.pop("_target_")
    recipe = FromConfig(**values)
    assert problems(recipe) == []
    assert input_problems(recipe.config(), "m", size=28, channels=1) == []
    model, _ = recipe.build(task="classification", num_labels=10)
    assert 75_000 < model.num_parameters() < 110_000
    assert images.logits(model, {"pixel_values": torch.zeros(2, 1, 28, 28)}).shape == (2, 10)
