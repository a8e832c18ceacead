"""`distill evaluate PATH data=...`: quality, speed and size of a saved model, alone or beside a teacher."""

from pathlib import Path
from typing import Any

from distill_system.config.check import check_node, refuse_if_any
from distill_system.config.compose import compose, import_beside
from distill_system.config.instantiate import instantiate
from distill_system.data.base import SPLITS
from distill_system.errors import Problem, nearest, refuse
from distill_system.files import write_json

OWN = ("teacher", "split", "limit", "batch_size", "json")


def main(words: list[str], *, config_dir: str | None = None) -> int:
    """Prints a table; `json=FILE` writes every figure."""
    settings, overrides, paths = _apart(words)
    if len(paths) != 1:
        raise refuse("PATH", "must be one model folder: distill evaluate runs/NAME/PHASE/model data=movie_reviews")
    folder = _model_folder(paths[0], "PATH")
    teacher = _model_folder(settings["teacher"], "teacher") if "teacher" in settings else None
    import_beside(config_dir)
    composition = compose(overrides, config_dir)
    node = composition.config["data"]
    allowed = ["distill_system", *composition.config["config"]["allowed_targets"]]
    problems = composition.problems + check_node(node, "data", allowed)
    problems += _setting_problems(settings, overrides)
    numbers = {key: _number(settings, key, problems) for key in ("limit", "batch_size")}
    refuse_if_any(problems)
    source = instantiate(node)
    refuse_if_any(source.problems("data"))

    from distill_system import distributed
    from distill_system.evaluation.evaluate import evaluate_folder
    from distill_system.scheduling.rank import quiet_libraries

    quiet_libraries()
    figures = evaluate_folder(
        folder,
        source,
        split=settings.get("split", "test"),
        teacher=teacher,
        batch_size=numbers["batch_size"] or 64,
        device=distributed.device_of("auto"),
        limit=numbers["limit"],
    )
    show(folder, figures)
    if "json" in settings:
        write_json(Path(settings["json"]), figures)
    return 0


def _setting_problems(settings: dict[str, str], overrides: list[str]) -> list[Problem]:
    """Keys that mean nothing here, and a split that there isn't."""
    problems = []
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if key.partition(".")[0].partition("@")[0] not in ("data", "config"):
            problems.append(Problem(key, f"is not a setting here{nearest(key, [*OWN, 'data'])}"))
    split = settings.get("split", "test")
    if split not in SPLITS:
        problems.append(Problem("split", f"is '{split}'{nearest(split, SPLITS)}, must be one of {', '.join(SPLITS)}"))
    return problems


def show(folder: Path, figures: dict[str, Any]) -> None:
    from distill_system.tracking.progress import print_rows

    rows = [
        {"figure": name, "value": f"{value:.4f}" if isinstance(value, float) else str(value)}
        for name, value in _flat(figures)
    ]
    print_rows(rows, title=f"{folder} on the {figures['split']} rows")
    for warning in figures.get("warnings", []):
        print(f"warning: {warning}")


def _flat(figures: dict[str, Any]) -> list[tuple[str, Any]]:
    shown = [(name, value) for name, value in figures["metrics"].items() if value is not None]
    for values in figures.get("teacher", {}).values():
        shown += [(f"{name} with the teacher", value) for name, value in values.items()]
    for size, values in figures["latency"].items():
        shown += [(f"{name} ({size.replace('_', ' ')})", value) for name, value in values.items() if name != "repeats"]
    shown += list(figures["size"].items())
    return [*shown, ("peak_memory_bytes", figures.get("peak_memory_bytes"))]


def _apart(words: list[str]) -> tuple[dict[str, str], list[str], list[str]]:
    settings, overrides, paths = {}, [], []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in OWN:
            settings[name] = value
        elif equals:
            overrides.append(word)
        else:
            paths.append(word)
    return settings, overrides, paths


def _model_folder(text: str, key: str) -> Path:
    """The folder itself, or `model` below a phase's folder."""
    folder = Path(text).expanduser()
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if not (folder / "config.json").is_file():
        raise refuse(
            key, f"is '{text}', which holds no model (no config.json); give a folder such as runs/NAME/PHASE/model"
        )
    return folder


def _number(settings: dict[str, str], key: str, problems: list[Problem]) -> int | None:
    text = settings.get(key)
    if text is None:
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    problems.append(Problem(key, f"is '{text}', must be a whole number >= 1"))
    return None
