"""Folders of tiny PNGs for tests."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def write(path: Path, seed: int = 0, size: tuple[int, int] = (10, 8), mode: str = "RGB") -> Path:
    """A picture of noise, `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def folder(root: Path, classes=("cat", "dog"), count: int = 10, **options) -> Path:
    """`count` different pictures for each class."""
    for name in classes:
        for i in range(count):
            write(root / name / f"{i}.png", seed=zlib.crc32(f"{root.name}/{name}/{i}".encode()), **options)
    return root
