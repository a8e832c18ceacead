"""Rows of pictures, and how a picture becomes the pixels that a model sees: colours, size, mean and deviation. Pillow is imported inside functions only.

The same steps are written beside a model as an image processor, so that plain `AutoImageProcessor.from_pretrained` gives these pixels again: to 1e-6
where Pillow does the resizing; transformers prefers torchvision where that is installed, whose resizing differs by at most one of 255 levels.

Shapes: C channels, H rows, W columns of pixels.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from distill_system.data.augment import Augmentation
from distill_system.errors import Problem

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of Pillow, 8 bit; 16-bit ones would be clipped


class Unreadable(ValueError):
    """A file that is no picture that can be taken; the message is a clause that goes on after the file's name."""


@dataclass
class Pictures:
    """Rows of one split. Pixels are made when they are asked for, so that a data set needn't fit into memory.

    Args:
        ids: names a row in reports, and decides its split.
        texts: says in a report which picture a row is.
        labels: names of labels, None where unknown.
        numbers: of each row, for `load`.
        load: number -> uint8 [C, H, W]; raises Unreadable.
        true_labels: the label that a row had before noise changed it, None elsewhere.
    """

    ids: list[str]
    texts: list[str]
    labels: list[str | None]
    numbers: list[int]
    load: Callable[[int], np.ndarray]
    true_labels: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Iterable[int]) -> "Pictures":
        chosen = list(indices)
        columns: dict[str, Any] = {
            name: [getattr(self, name)[i] for i in chosen] for name in ("ids", "texts", "labels", "numbers")
        }
        true = None if self.true_labels is None else [self.true_labels[i] for i in chosen]
        return dataclasses.replace(self, **columns, true_labels=true)


class PictureSource(Protocol):
    """A data set of pictures: what `base.Source` asks for, with `Pictures` for rows, and how they are prepared."""

    task: Literal["classification"]
    inputs: Literal["images"]

    def label_names(self) -> list[str]: ...

    def read(self) -> dict[str, Pictures]: ...

    def fingerprint(self) -> dict: ...

    def content(self) -> dict:
        """The part of the fingerprint that decides the stored pixels and labels."""

    def preprocessing(self) -> "Preprocessing": ...

    def augmentation(self) -> Augmentation | None:
        """What is done to training pictures; None: nothing."""


def takes_pictures(source: Any) -> bool:
    return getattr(source, "inputs", "texts") == "images"


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes pixels.

    Args:
        size: rows and columns of the result.
        channels: 1 (grey) or 3 (red, green, blue).
        resize: `crop` resizes the shorter side to `size` and cuts the middle out; `stretch` resizes both sides.
        mean: of each channel, in 0 ... 1; subtracted.
        std: of each channel, in 0 ... 1; divided by.
    """

    size: int
    channels: int
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, image: "Image") -> np.ndarray:
        """uint8 [C, H, W], not yet normalised.

        Raises:
            Unreadable: the picture has more than 8 bits a channel.
        """
        from PIL import ImageOps
        from PIL.Image import Resampling

        if image.mode not in MODES:
            raise Unreadable(f"has the mode {image.mode}, more than 8 bits a channel; save it with 8 bits")
        image = ImageOps.exif_transpose(image).convert("L" if self.channels == 1 else "RGB")
        width, height = image.size
        if self.resize == "stretch":
            size = (self.size, self.size)
        else:
            short, long = sorted((width, height))
            longer = int(self.size * long / short)
            size = (self.size, longer) if width <= height else (longer, self.size)
        if size != image.size:
            image = image.resize(size, Resampling.BILINEAR)
        left, top = (size[0] - self.size) // 2, (size[1] - self.size) // 2
        array_HWC = np.asarray(image).reshape(size[1], size[0], self.channels)
        return array_HWC[top : top + self.size, left : left + self.size].transpose(2, 0, 1)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """float32 of uint8 [..., C, H, W]: (x / 255 - mean) / std."""
        mean, std = np.float64(self.mean)[:, None, None], np.float64(self.std)[:, None, None]
        return pixels * (1 / (255 * std)).astype(np.float32) - (mean / std).astype(np.float32)

    def settings(self) -> dict[str, Any]:
        """In the words of an image processor's config."""
        square = {"height": self.size, "width": self.size}
        crop = self.resize == "crop"
        shared: dict[str, Any] = {
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "do_convert_rgb": self.channels == 3,
        }
        shared |= {"image_mean": list(self.mean), "image_std": list(self.std), "do_resize": True, "resample": 2}
        if crop:
            return shared | {"size": {"shortest_edge": self.size}, "do_center_crop": True, "crop_size": square}
        return shared | {"size": square}

    def processor(self) -> Any:
        """The image processor of transformers that does the same; made of a class that has done these steps in every version."""
        import transformers
        from transformers.utils import logging

        level = logging.get_verbosity()
        logging.set_verbosity_error()  # it would advise to install torchvision
        try:
            cls = transformers.CLIPImageProcessor if self.resize == "crop" else transformers.ViTImageProcessor
            return cls(**self.settings())
        finally:
            logging.set_verbosity(level)


def preprocessing_problems(
    key: str, size: int, channels: int, mean: Sequence[float], std: Sequence[float]
) -> list[Problem]:
    """What is wrong with the settings of a source of pictures."""
    problems = []
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            text = f"is {list(values)}, must hold one number for each of {channels} channels ({key}.channels)"
            problems.append(Problem(f"{key}.{name}", text))
        for i, value in enumerate(values):
            if not (0 <= value <= 1 if name == "mean" else 0 < value <= 1):
                limit = "from 0 to 1" if name == "mean" else "above 0 and at most 1"
                problems.append(
                    Problem(f"{key}.{name}[{i}]", f"is {value}, must be {limit}: pixels are counted in 0 ... 1")
                )
    return problems


def view_settings(preprocessing: Preprocessing, augmentation: Augmentation | None) -> dict[str, Any]:
    """The part of a source's fingerprint that decides what a model sees of the stored pixels."""
    changes = None if augmentation is None else dataclasses.asdict(augmentation)
    return {"mean": list(preprocessing.mean), "std": list(preprocessing.std), "augmentation": changes}


def thumbnail(pixels_CHW: np.ndarray, largest: int = 64) -> str:
    """A small PNG as a data URI, for a report."""
    import base64
    import io

    from PIL import Image

    array = pixels_CHW[0] if len(pixels_CHW) == 1 else pixels_CHW.transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(array))
    image.thumbnail((largest, largest))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
