"""What an experiment set for a choice that the command line has swapped for another, and that the new choice doesn't know, is left out with a note."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distill_system.schema import Signature, signature_of_target


def split_override(text: str) -> tuple[str, str, str]:
    """`+models@phases.x.model=hub` -> ("models", "phases.x.model", "hub"); the package of `data=table` is `data`, a value's is its key."""
    key, _, value = text.lstrip("+~").partition("=")
    group, _, package = key.partition("@")
    return group, package.rpartition(":")[2] or group, value


def may_have_any(config: dict[str, Any], swap: str) -> bool:
    """Whether the swapped node holds anything that its choice may not know; spares most command lines a second composition."""
    node = at(config, split_override(swap)[1])
    signature = _signature(node)
    if signature is None:
        return False
    strange = any(name != "_target_" and name not in signature.parameters for name in node)
    parts = [
        part
        for value in node.values()
        if isinstance(value, dict) and "_target_" not in value
        for part in value.values()
    ]
    return strange or any(isinstance(part, dict) and "_target_" not in part for part in parts)


def drop_leftovers(
    config: dict[str, Any],
    before: dict[str, Any],
    swaps: Sequence[str],
    overrides: Sequence[str],
    own_keys: Callable[[str, str], set[str]],
) -> list[str]:
    """Removes, in place, the keys of each swapped node that the old choice knew and the new one doesn't; gives a note for each node.

    Args:
        config: as composed, plain.
        before: composed without the swaps.
        swaps: the overrides that choose (`models@phases.student.model=hub`).
        overrides: the whole command line; what it sets itself stays, and is judged by the schema.
        own_keys: keys that the file of a choice sets, by group and choice.
    """
    notes = []
    for swap in swaps:
        group, path, choice = split_override(swap)
        node, old = at(config, path), at(before, path)
        new_signature, old_signature = _signature(node), _signature(old)
        if new_signature is None or old_signature is None or node["_target_"] == old["_target_"]:
            continue
        own = own_keys(group, choice)
        dropped = []
        for name in list(node):
            known = name == "_target_" or name in new_signature.parameters or name in own
            known_before = name in old_signature.parameters or (old_signature.open and name in old)
            if not known and known_before and not is_typed(f"{path}.{name}", overrides):
                dropped.append(name)
                del node[name]
        dropped += _drop_headless(node, old, path, overrides)
        if dropped:
            verb = "don't" if len(dropped) > 1 else "doesn't"
            end = "are" if len(dropped) > 1 else "is"
            listed = ", ".join(f"{path}.{name}" for name in dropped)
            notes.append(f"note: {listed} of the experiment {verb} apply to {choice} and {end} left out")
    return notes


def _drop_headless(node: dict[str, Any], old: dict[str, Any], path: str, overrides: Sequence[str]) -> list[str]:
    """Settings of parts that came and went with the old choice, such as `losses.soft` of a phase that no longer distils."""
    dropped = []
    for name, parts in node.items():
        if not isinstance(parts, dict) or "_target_" in parts or not isinstance(old.get(name), dict):
            continue
        for part, values in list(parts.items()):
            headless = isinstance(values, dict) and "_target_" not in values
            had_head = isinstance(old[name].get(part), dict) and "_target_" in old[name][part]
            if headless and had_head and not is_typed(f"{path}.{name}.{part}", overrides):
                dropped.append(f"{name}.{part}")
                del parts[part]
    return dropped


def is_typed(key: str, overrides: Sequence[str]) -> bool:
    """Whether the command line itself sets `key`, something below it, or a group around it that names it."""
    for text in overrides:
        _, path, value = split_override(text)
        if path == key or path.startswith(f"{key}."):
            return True
        if key.startswith(f"{path}.") and value.startswith("{") and key.rpartition(".")[2] in value:
            return True
    return False


def own_keys_in(folders: Sequence[Path]) -> Callable[[str, str], set[str]]:
    """Keys that `<group>/<choice>.yaml` sets, in the first folder that has it."""

    def keys(group: str, choice: str) -> set[str]:
        import yaml

        for folder in folders:
            path = folder / group / f"{choice}.yaml"
            if path.is_file():
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
                return set(content) if isinstance(content, dict) else set()
        return set()

    return keys


def at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _signature(node: Any) -> Signature | None:
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        return None
    try:
        return signature_of_target(node["_target_"])
    except LookupError:
        return None
