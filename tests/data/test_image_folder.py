"""A user's pictures: classes and splits by folder, and what is wrong with a folder in words."""

import sys

import pytest

from distill_system.data.image_folder import ImageFolder
from distill_system.errors import Refusal
from tests.data import pictures


@pytest.fixture
def root(tmp_path):
    return pictures.folder(tmp_path / "pets")


def only(problems):
    assert len(problems) == 1, problems
    return problems[0].key, problems[0].message


def test_split_by_the_hash_of_the_path(root):
    (root / ".hidden").mkdir()
    (root / "cat" / "notes.txt").write_text("no picture")
    source = ImageFolder(str(root), validation_fraction=0.2, test_fraction=0.3)
    assert source.problems() == []
    splits = source.read()
    assert sum(map(len, splits.values())) == 20
    assert source.label_names() == ["cat", "dog"]
    assert all(
        id_.split("/")[0] == label for rows in splits.values() for id_, label in zip(rows.ids, rows.labels, strict=True)
    )
    before = {id_: split for split, rows in splits.items() for id_ in rows.ids}
    pictures.write(root / "cat" / "new.png", seed=99)
    later = ImageFolder(str(root), validation_fraction=0.2, test_fraction=0.3).read()
    after = {id_: split for split, rows in later.items() for id_ in rows.ids}
    assert {id_: after[id_] for id_ in before} == before
    few = ImageFolder(str(root), validation_fraction=0.2, test_fraction=0.3, limit=2).read()
    assert all(len(rows) <= 2 for rows in few.values())


def test_folders_for_splits(tmp_path):
    for split in ("train", "val", "test"):
        pictures.folder(tmp_path / split, count=3)
    splits = ImageFolder(str(tmp_path)).read()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 6, "validation": 6, "test": 6}
    assert splits["test"].texts[0] == "test/cat/0.png"
    assert splits["test"].ids[0] == "cat/0.png"


def test_a_split_without_a_folder_is_cut_from_train(tmp_path):
    pictures.folder(tmp_path / "Train", count=10)
    pictures.folder(tmp_path / "test", count=2)
    splits = ImageFolder(str(tmp_path), validation_fraction=0.3).read()
    assert len(splits["test"]) == 4
    assert len(splits["train"]) + len(splits["validation"]) == 20
    assert len(splits["validation"]) > 0


def test_a_wrong_path():
    assert only(ImageFolder().problems("data")) == (
        "data.path",
        "is not set; add data.path=FOLDER, which holds a folder a class",
    )
    key, message = only(ImageFolder("/no/such/folder").problems("data"))
    assert key == "data.path"
    assert "no folder here" in message


def test_one_class(tmp_path):
    key, message = only(ImageFolder(str(pictures.folder(tmp_path, classes=["cat"]))).problems())
    assert key == "data.path"
    assert "one label only ('cat')" in message


def test_an_empty_class(root):
    (root / "bird").mkdir()
    (root / "bird" / "clip.mp4").write_bytes(b"x")
    assert "'bird' in pets holds no picture (.bmp .gif" in only(ImageFolder(str(root)).problems())[1]


def test_pictures_without_a_class(tmp_path):
    pictures.write(tmp_path / "a.png")
    assert (
        "1 pictures but no folder for a class; put the pictures into CLASS/"
        in only(ImageFolder(str(tmp_path)).problems())[1]
    )


def test_a_folder_that_is_no_split(tmp_path):
    for name in ("train", "tset"):
        pictures.folder(tmp_path / name, count=2)
    assert "'tset', which names no split (did you mean 'test'?)" in only(ImageFolder(str(tmp_path)).problems())[1]


def test_two_folders_for_one_split(tmp_path):
    for name in ("train", "val", "validation"):
        pictures.folder(tmp_path / name, count=2)
    assert "two folders for validation: val and validation" in only(ImageFolder(str(tmp_path)).problems())[1]


def test_a_class_that_training_lacks(tmp_path):
    pictures.folder(tmp_path / "train", count=3)
    pictures.folder(tmp_path / "test", classes=("cat", "dogs"), count=2)
    assert (
        "labels in test that no training row has: 'dogs' (did you mean 'dog'?)"
        in only(ImageFolder(str(tmp_path)).problems())[1]
    )


@pytest.mark.parametrize("content", [b"", b"no picture", "cut"])
def test_bad_pictures(root, content):
    path = root / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:60] if content == "cut" else content)
    key, message = only(ImageFolder(str(root)).problems())
    assert key == "data.path"
    assert message.startswith("holds 1 of 20 pictures that can't be read: cat/3.png (")
    assert "\n" not in message
    with pytest.raises(Refusal):
        ImageFolder(str(root)).read()


def test_settings_are_checked_together(root):
    source = ImageFolder(
        str(root),
        size=4,
        channels=1,
        mean=[0.5, 0.5],
        augment="standard",
        shift=4,
        validation_fraction=0.6,
        test_fraction=0.6,
    )
    assert [p.key for p in source.problems("data")] == ["data.validation_fraction", "data.mean", "data.shift"]
    assert ImageFolder(str(root), size=4, shift=9).problems() == []  # nothing is augmented
    assert [p.key for p in ImageFolder(str(root), without_classes=["cats"]).problems()] == ["data.without_classes[0]"]


def test_no_torch_in_the_checks(root):
    import subprocess

    code = (
        "import sys; from distill_system.data.image_folder import ImageFolder\n"
        f"source = ImageFolder({str(root)!r}); assert source.problems() == []; source.fingerprint()\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
