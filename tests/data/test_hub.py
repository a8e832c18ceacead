"""Data sets of the `datasets` library: local folders of both kinds, and a sentence where the hub can't be reached."""

import datasets
import pytest

from distill_system.data.hub import Hub
from distill_system.errors import Refusal


@pytest.fixture
def saved(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zebra", "ape"])}
    )

    def part(count, offset, label):
        return datasets.Dataset.from_dict(
            {"text": [f"t {offset + i}" for i in range(count)], "label": [label(i) for i in range(count)]}, features
        )

    whole = datasets.DatasetDict(
        {
            "train": part(60, 0, lambda i: i % 2),
            "dev": part(10, 100, lambda i: i % 2),
            "test": part(5, 200, lambda i: -1),
        }
    )
    whole.save_to_disk(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def test_saved_folder_keeps_the_order_of_class_labels(saved):
    source = Hub(saved, test_split="dev")
    assert source.problems() == []
    assert source.label_names() == ["zebra", "ape"]
    splits = source.read()
    assert splits["test"].labels[:2] == ["zebra", "ape"]
    assert splits["test"].ids[0] == "dev:0"
    assert len(splits["train"]) + len(splits["validation"]) == 60
    assert Hub(saved, test_split="test").read()["test"].labels == [None] * 5  # -1 is unlabelled


def test_folder_of_data_files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    for split, count in (("train", 40), ("test", 10)):
        lines = "".join(f"film {split} {i},{i % 3 + 8}\n" for i in range(count))
        (tmp_path / "files" / f"{split}.csv").write_text("sentence,stars\n" + lines)
    source = Hub(str(tmp_path / "files"), text_column="sentence", label_column="stars", test_split="test", limit=30)
    assert source.problems() == []
    assert source.label_names() == ["8", "9", "10"]
    splits = source.read()
    assert splits["test"].labels[:3] == ["8", "9", "10"]
    assert len(splits["train"]) == 30
    first = source.fingerprint()
    (tmp_path / "files" / "test.csv").write_text("sentence,stars\nother,8\n")
    assert (
        Hub(
            str(tmp_path / "files"), text_column="sentence", label_column="stars", test_split="test", limit=30
        ).fingerprint()
        != first
    )


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"name": None}, "name", "not set"),
        ({"name": "./gone"}, "name", "no folder"),
        ({"text_column": "texts"}, "text_column", "did you mean 'text'?"),
        ({"label_column": "y"}, "label_column", "no column of train"),
        ({"train_split": "trian"}, "train_split", "did you mean 'train'?"),
        ({"test_split": "tset"}, "test_split", "did you mean 'test'?"),
        ({"train_split": "test"}, "label_column", "no label in any training row"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "validation_fraction", "together"),
    ],
)
def test_bad_settings_give_a_sentence(saved, changes, key, words):
    problems = Hub(**({"name": saved} | changes)).problems()
    assert [problem.key for problem in problems] == [f"data.{key}"]
    assert words in problems[0].message


def test_a_hub_that_cannot_be_reached_is_a_sentence():
    assert Hub("somebody/some_data").problems() == []  # never looks
    with pytest.raises(Refusal, match="can't be fetched, since the hub can't be reached") as refused:
        Hub("somebody/some_data").read()
    assert [problem.key for problem in refused.value.problems] == ["data.name"]


def test_a_folder_that_holds_no_data(tmp_path):
    (tmp_path / "x").mkdir()
    assert "without files" in Hub(str(tmp_path / "x")).problems()[0].message
    (tmp_path / "x" / "a.bin").write_text("?")
    with pytest.raises(Refusal, match=r"data\.name"):
        Hub(str(tmp_path / "x")).read()
