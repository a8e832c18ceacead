"""Rules about the config groups, each a function of a root folder that returns one sentence per violation."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from distill_system.schema import Signature, signature_of_target
from distill_system.settings import Training
from tests.policy.code import PACKAGE

COMPOSITION_KEYS = {"_target_", "defaults"}


def yaml_files(root: Path) -> Iterator[tuple[str, Path, str]]:
    """(group, path relative to root, text) of every config file; the group of `conf/config.yaml` is empty."""
    for path in sorted((root / "conf").rglob("*.yaml")):
        inner = path.relative_to(root / "conf")
        yield inner.parts[0] if len(inner.parts) > 1 else "", path.relative_to(root), path.read_text(encoding="utf-8")


def leading_comment(text: str) -> list[str]:
    """The lines of the comment a file opens with, without Hydra's `@package` directive."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return [line for line in lines if line and not line.startswith("@package")]


def opening_comments(root: Path) -> list[str]:
    return [
        f"{path}: doesn't open with a comment that says what it is"
        for _, path, text in yaml_files(root)
        if not leading_comment(text)
    ]


def experiments(root: Path) -> list[str]:
    """An experiment is overrides only, and opens with the command that runs it."""
    found = []
    for group, path, text in yaml_files(root):
        if group != "experiment":
            continue
        name = path.relative_to(Path("conf") / "experiment").with_suffix("").as_posix()
        commands = [line.split() for line in leading_comment(text) if "distill run" in line]
        if not any(f"experiment={name}" in words for words in commands):
            found.append(f"{path}: its opening comment doesn't show the command (distill run experiment={name})")
        if "@package _global_" not in "\n".join(text.splitlines()[:3]):
            found.append(
                f"{path}: has no '# @package _global_' in its first lines, so its overrides would land below 'experiment'"
            )
        for place, node in _nodes(yaml.safe_load(text), ""):
            if "_target_" in node:
                found.append(
                    f"{path}: {place or 'the file'} names a _target_; an experiment chooses groups and overrides values"
                )
    return found


HOMES = {"scores": "pruning.scores"}  # groups whose folder lies in another's


def targets(root: Path, package: str = PACKAGE) -> list[str]:
    """`conf/losses/x.yaml` names something of `distill_system.losses`, with exactly its parameters as keys."""
    found = []
    for group, path, text in yaml_files(root):
        for place, node in _nodes(yaml.safe_load(text), ""):
            target = node.get("_target_")
            if target is None:
                continue
            where = f"{path}: {place}._target_" if place else f"{path}: _target_"
            folder = f"{package}.{HOMES.get(group, group)}." if not place else f"{package}."
            if not str(target).startswith(folder):
                found.append(f"{where} is {target}, must begin with {folder}")
                continue
            try:
                signature = signature_of_target(target)
            except LookupError as error:
                found.append(f"{where}: {error}")
                continue
            found += _keys_against_parameters(where, node, signature, complete=not place)
    return found


def _keys_against_parameters(where: str, node: dict[str, Any], signature: Signature, complete: bool) -> list[str]:
    keys = set(node) - COMPOSITION_KEYS
    composed = {_group_target(entry) for entry in node.get("defaults", [])}
    unknown = set() if signature.open else keys - set(signature.parameters)
    missing = set(signature.parameters) - keys - composed if complete else set()
    found = [f"{where}: {key!r} is no parameter of it" for key in sorted(unknown)]
    return found + [f"{where}: its parameter {key!r} is not in the file" for key in sorted(missing)]


def _group_target(entry: Any) -> str:
    """The key that an entry of a defaults list fills: `/losses@losses.soft: soft_target` fills `losses`."""
    group = next(iter(entry)) if isinstance(entry, dict) else str(entry)
    return group.removeprefix("override ").rpartition("@")[2].lstrip("/").split(".")[0]


def _nodes(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield place, value
        for key, item in value.items():
            yield from _nodes(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _nodes(item, f"{place}[{i}]")


def training_keys(root: Path) -> list[str]:
    """`conf/training/*.yaml` sets fields of `settings.Training`, and `default.yaml` shows every field with the default it has there."""
    defaults = {field.name: field.default for field in dataclasses.fields(Training)}
    fields = set(defaults)
    found, shown = [], {}
    for group, path, text in yaml_files(root):
        if group != "training":
            continue
        values = {key: value for key, value in (yaml.safe_load(text) or {}).items() if key not in COMPOSITION_KEYS}
        found += [f"{path}: {key!r} is no field of settings.Training" for key in values if key not in fields]
        if path.name == "default.yaml":
            shown = values
            found += [
                f"{path}: {key} is {value!r} here and {defaults[key]!r} in settings.Training"
                for key, value in values.items()
                if key in fields and value != defaults[key]
            ]
    if (root / "conf" / "training").is_dir():
        found += [
            f"conf/training/default.yaml: doesn't show the default of {field!r}"
            for field in sorted(fields - set(shown))
        ]
    return found


def torch_free_targets(root: Path) -> set[str]:
    """Modules that the checks of a run import: those that files of conf/data, conf/models and conf/tracking name."""
    nodes = [
        yaml.safe_load(text) or {} for group, _, text in yaml_files(root) if group in ("data", "models", "tracking")
    ]
    return {node["_target_"].rpartition(".")[0] for node in nodes if "_target_" in node}
