"""The signature is the schema: types and ranges of a config node are read from its `_target_`'s parameters, without importing it.

A class that a config names (`_target_: distill_system.losses.logits.SoftTarget`) annotates its parameters with the aliases below
(`temperature: Positive = 2.0`). The annotations are read from the source by `ast`, so a wrong value is refused in milliseconds, before torch is
imported, and a new loss or data set brings its own checks with it: no second list of keys is kept anywhere.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import math
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

from distill_system.errors import Problem, nearest


@dataclasses.dataclass(frozen=True)
class Range:
    """Limits of a number; `above`/`below` exclude the limit, `at_least`/`at_most` include it."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        limits = [(">", self.above), (">=", self.at_least), ("<", self.below), ("<=", self.at_most)]
        return " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None) or "finite"


Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Fraction = Annotated[float, Range(at_least=0, at_most=1)]  # 0 and 1 included
ProperFraction = Annotated[float, Range(at_least=0, below=1)]  # 1 excluded
Finite = Annotated[float, Range()]
Count = Annotated[int, Range(at_least=1)]
Index = Annotated[int, Range(at_least=0)]


@dataclasses.dataclass(frozen=True)
class Parameter:
    annotation: Any = Any
    required: bool = False


@dataclasses.dataclass(frozen=True)
class Signature:
    """Parameters of a config's target, its plain class attributes (`needs_teacher = True`) and whether it takes any keyword."""

    parameters: dict[str, Parameter]
    attributes: dict[str, Any]
    open: bool = False


def in_words(value: Any) -> str:
    """A value as a config spells it: null, true and false; texts in quotes."""
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    )


def snake(cls: type) -> str:
    """A class's name as config groups spell it: `MeanActivation` as `mean_activation`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def check(value: Any, annotation: Any, key: str) -> list[Problem]:
    """Problems of one value against one annotation; an annotation this module doesn't know accepts everything."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return []
    if origin is Annotated:
        problems = check(value, arguments[0], key)
        limits = [extra for extra in arguments[1:] if isinstance(extra, Range) and not problems and value not in extra]
        return problems + [Problem(key, f"is {in_words(value)}, must be {limit}") for limit in limits]
    if origin in (Union, types.UnionType):
        branches = [check(value, argument, key) for argument in arguments]
        return (
            _furthest([b for b, argument in zip(branches, arguments) if argument is not type(None)], key)
            if all(branches)
            else []
        )
    if origin is Literal:
        if value in arguments and type(value) in {type(argument) for argument in arguments}:
            return []
        close = nearest(str(value), map(str, arguments))
        words = f"is {in_words(value)}{close if 'did you mean' in close else ''}, must be "
        return [Problem(key, words + ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments)))]
    if origin is list or annotation is list:
        if not isinstance(value, list):
            return [Problem(key, f"is {in_words(value)}, must be a list such as [a,b]")]
        return [
            p for i, item in enumerate(value) for p in check(item, arguments[0] if arguments else Any, f"{key}[{i}]")
        ]
    if origin is dict or annotation is dict:
        if not isinstance(value, dict):
            return [Problem(key, f"is {in_words(value)}, must be a group of named settings")]
        return [
            p for name, item in value.items() for p in check(item, arguments[1] if arguments else Any, f"{key}.{name}")
        ]
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        if not isinstance(value, dict):
            return [
                Problem(
                    key,
                    f"is {in_words(value)}, must be a group of settings ({', '.join(f.name for f in dataclasses.fields(annotation))})",
                )
            ]
        return check_parameters(value, signature_of_dataclass(annotation), key)
    return _check_plain(value, annotation, key)


WRONG_KIND = ("must be a ", "must be true or false")  # against a value that is no number, list, group ... at all


def _furthest(branches: list[list[Problem]], key: str) -> list[Problem]:
    """Of the complaints of each kind that a setting may have, those of the kind that the value comes closest to.

    What hangs on a part of the value (`key.start`, `key[0]`) has recognised the whole; a range or a choice is more telling than a wrong kind; where
    every kind is wrong, all are named.
    """
    inside = [problems for problems in branches if problems[0].key != key]
    right_kind = [problems for problems in branches if not any(words in problems[0].message for words in WRONG_KIND)]
    if len(branches) == 1 or inside or right_kind:
        return (inside or right_kind or branches)[0]
    wanted = [problems[0].message.partition("must be ")[2] for problems in branches]
    return [Problem(key, branches[0][0].message.partition("must be ")[0] + "must be " + ", or ".join(wanted))]


def _check_plain(value: Any, annotation: Any, key: str) -> list[Problem]:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    if annotation not in words:
        return []
    accepted = {float: (int, float)}.get(annotation, annotation)
    wrong_bool = isinstance(value, bool) and annotation in (int, float)
    if isinstance(value, accepted) and not wrong_bool:
        return []
    return [Problem(key, f"is {in_words(value)}, must be {words[annotation]}")]


def check_parameters(values: dict[str, Any], signature: Signature, key: str) -> list[Problem]:
    """Unknown keys (with the nearest right one), missing ones, and each value against its annotation."""
    problems = []
    prefix = f"{key}." if key else ""
    for name, value in values.items():
        if name == "_target_":
            continue
        parameter = signature.parameters.get(name)
        if parameter is not None:
            problems += check(value, parameter.annotation, prefix + name)
        elif not signature.open:
            problems.append(Problem(prefix + name, f"is not a setting here{nearest(name, signature.parameters)}"))
    missing = [name for name, parameter in signature.parameters.items() if parameter.required and name not in values]
    return problems + [Problem(prefix + name, "is missing and has no default") for name in missing]


def signature_of_dataclass(cls: type) -> Signature:
    hints = typing.get_type_hints(cls, include_extras=True)
    unset = dataclasses.MISSING
    return Signature(
        {
            f.name: Parameter(hints[f.name], f.default is unset and f.default_factory is unset)
            for f in dataclasses.fields(cls)
        },
        {},
    )


@functools.cache
def signature_of_target(target: str) -> Signature:
    """Reads the parameters of `package.module.Class` from its source.

    Raises:
        LookupError: no such module, or no such class or function in it; the message names what there is.
    """
    module_name, _, name = target.rpartition(".")
    try:
        spec = importlib.util.find_spec(module_name) if module_name else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise LookupError(f"there is no module {module_name or target!r}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    nodes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    if name not in nodes:
        raise LookupError(f"{module_name} has no {name!r}{nearest(name, nodes)}")
    return _read_class(nodes[name], nodes)


def _read_class(node: ast.ClassDef | ast.FunctionDef, siblings: dict[str, Any]) -> Signature:
    if isinstance(node, ast.FunctionDef):
        return _read_function(node, {})
    attributes: dict[str, Any] = {}
    fields: dict[str, Parameter] = {}
    for base in node.bases:  # what a class inherits from a neighbour in the same file counts too
        if isinstance(base, ast.Name) and isinstance(siblings.get(base.id), ast.ClassDef):
            inherited = _read_class(siblings[base.id], siblings)
            attributes |= inherited.attributes
            fields |= inherited.parameters
    is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            with contextlib.suppress(ValueError):  # a value that isn't a literal
                value = ast.literal_eval(statement.value)
                attributes |= {target.id: value for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotation = _evaluate(statement.annotation)
            if typing.get_origin(annotation) is typing.ClassVar or not is_dataclass:
                with contextlib.suppress(ValueError):  # a value that isn't a literal
                    attributes[statement.target.id] = ast.literal_eval(statement.value) if statement.value else None
            else:
                fields[statement.target.id] = Parameter(annotation, statement.value is None)
        elif isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _read_function(statement, attributes)
    return Signature(fields, attributes)


def _read_function(node: ast.FunctionDef, attributes: dict[str, Any]) -> Signature:
    arguments = node.args
    positional = [a for a in arguments.posonlyargs + arguments.args if a.arg not in ("self", "cls")]
    optional = {a.arg for a in positional[len(positional) - len(arguments.defaults) :]} if arguments.defaults else set()
    optional |= {
        a.arg for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is not None
    }
    parameters = {
        a.arg: Parameter(_evaluate(a.annotation), a.arg not in optional) for a in positional + arguments.kwonlyargs
    }
    return Signature(parameters, attributes, open=arguments.kwarg is not None)


def _evaluate(annotation: ast.expr | None) -> Any:
    """The annotation as an object where it is made of builtins, `typing` and the names of this module and `settings`; else Any."""
    if annotation is None:
        return Any
    from distill_system import settings

    names = {k: v for k, v in vars(settings).items() if dataclasses.is_dataclass(v)}
    names |= {k: v for k, v in globals().items() if not k.startswith("_")} | {
        "Optional": Optional,
        "ClassVar": typing.ClassVar,
    }
    source = (
        annotation.value
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
        else ast.unparse(annotation)
    )
    try:
        return eval(source, {"__builtins__": {}}, names | {t.__name__: t for t in (int, float, str, bool, list, dict)})
    except Exception:
        return Any
