"""Rules about Python sources, each a function of a root folder that returns one sentence per violation."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "distill_system"
MAX_LINES = 350

LEVELS = {  # a module imports its own row or a lower one, never a higher one
    6: {"cli", "__main__"},
    5: {"config", "scheduling", "commands", "pipeline"},
    4: {"phases"},
    3: {"training", "evaluation"},
    2: {"tracking", "export"},
    1: {"losses", "pruning", "quantization", "models", "data"},
    0: {
        "signals",
        "artifacts",
        "distributed",
        "errors",
        "schedules",
        "schema",
        "settings",
        "files",
        "packages",
        "patterns",
        "debian",
        "hardware",
        "manifest",
        "verdict",
    },
}
LEVEL_OF = {name: level for level, names in LEVELS.items() for name in names}
ROW_ONE_EXCEPTIONS = {
    ("pruning", "models.anatomy"),
    ("pruning", "models.parts"),
    ("pruning", "models.resized"),
    ("quantization", "models.anatomy"),
    ("quantization", "models.grid"),
    ("quantization", "models.input_steps"),
    ("quantization", "models.parts"),
}

LIBRARIES = {  # where a library may be imported
    "hydra": {"cli", "config"},
    "wandb": {"tracking"},
    "submitit": {"scheduling"},
    "lightning": {"training", "data.datamodule"},
    "pytorch_lightning": set(),
    "deepspeed": {"training", "distributed"},
}

# The checks of a run import these before any torch is needed; so do the classes that conf/data, conf/models and conf/tracking name.
TORCH_FREE = (
    "errors",
    "schema",
    "settings",
    "files",
    "artifacts",
    "packages",
    "debian",
    "cli",
    "config",
    "scheduling",
    "tracking",
)

MAY_PRINT = LEVELS[6] | LEVELS[5] | {"tracking"}  # those that speak to a person

NEWER_THAN_310 = {  # module: names that Python 3.10 doesn't have
    "tomllib": {""},
    "hashlib": {"file_digest"},
    "datetime": {"UTC"},
    "enum": {"StrEnum", "ReprEnum", "verify", "member", "nonmember"},
    "typing": {
        "Self",
        "LiteralString",
        "Never",
        "Required",
        "NotRequired",
        "Unpack",
        "TypeVarTuple",
        "assert_never",
        "assert_type",
    }
    | {"reveal_type", "dataclass_transform", "override", "TypeAliasType", "get_overloads"},
    "contextlib": {"chdir"},
    "asyncio": {"TaskGroup", "timeout", "Runner", "Barrier"},
    "itertools": {"batched"},
    "logging": {"getLevelNamesMapping"},
    "operator": {"call"},
    "inspect": {"getmembers_static", "BufferFlags"},
    "math": {"cbrt", "exp2", "sumprod"},
}
NEWER_BUILTINS = {"ExceptionGroup", "BaseExceptionGroup"}


def sources(root: Path, folder: str = PACKAGE) -> Iterator[tuple[str, Path, str]]:
    """(module name below `folder`, path relative to root, text) of every Python file of a folder."""
    for path in sorted((root / folder).rglob("*.py")):
        parts = path.relative_to(root / folder).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield module, path.relative_to(root), path.read_text(encoding="utf-8")


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[str, int]]:
    """Absolute dotted names of everything a module imports, at any depth, with the line. `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = [PACKAGE, *filter(None, module.split("."))]
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def _inside(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def import_direction(root: Path) -> list[str]:
    found = []
    for module, path, text in sources(root):
        own = module.split(".")[0]
        if not module:
            continue
        if own not in LEVEL_OF:
            found.append(f"{path}: {own!r} has no level; place it in LEVELS of tests/policy/code.py")
            continue
        for name, line in imports(ast.parse(text), module, path.name == "__init__.py"):
            root_name, _, inner = name.partition(".")
            target = inner.split(".")[0]
            if root_name != PACKAGE or target not in LEVEL_OF:
                continue
            if LEVEL_OF[target] > LEVEL_OF[own]:
                found.append(
                    f"{path}:{line}: {own} (level {LEVEL_OF[own]}) imports {target} (level {LEVEL_OF[target]})"
                )
            elif LEVEL_OF[own] == LEVEL_OF[target] == 1 and own != target:
                allowed = {what for who, what in ROW_ONE_EXCEPTIONS if who == own}
                if not _inside(inner, allowed):
                    found.append(f"{path}:{line}: {own} imports its neighbour {inner}")
    return found


def library_places(root: Path) -> list[str]:
    found = []
    for module, path, text in sources(root):
        for name, line in imports(ast.parse(text), module, path.name == "__init__.py"):
            library = name.split(".")[0]
            if library in LIBRARIES and not _inside(module, LIBRARIES[library]):
                places = ", ".join(sorted(LIBRARIES[library])) or "no place (import lightning.pytorch)"
                found.append(f"{path}:{line}: imports {library}, which belongs in {places}")
    return found


def module_length(root: Path) -> list[str]:
    found = []
    for folder in (PACKAGE, "tests", "benchmarks"):
        for _, path, text in sources(root, folder):
            if (lines := len(text.splitlines())) > MAX_LINES:
                found.append(f"{path}: {lines} lines, at most {MAX_LINES}; split it by what its parts are about")
    return found


def prints(root: Path) -> list[str]:
    found = []
    for module, path, text in sources(root):
        if _inside(module, MAY_PRINT):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{path}:{node.lineno}: print(...); use logging, or return the text")
    return found


def module_docstrings(root: Path) -> list[str]:
    """`__init__.py` is empty (but for the package's own version), everything else opens with a sentence."""
    found = []
    for module, path, text in sources(root):
        if path.name == "__init__.py":
            if module and text.strip():
                found.append(f"{path}: must be empty")
        elif not ast.get_docstring(ast.parse(text)):
            found.append(f"{path}: no docstring that says what it is")
    return found


def python_310(root: Path) -> list[str]:
    """Syntax and standard library that Python 3.10 doesn't have. (mypy finds them too, where it knows the types.)"""
    found = []
    for folder in (PACKAGE, "tests", "benchmarks", ".ci"):
        for module, path, text in sources(root, folder):
            try:
                tree = ast.parse(text, feature_version=(3, 10))
            except SyntaxError as error:
                found.append(f"{path}:{error.lineno}: {error.msg}")
                continue
            for name, line in imports(tree, module, path.name == "__init__.py"):
                library, _, attribute = name.partition(".")
                if attribute in NEWER_THAN_310.get(library, ()) or "" in NEWER_THAN_310.get(library, ()):
                    found.append(f"{path}:{line}: {name} is newer than Python 3.10")
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    if node.attr in NEWER_THAN_310.get(node.value.id, ()):
                        found.append(f"{path}:{node.lineno}: {node.value.id}.{node.attr} is newer than Python 3.10")
                elif isinstance(node, ast.Name) and node.id in NEWER_BUILTINS:
                    found.append(f"{path}:{node.lineno}: {node.id} is newer than Python 3.10")
    return found


def torch_free(
    root: Path, targets: set[str], forbidden: tuple[str, ...] = ("torch", "transformers", "lightning", "deepspeed")
) -> list[str]:
    """Imports, in one fresh process, the modules of TORCH_FREE and those of `targets`, and reports each that brings in a heavy library."""
    modules = sorted(
        {f"{PACKAGE}.{module}" for module, _, _ in sources(root) if module and _inside(module, set(TORCH_FREE))}
        | targets
    )
    script = (
        "import importlib, sys\n"
        f"sys.path.insert(0, {str(root)!r})\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
        f"    for name in {forbidden!r}:\n"
        "        if name in sys.modules:\n"
        "            print(f'{module}: importing it imports {name}; import that inside the function that needs it')\n"
        f"            for loaded in [m for m in sys.modules if m.split('.')[0] in {(*forbidden, PACKAGE)!r}]:\n"
        "                del sys.modules[loaded]\n"
        "            break\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=root, timeout=120
    )
    return done.stdout.splitlines() + ([done.stderr.strip()] if done.returncode else [])
