"""Models whose config can't say how wide each layer is: `config.reshape` lists the linears that are smaller than the config says.

This file needs nothing but torch and transformers: a copy of it lies in the folder of such a model, so that
`AutoModel....from_pretrained(folder, trust_remote_code=True)` builds it where nothing else is installed.
"""

import functools
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D


def reshape(model: nn.Module, record: dict[str, Any]) -> None:
    """Makes the linears of a freshly built model as small as the record says; what they held beyond is cut off.

    Args:
        model: as its config builds it, changed in place; it may be on the meta device.
        record: `{"modules": {name: [outputs, inputs]}, "attributes": {module: {name: whole number}}}`.

    Raises:
        ValueError: the record names what the model doesn't have, or sizes beyond it: it belongs to another model.
    """
    modules = dict(model.named_modules())
    for name, (outputs, inputs) in record.get("modules", {}).items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear | Conv1D):
            raise ValueError(f"config.reshape names {name!r}, which is no linear of a {type(model).__name__}")
        _resize(module, name, outputs, inputs)
    for name, values in record.get("attributes", {}).items():
        for attribute, value in values.items():
            if name not in modules or not isinstance(getattr(modules[name], attribute, None), int):
                raise ValueError(
                    f"config.reshape names {name}.{attribute}, which a {type(model).__name__} doesn't have"
                )
            setattr(modules[name], attribute, value)


def _resize(module: Any, name: str, outputs: int, inputs: int) -> None:
    stored = isinstance(module, Conv1D)
    old = (module.nf, module.nx) if stored else (module.out_features, module.in_features)
    if not (0 < outputs <= old[0] and 0 < inputs <= old[1]):
        raise ValueError(f"config.reshape gives {name} {inputs} inputs and {outputs} outputs, the config {old[::-1]}")
    rows, columns = (inputs, outputs) if stored else (outputs, inputs)
    module.weight = _part(module.weight, module.weight.data[:rows, :columns])
    if module.bias is not None:
        module.bias = _part(module.bias, module.bias.data[:outputs])
    if stored:
        module.nf, module.nx = outputs, inputs
    else:
        module.out_features, module.in_features = outputs, inputs


def _part(old: nn.Parameter, values: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(values.clone(), requires_grad=old.requires_grad)


@functools.cache
def reshaped(base: type) -> Any:
    """The class of a model whose config may have a `reshape`; otherwise it is `base`, and bears its name."""

    def __init__(self: Any, config: Any, *args: Any, **options: Any) -> None:
        base.__init__(self, config, *args, **options)  # type: ignore[misc]
        record = getattr(config, "reshape", None)
        if record:
            reshape(self, record)

    return type(
        base.__name__, (base,), {"__init__": __init__, "__module__": __name__, "__doc__": base.__doc__, "plain": base}
    )


def __getattr__(name: str) -> Any:
    """`modeling_cut.BertForSequenceClassification`, as the `auto_map` of a folder names it, and as pickle finds it."""
    base = getattr(transformers, name, None)
    if not (isinstance(base, type) and issubclass(base, transformers.PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return reshaped(base)
