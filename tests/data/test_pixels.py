"""The store of pictures: content, cache, warnings, batches; views that don't depend on ranks, accumulation or a resume."""

import numpy as np
import pytest
import torch

from distill_system.data.collate import collate
from distill_system.data.datamodule import DataModule
from distill_system.data.image_folder import ImageFolder
from distill_system.data.pixels import pixelise
from distill_system.data.tokens import tokenise
from distill_system.errors import Refusal
from distill_system.signals import IGNORE
from tests.data import pictures


@pytest.fixture
def source(tmp_path, cache):
    return ImageFolder(str(pictures.folder(tmp_path / "pets")), size=8, augment="standard", shift=1)


def test_store(source, cache):
    stores = tokenise(source, None)
    assert (stores.task, stores.label_names) == ("classification", ["cat", "dog"])
    assert sum(stores.summary["rows"].values()) == 20
    store = stores["train"]
    assert store.pixels.shape == (len(store), 3, 8, 8)
    assert store.lengths.tolist() == [1] * len(store)
    for i in range(len(store)):
        row = store.row(i)
        assert row["id"].startswith(stores.label_names[store.labels[i]])
        assert (store.pixels[i] == source.read()["train"].load(source.read()["train"].numbers[i])).all()
    assert store.ids == [store.row(i)["id"] for i in range(len(store))]
    assert store.labelled.all()
    assert store.picture(0).startswith("data:image/png;base64,")
    assert stores.processor.size["shortest_edge"] == 8


def test_cache_follows_content_and_not_the_view(source, tmp_path, cache):
    first = pixelise(source).digest
    for changes in ({"mean": [0.1]}, {"augment": "none"}, {"shift": 2}):
        other = ImageFolder(source.path, **({"size": 8, "augment": "standard", "shift": 1} | changes))
        assert pixelise(other).digest == first
        assert other.fingerprint() != source.fingerprint()  # but it is another run
    assert pixelise(ImageFolder(source.path, size=6)).digest != first
    assert pixelise(ImageFolder(source.path, size=8, label_noise=0.5)).digest != first
    pictures.write(tmp_path / "pets" / "cat" / "0.png", seed=77)
    assert pixelise(ImageFolder(source.path, size=8)).digest != first
    assert not list((cache / "pixels").glob(".part-*"))


def test_noise_and_unknown_labels(source):
    source.label_noise, source.labelled = 0.5, 0.5
    stores = pixelise(source)
    store = stores["train"]
    assert stores.summary["labelled"]["train"] == round(len(store) * 0.5) == int(store.labelled.sum())
    changed = [i for i in range(len(store)) if "true_label" in store.row(i)]
    assert stores.summary["noisy"]["train"] == len(changed) > 0
    for i in changed:
        assert store.row(i)["true_label"] != stores.label_names[store.labels[i]]
    assert any("on purpose" in sentence for sentence in stores.summary["warnings"])


def test_the_same_picture_in_train_and_test_is_a_warning(tmp_path, cache):
    root = tmp_path / "pets"
    for split in ("train", "test"):
        pictures.folder(root / split, count=2)
    pictures.write(root / "train" / "cat" / "a.png", seed=5)
    pictures.write(root / "test" / "cat" / "b.png", seed=5)
    stores = pixelise(ImageFolder(str(root), size=8, validation_fraction=0.0))
    assert stores.summary["duplicates"] == {"train": 0, "test": 1}
    assert stores.summary["warnings"] == [
        "1 of 5 test pictures are among the training pictures too: their score says little about new pictures"
    ]


def test_pictures_that_only_the_cache_reads_are_refused_by_name(source, monkeypatch, tmp_path, cache):
    monkeypatch.setattr("distill_system.data.image_folder.CHECKED", 1)
    for name in ("cat/4.png", "dog/7.png"):
        (tmp_path / "pets" / name).write_bytes(b"no picture")
    with pytest.raises(Refusal, match=r"that can't be read: \w+/\d.png .*; mend or remove them"):
        pixelise(source)
    assert not list((cache / "pixels").glob("*/"))


def test_batch_by_hand(source):
    source.mean, source.std = [0.5], [0.25]
    store = pixelise(source)["train"]
    batch = collate(store, [1, -1, 0], pad_id=None)
    assert sorted(batch) == ["index", "labels", "pixel_values", "valid"]
    wanted = (store.pixels[[1, 1, 0]] / 255 - 0.5) / 0.25
    assert np.abs(batch["pixel_values"].numpy() - wanted).max() < 1e-5
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].tolist() == [store.labels[1], IGNORE, store.labels[0]]
    assert batch["valid"].tolist() == [True, False, True]
    assert batch["index"].tolist() == [1, -1, 0]


def seen(stores, steps=6, **options):
    """Step -> sample -> pixels, over all ranks."""
    world = options.get("world", 1)
    found = [{} for _ in range(steps)]
    for rank in range(world):
        data = DataModule(stores, pad_id=0, batch_size=5, total_steps=steps, seed=3, rank=rank, **options)
        start = options.get("start_step", 0)
        for step, item in enumerate(data.train_dataloader(), start=start):
            for micro in item:
                for i, valid, pixels in zip(micro["index"], micro["valid"], micro["pixel_values"], strict=True):
                    if valid:
                        found[step][int(i)] = pixels
    return found


@pytest.mark.parametrize(
    "options", [{"world": 2}, {"accumulation": 3}, {"world": 2, "accumulation": 2, "start_step": 4}]
)
def test_views_do_not_depend_on_ranks_accumulation_or_a_resume(source, options):
    stores = pixelise(source)
    whole, parts = seen(stores), seen(stores, **options)
    for step in range(options.get("start_step", 0), 6):
        assert whole[step].keys() == parts[step].keys()
        assert all(torch.equal(whole[step][i], parts[step][i]) for i in whole[step])


def test_views_change_between_epochs_and_evaluation_has_none(source):
    stores = pixelise(source)
    per_epoch = -(-len(stores["train"]) // 5)
    steps = seen(stores, steps=2 * per_epoch)
    epochs = [{i: x for step in steps[e * per_epoch : (e + 1) * per_epoch] for i, x in step.items()} for e in (0, 1)]
    assert epochs[0].keys() == epochs[1].keys() == set(range(len(stores["train"])))
    assert sum(not torch.equal(epochs[0][i], epochs[1][i]) for i in epochs[0]) > len(epochs[0]) // 2
    data = DataModule(stores, pad_id=0, batch_size=5, total_steps=1)
    for split, store in stores.items():
        for batch in data.evaluation_batches(split):
            plain = store.preprocessing.normalise(store.pixels[batch["index"].numpy()])
            assert torch.equal(batch["pixel_values"], torch.from_numpy(plain))
