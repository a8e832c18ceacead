"""What a transformers model emits for a batch: its logits, and its inside where a loss asks for it.

Shapes: B samples, T tokens, D width, C classes or words.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill_system.errors import refuse
from distill_system.models.anatomy import UnknownAnatomy, find_anatomy
from distill_system.signals import Signals

Batch = Mapping[str, Tensor]
Needs = frozenset[str]
LOGITS: Needs = frozenset({"logits"})
# Last words of the names of a layer's three projections, one convention a line; a single name holds all three side by side.
PROJECTIONS = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("c_attn",),
)


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The part of a batch that this model's forward takes (DistilBERT knows no token types, say)."""
    known = _parameters(getattr(model.forward, "__func__", model.forward))
    names = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
    inputs: dict[str, Any] = {name: batch[name] for name in names if name in batch and name in known}
    return inputs | ({"use_cache": False} if "use_cache" in known else {})


@functools.lru_cache(maxsize=64)
def _parameters(forward: Callable) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(forward).parameters


def emit(
    model: nn.Module, batch: Batch, task: str, needs: Needs = LOGITS, *, call: Callable[..., Any] | None = None
) -> Signals:
    """Runs a model once.

    Args:
        model: a transformers model.
        batch: on the model's device.
        task: in "causal_lm" the last position's logits are cut: they speak of no target.
        needs: fields of `Signals` that some loss reads.
        call: what is called with the model's inputs, where the model is wrapped (a DeepSpeed engine).
    """
    inputs = model_inputs(model, batch)
    if "hidden" in needs:
        inputs["output_hidden_states"] = True
    if "attention" in needs:
        inputs["output_attentions"] = True
    recorder = recording(model) if "projections" in needs else contextlib.nullcontext()
    with recorder as recorded:
        output = (call or model)(**inputs)
    logits = output.logits[:, :-1] if task == "causal_lm" else output.logits
    return Signals(
        logits,
        hidden=tuple(output.hidden_states) if "hidden" in needs else None,
        attention=tuple(output.attentions) if "attention" in needs else None,
        projections=tuple(recorded) if recorded is not None else None,
    )


def prepare_for(model: nn.Module, needs: Needs, key: str) -> str | None:
    """Makes a model able to show what is needed of it; returns what a user should know of that, or None.

    Raises:
        Refusal: this model can't show it.
    """
    if "projections" in needs:
        projection_names(model, key)
    if "attention" in needs and getattr(model.config, "_attn_implementation", "eager") != "eager":
        model.set_attn_implementation("eager")
        return f"{key}: attention maps are read, so attention runs in the plain (eager) kernel, which is slower and takes more memory"
    return None


def projection_names(model: nn.Module, key: str) -> list[tuple[str, ...]]:
    """Names of the modules that make queries, keys and values, layer by layer.

    Raises:
        Refusal: none of the known conventions fits.
    """
    try:
        anatomy = find_anatomy(model)
    except UnknownAnatomy as error:
        raise refuse(key, f"reads queries, keys and values, but the model {error}") from error
    found = []
    for layer, module in enumerate(model.get_submodule(anatomy.layers)):
        names = [name for name, _ in module.named_modules()]
        for words in PROJECTIONS:
            places = [[name for name in names if name.rpartition(".")[2] == word] for word in words]
            if all(len(place) == 1 for place in places):
                found.append(tuple(f"{anatomy.layers}.{layer}.{place[0]}" for place in places))
                break
        else:
            text = f"reads queries, keys and values, which {type(model).__name__} doesn't keep under a known name in layer {layer}"
            raise refuse(key, f"{text}; take a hint or attention_transfer instead")
    return found


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Inside, the first forward leaves (queries, keys, values) of each layer in the list when the block ends."""
    names = projection_names(model, "projections")
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        # The first call counts: recomputing a layer in the backward calls it once more.
        return lambda module, inputs, output: None if name in seen else seen.update({name: output})

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for layer in names for name in layer]
    recorded: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
    for layer in names:
        parts = [seen[name] for name in layer]
        queries, keys, values = parts if len(parts) == 3 else parts[0].chunk(3, dim=-1)
        recorded.append((queries, keys, values))


def tiny(batch: Batch, rows: int = 2) -> dict[str, Tensor]:
    """A few rows of a batch, to see what a model emits."""
    return {name: tensor[:rows] for name, tensor in batch.items()}


@torch.no_grad()
def shown(
    model: nn.Module, batch: Batch, task: str, needs: Needs, *, call: Callable[..., Any] | None = None
) -> Signals:
    """What a model emits for a few rows, in eval mode and without a gradient: its shapes are what losses are fitted to."""
    training = model.training
    model.eval()
    try:
        return emit(model, batch, task, needs, call=call)
    finally:
        model.train(training)
