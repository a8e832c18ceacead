"""From a picture to pixels: by hand, against transformers' own image processor, and what can't be taken."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from distill_system.data.pictures import Pictures, Preprocessing, Unreadable, preprocessing_problems, thumbnail


def preprocessing(**changes):
    values = {"size": 4, "channels": 3, "resize": "crop", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    return Preprocessing(**(values | changes))


def noise(width, height, channels=3, seed=0):
    array = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(array if channels == 3 else array[..., 0])


def test_normalise_by_hand():
    pixels = np.array([[[[0, 255, 102]]]], dtype=np.uint8)  # [1, 1, 1, 3]
    found = preprocessing(channels=1, mean=(0.4,), std=(0.5,)).normalise(pixels)
    assert found.dtype == np.float32
    assert found[0, 0, 0] == pytest.approx([-0.8, 1.2, 0.0], abs=1e-6)


def test_the_middle_is_cut_out():
    array = np.zeros((2, 6, 3), dtype=np.uint8)
    array[:, 2:4, 0] = 200
    pixels = preprocessing(size=2).pixels(Image.fromarray(array))
    assert pixels.shape == (3, 2, 2)
    assert (pixels[0] == 200).all()
    assert not pixels[1:].any()


@pytest.mark.parametrize("size", [(4, 4), (9, 5), (5, 9), (7, 30), (3, 2), (641, 480)])
@pytest.mark.parametrize(("channels", "resize"), [(3, "crop"), (3, "stretch"), (1, "crop"), (1, "stretch")])
def test_the_saved_image_processor_gives_the_same_pixels(tmp_path, size, channels, resize):
    from transformers import AutoImageProcessor

    own = preprocessing(channels=channels, resize=resize, mean=(0.4,) * channels, std=(0.2,) * channels)
    own.processor().save_pretrained(tmp_path)
    image = noise(*size, channels=channels)
    reloaded = AutoImageProcessor.from_pretrained(tmp_path)
    theirs = reloaded(image, return_tensors="np")["pixel_values"][0]
    ours = own.normalise(own.pixels(image))
    # 1e-6 of Pillow's resizing; torchvision, which transformers prefers where it is installed, is off by one level.
    tolerance = 1e-6 if "Pil" in type(reloaded).__name__ else 1.01 / 255 / 0.2
    assert np.abs(theirs - ours).max() < tolerance


def test_modes():
    grey = noise(4, 4, channels=1)
    as_colour = preprocessing().pixels(grey)
    assert (as_colour == np.asarray(grey)).all()
    for mode in ("1", "P", "RGBA", "CMYK"):
        assert preprocessing(channels=1, mean=(0.5,), std=(0.5,)).pixels(noise(4, 4).convert(mode)).shape == (1, 4, 4)
    with pytest.raises(Unreadable, match="more than 8 bits"):
        preprocessing().pixels(Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)))


def test_a_camera_that_was_turned():
    image = noise(4, 4)
    image.getexif()[0x0112] = 3  # upside down
    file = io.BytesIO()
    image.save(file, "PNG", exif=image.getexif())
    assert (preprocessing().pixels(Image.open(file)) == np.asarray(image).transpose(2, 0, 1)[:, ::-1, ::-1]).all()


def test_problems():
    assert preprocessing_problems("data", 4, 3, (0.5,) * 3, (0.5,) * 3) == []
    found = preprocessing_problems("data", 4, 3, (0.5, 0.5), (127.5, 0.0, 1.0))
    assert [problem.key for problem in found] == ["data.mean", "data.std[0]", "data.std[1]"]
    assert "counted in 0 ... 1" in found[1].message


def test_take_keeps_columns_together():
    rows = Pictures(["a", "b"], ["x", "y"], ["l", None], [7, 8], lambda i: np.zeros(i), ["m", None])
    taken = rows.take([1, 0])
    assert (taken.ids, taken.texts, taken.labels, taken.numbers) == (["b", "a"], ["y", "x"], [None, "l"], [8, 7])
    assert taken.true_labels == [None, "m"]
    assert len(taken.load(3)) == 3


def test_thumbnail_is_a_small_png():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 100, 50), dtype=np.uint8)
    kind, data = thumbnail(pixels).split(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 64)
    grey = Image.open(io.BytesIO(base64.b64decode(thumbnail(pixels[:1, :28, :28]).split(",")[1])))
    assert (np.asarray(grey) == pixels[0, :28, :28]).all()
