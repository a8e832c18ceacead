"""Tiny models of pictures for tests."""

from typing import Any

import torch

from distill_system.models.from_config import FromConfig

LABELS = ["cat", "dog", "bird"]
SIZES: dict[str, dict[str, Any]] = {
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
    },
    "convnext": {
        "num_channels": 1,
        "patch_size": 2,
        "num_stages": 2,
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "layer_scale_init_value": 0.0,
    },
    "resnet": {
        "num_channels": 1,
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
}


def recipe(architecture: str, **more: Any) -> FromConfig:
    return FromConfig(architecture, **(SIZES[architecture] | more))


def build(architecture: str, seed: int = 0, labels: list[str] | None = None, **more: Any) -> Any:
    """A model whose biases are random too, so that a lost one is noticed."""
    model, reader = recipe(architecture, **more).build(task="classification", label_names=labels or LABELS, seed=seed)
    assert reader is None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def batch(rows: int = 3) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1))}


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits
