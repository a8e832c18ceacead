"""Models of a few thousand parameters for tests, one of each family, and folders that hold them."""

from pathlib import Path

import torch

from distill_system.export.dense import save_model
from distill_system.models.from_config import FromConfig

LABELS = ["negative", "neutral", "positive"]
SIZES = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48},
    "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 48},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 2},
    "llama": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48},
}
TASKS = [(architecture, "classification") for architecture in SIZES] + [("gpt2", "causal_lm"), ("llama", "causal_lm")]
STACKS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "gpt2": "transformer.h",
    "llama": "model.layers",
}


def recipe(architecture: str, **more) -> FromConfig:
    return FromConfig(
        architecture, tokenizer="bytes", dropout=0.1, **{"max_position_embeddings": 64} | SIZES[architecture] | more
    )


def build(architecture: str, task: str = "classification", seed: int = 0, **more):
    """(model, tokenizer); biases and norms random too, so that a lost one is noticed."""
    labels = LABELS if task == "classification" else None
    model, tokenizer = recipe(architecture, **more).build(task=task, label_names=labels, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model, tokenizer


def folder(path: Path, architecture: str = "bert", task: str = "classification", **more) -> Path:
    model, tokenizer = build(architecture, task, **more)
    save_model(path, model, tokenizer)
    return path


def batch(tokenizer, *texts: str) -> dict[str, torch.Tensor]:
    encoded = tokenizer(list(texts or ("a fine film", "dull")), padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits
