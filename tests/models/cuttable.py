"""Small models whose heads and neurons can be cut: one of each family, with sizes that tell heads, key-value heads and neurons apart."""

import copy

import torch

from distill_system.export.dense import save_model
from distill_system.models.common import auto_class, quiet, set_labels
from distill_system.pruning.base import Group, Surgery
from distill_system.pruning.cut import unit_groups

LABELS = ["negative", "neutral", "positive"]
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
TOKENS = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER = WIDTHS | TOKENS | {"num_key_value_heads": 2}
FAMILIES = {
    "bert": ("bert", "classification", WIDTHS | TOKENS),
    "roberta": ("roberta", "classification", WIDTHS | TOKENS),
    "distilbert": (
        "distilbert",
        "classification",
        {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48} | TOKENS,
    ),
    "albert": ("albert", "classification", WIDTHS | TOKENS | {"embedding_size": 16}),
    "llama": ("llama", "causal_lm", DECODER),
    "llama_single": ("llama", "causal_lm", DECODER | {"num_key_value_heads": 4}),  # each head has its own keys
    "qwen2": ("qwen2", "causal_lm", DECODER),
    "gpt2": ("gpt2", "causal_lm", {"n_embd": 32, "n_layer": 3, "n_head": 4} | TOKENS),
    "opt": ("opt", "causal_lm", WIDTHS | TOKENS | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi3": ("phi3", "causal_lm", DECODER),  # gate and up in one linear
    "vit": ("vit", "classification", WIDTHS | {"image_size": 8, "patch_size": 4}),
}
CUTS = [
    *((family, kind) for family in FAMILIES for kind in ("neurons", "heads") if (family, kind) != ("phi3", "heads")),
    *((family, "layers") for family in FAMILIES if family != "albert"),
]


def build(family: str, **more):
    """A model with random biases and norms, so that a lost one is noticed."""
    from transformers import AutoConfig

    architecture, task, values = FAMILIES[family]
    config = AutoConfig.for_model(architecture, **values | {"initializer_range": 0.1} | more)
    set_labels(config, LABELS if task == "classification" else None, task)
    config.architectures = ["ViTForImageClassification"] if architecture == "vit" else None
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        model = auto_class(task, config.to_dict()).from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


def inputs(family: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if family == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    return {"input_ids": torch.randint(3, 64, (2, 7), generator=generator)}


def logits(model, family: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(family)).logits


def surgery(model, kind: str, ragged: bool = False) -> Surgery:
    """Takes half of the neurons and one head of each layer, here and there; with `ragged` one unit less in the first layer."""
    if kind == "layers":
        return Surgery(kind, {"layers": [0, 2]})
    generator = torch.Generator().manual_seed(2)
    keep = {}
    for group in unit_groups(model, kind):
        order = torch.randperm(group.units, generator=generator).tolist()
        count = group.units // 2 if kind == "neurons" else group.units - 1
        keep[group.name] = sorted(order[: count + (ragged and group.layer == 0)])
    return Surgery(kind, keep)


def masked(model, groups: list[Group], keep: dict[str, list[int]]):
    """A copy whose units are zero where they aren't kept: in the matrices only, line by line."""
    model = copy.deepcopy(model)
    for group in groups:
        for unit in set(range(group.units)) - set(keep.get(group.name, range(group.units))):
            for part in group.slices:
                weight = model.get_parameter(part.name).data
                assert tuple(weight.shape) == part.shape, part
                weight.narrow(part.axis, part.first + unit * part.width, part.width).zero_()
    return model


def save(folder, model):
    save_model(folder, model, None)
    return folder
