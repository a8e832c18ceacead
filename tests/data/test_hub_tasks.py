"""Data sets as the hub has them for several labels, numbers and tags, saved to disk: lists of class numbers become names."""

import pytest

from distill_system.data.hub import Hub, class_names, named

datasets = pytest.importorskip("datasets")


@pytest.fixture
def saved(tmp_path):
    def save(columns, features=None):
        data = datasets.Dataset.from_dict(columns, features=features and datasets.Features(features))
        datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "set"))
        return str(tmp_path / "set")

    return save


def test_several_labels_by_class_number(saved):
    features = {
        "text": datasets.Value("string"),
        "labels": datasets.List(datasets.ClassLabel(names=["joy", "anger", "fear"])),
    }
    labels = [[0, 2], [], [1]] * 20
    source = Hub(
        saved({"text": [f"t{i}" for i in range(60)], "labels": labels}, features),
        task="multi_label",
        label_column="labels",
    )
    assert source.problems() == []
    assert source.label_names() == ["joy", "anger", "fear"]
    train = source.read()["train"]
    assert {tuple(label) for label in train.labels} == {("joy", "fear"), (), ("anger",)}


def test_tags_by_class_number(saved):
    features = {
        "tokens": datasets.List(datasets.Value("string")),
        "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"])),
    }
    columns = {"tokens": [["Ada", f"w{i}"] for i in range(40)], "ner_tags": [[1, 0]] * 40}
    source = Hub(saved(columns, features), task="token_classification", text_column="tokens", label_column="ner_tags")
    assert source.problems() == []
    assert source.label_names() == ["O", "B-PER"]
    splits = source.read()
    assert splits["test"].words[0][0] == "Ada"
    assert splits["test"].labels[0] == ["B-PER", "O"]


def test_numbers(saved):
    source = Hub(
        saved({"text": [f"t{i}" for i in range(40)], "score": [i / 10 for i in range(39)] + [None]}),
        task="regression",
        label_column="score",
    )
    assert source.problems() == []
    assert source.label_names() == []
    train = source.read()["train"]
    assert all(
        label is None or label == int(text[1:]) / 10 for text, label in zip(train.texts, train.labels, strict=True)
    )


def test_noise_on_class_labels(saved):
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes", "never"])}
    folder = saved({"text": [f"t{i}" for i in range(100)], "label": [i % 2 for i in range(100)]}, features)
    train = Hub(folder, label_noise={"rate": 0.3, "kind": "pair"}).read()["train"]
    assert sum(true is not None for true in train.true_labels) == round(0.3 * len(train))
    assert {(true, label) for true, label in zip(train.true_labels, train.labels, strict=True) if true} == {
        ("no", "yes"),
        ("yes", "never"),
    }
    (said,) = Hub(folder, without_classes=["yess"]).problems()
    assert "did you mean 'yes'" in said.message


def test_names_of_classes():
    assert class_names(datasets.List(datasets.ClassLabel(names=["a"]))) == ["a"]
    assert class_names(datasets.Value("string")) is None
    assert named(["0", "-1", "-100"], ["a"]) == ["a", None, None]
