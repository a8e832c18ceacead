"""What prepares a model's inputs and is saved beside it: its tokenizer, or the data's own image processor; and whether model and data fit."""

from pathlib import Path
from typing import Any

from distill_system.data.pictures import takes_pictures
from distill_system.errors import Problem, Refusal
from distill_system.models.images import (
    data_fix,
    differences,
    input_problems,
    load_reader,
    read_processor,
    warnings_of,
)
from distill_system.models.pretrained import Pretrained
from distill_system.models.weights import read_config


def reader_for(source: Any, reader: Any, config: Any, key: str) -> tuple[Any, list[str]]:
    """The reader to train, evaluate and save with, and what a report should know.

    Texts are read by the tokenizer that belongs to the model. How pictures are prepared is the data's matter (`data.size`, `mean`, `std`), so that
    all models of a run see the same; a model that was trained on others is worth a warning.

    Args:
        source: the data.
        reader: the model's own tokenizer or image processor, or None.
        config: the model's, of transformers.
        key: of the model in the config.

    Raises:
        Refusal: the model takes texts and the data is pictures, or the other way round; or pictures have another size or number of channels.
    """
    prepared = source.preprocessing() if takes_pictures(source) else None
    size, channels = _sides(source)
    if problems := input_problems(config.to_dict(), key, size=size, channels=channels):
        raise Refusal(problems)
    if prepared is None:
        return reader, []
    warnings = warnings_of(config)
    if reader is not None and (clauses := differences(reader.to_dict(), prepared.settings())):
        text = f"{key} was trained on pictures prepared in another way than data says: {'; '.join(clauses)}"
        warnings.append(text)
    return prepared.processor(), warnings


def model_problems(recipe: Any, source: Any, key: str) -> list[Problem]:
    """What can be told before anything is started of a recipe and the data: texts or pictures, their size and channels. Without torch."""
    config = recipe.config() if hasattr(recipe, "config") else None
    size, channels = _sides(source)
    return input_problems(config, key, size=size, channels=channels) if config else []


def teacher_problems(name: str, source: Any, key: str) -> list[Problem]:
    """The same of a teacher by folder or hub name, whose settings can't be changed, and whether it was trained on pictures like the data's."""
    recipe = Pretrained(name=name)
    problems = []
    for problem in model_problems(recipe, source, key):
        setting = problem.key.removeprefix(f"{key}.")
        problems.append(
            problem if problem.key == key else Problem(key, f"is '{name}', whose {setting} {problem.message}")
        )
    folder = recipe.local_folder()
    settings = read_processor(folder) if folder is not None and takes_pictures(source) else None
    if problems or settings is None:
        return problems
    clauses = differences(settings, source.preprocessing().settings())
    if clauses:
        text = (
            f"is '{name}', which was trained on pictures prepared in another way than data says: {'; '.join(clauses)}"
        )
        problems.append(Problem(key, f"{text}; set {data_fix(settings)}"))
    return problems


def _sides(source: Any) -> tuple[int | None, int | None]:
    prepared = source.preprocessing() if takes_pictures(source) else None
    return (None, None) if prepared is None else (prepared.size, prepared.channels)


def saved_reader(folder: Path | str, key: str) -> Any:
    """The tokenizer or image processor of a model folder; None where it holds pictures' weights alone."""
    return load_reader(folder, read_config(Path(folder)) or {}, key, local_only=True)
