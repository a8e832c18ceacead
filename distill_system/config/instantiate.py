"""Objects from config nodes: the one place where a `_target_` becomes a call."""

import importlib
from typing import Any

from distill_system.settings import Training


def instantiate(node: Any) -> Any:
    """Builds the object a node describes, its parts first. A node without `_target_` stays what it is."""
    if isinstance(node, dict):
        values = {key: instantiate(value) for key, value in node.items() if key != "_target_"}
        if "_target_" not in node:
            return values
        module, _, name = node["_target_"].rpartition(".")
        return getattr(importlib.import_module(module), name)(**values)
    if isinstance(node, list):
        return [instantiate(item) for item in node]
    return node


def training_of(config: dict[str, Any], phase: str) -> Training:
    """The settings of one phase: `training` with what `phases.<phase>.training` says over it."""
    return Training(**(config["training"] | (config["phases"][phase].get("training") or {})))
