"""Fashion-MNIST: the idx format by hand, and the real pictures out of the package (fetched once into the cache)."""

import gzip
import subprocess
import sys

import numpy as np
import pytest

from distill_system.data.fashion_mnist import LABELS, FashionMnist, read_idx
from distill_system.data.pixels import pixelise
from distill_system.errors import Refusal


def test_idx_by_hand(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])))
    assert read_idx(path).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        gzip.compress(b""),
        gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1])),  # too short
        gzip.compress(bytes([0, 0, 13, 1, 0, 0, 0, 1, 1, 1, 1, 1])),  # floats
        gzip.compress(bytes(range(100)))[:-20],
    ],
)
def test_damaged_files(tmp_path, content):
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(Refusal, match=r"holds x.gz, .*to fetch it again"):
        read_idx(path)


def test_checks_need_no_download_and_no_torch(tmp_path):
    code = (
        "import sys; from distill_system.data.fashion_mnist import FashionMnist\n"
        "source = FashionMnist(); assert source.problems() == []; source.fingerprint(); source.label_names()\n"
        "assert 'torch' not in sys.modules"
    )
    import os

    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"DISTILL_CACHE": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []
    wrong = FashionMnist(validation_fraction=1.0, mean=[73.0], augment="standard", shift=28, without_classes=["hat"])
    keys = ["data.validation_fraction", "data.mean[0]", "data.shift", "data.without_classes[0]"]
    assert [problem.key for problem in wrong.problems("data")] == keys


def test_the_real_pictures(tmp_path):
    source = FashionMnist()
    splits = source.read()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 57024, "validation": 2976, "test": 10000}
    test = splits["test"]
    assert test.labels[:4] == ["ankle boot", "pullover", "trouser", "trouser"]
    assert {label: test.labels.count(label) for label in LABELS} == dict.fromkeys(LABELS, 1000)
    picture = test.load(0)
    assert (picture.shape, picture.dtype) == ((1, 28, 28), np.uint8)
    few = FashionMnist(limit=60)
    stores = pixelise(few, tmp_path)
    assert {split: len(store) for split, store in stores.items()} == {"train": 60, "validation": 60, "test": 60}
    assert stores["train"].pixels.mean() / 255 == pytest.approx(few.mean[0], abs=0.05)
    large = FashionMnist(size=56, channels=3, limit=2)
    assert pixelise(large, tmp_path)["test"].pixels.shape == (2, 3, 56, 56)
