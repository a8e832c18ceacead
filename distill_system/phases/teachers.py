"""From a teacher's settings to a frozen model in place: found, proven to fit the student's labels and vocabulary, and put where it belongs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_system import distributed
from distill_system.data.tokens import Stores
from distill_system.errors import Problem, Refusal
from distill_system.evaluation.evaluate import phase_evaluation
from distill_system.evaluation.metrics import chance
from distill_system.evaluation.predict import predict
from distill_system.export.dense import save_model
from distill_system.files import digest_value, folder_atomic
from distill_system.models.alignment import align_labels, check_tokenizers, cut_vocabulary
from distill_system.models.common import auto_class
from distill_system.models.pretrained import Pretrained
from distill_system.models.streaming import tensor_locations
from distill_system.phases.base import Context, data_module
from distill_system.settings import Teacher as TeacherSettings
from distill_system.training import teachers
from distill_system.training.strategy import DTYPE


def load_teacher(
    name: str, settings: TeacherSettings, context: Context, student: nn.Module, tokenizer: Any
) -> teachers.Teacher:
    """Loads a teacher onto this rank, whole or as this rank's share of it.

    Raises:
        Refusal: its labels or its tokenizer don't fit the student's.
    """
    key = f"phases.{context.name}.teachers.{name}"
    folder = distributed.main_first(lambda: find(settings, context))
    config, teacher_tokenizer = read_config(folder)
    problems, align = alignment(config, student.config, teacher_tokenizer, tokenizer, context, key)
    if problems:
        raise Refusal(problems)
    if settings.placement == "zero3":
        model = teachers.sharded(folder, lambda: make(config, context.task), context.device)
    else:
        model = teachers.replicated(load(folder, context.task), context.device)
    precision = context.training.precision
    autocast = (context.device.type, DTYPE[precision]) if precision != "fp32" else None
    return teachers.Teacher(model, task=context.task, align=align, autocast=autocast)


def find(settings: TeacherSettings, context: Context) -> Path:
    """The teacher's folder with weights in safetensors. A hub model is fetched into a folder of the run by rank 0, once."""
    if settings.phase:
        return context.artifacts[settings.phase]
    assert settings.model is not None
    folder = Path(settings.model).expanduser()
    recipe = Pretrained(name=settings.model)
    if folder.is_dir() and is_native(folder, context.task):
        return folder
    content = digest_value(recipe.fingerprint())[:12]  # other weights under the same path are converted anew
    target = context.folder / "teachers" / f"{settings.model.strip('/').replace('/', '--')[-100:]}-{content}"
    if not (target / "config.json").is_file() and distributed.is_main():
        model, tokenizer = recipe.build(task=context.task, label_names=None, artifacts={}, seed=0)
        with folder_atomic(target) as temporary:
            save_model(temporary, model, tokenizer)  # `save_pretrained` would give some models their hub names back
    return target


def is_native(folder: Path, task: str) -> bool:
    """Whether the files hold the weights under the names that the model's own parameters have, so that shards can be read by name."""
    try:
        places = tensor_locations(folder)
    except (OSError, ValueError):
        return False
    with torch.device("meta"):
        model = make(read_config(folder)[0], task)
    return all(any(name in places for name in names) for names, _ in teachers.shared_parameters(model))


def read_config(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    return AutoConfig.from_pretrained(folder, local_files_only=True), AutoTokenizer.from_pretrained(
        folder, local_files_only=True
    )


def make(config: Any, task: str) -> nn.Module:
    return auto_class(task).from_config(config)


def load(folder: Path, task: str) -> nn.Module:
    return auto_class(task).from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)


def alignment(
    teacher_config: Any, student_config: Any, teacher_tokenizer: Any, tokenizer: Any, context: Context, key: str
) -> tuple[list[Problem], Callable[[Tensor], Tensor] | None]:
    """Problems, and what brings the teacher's logits into the student's order of classes or its range of words."""
    problems = check_tokenizers(teacher_tokenizer, tokenizer, key=key)
    if len(tokenizer) > teacher_config.vocab_size:  # it reads the student's tokens
        text = f"has {teacher_config.vocab_size} embeddings, the student's tokenizer has {len(tokenizer)} tokens"
        problems.append(Problem(key, f"{text}; take the same tokenizer for both"))
    if context.task == "classification":
        aligned = align_labels(teacher_config.id2label, context.label_names or (), key=key)
        context.warnings += aligned.warnings
        problems += aligned.problems
        if problems or aligned.is_identity:
            return problems, None
        index_C = torch.tensor(aligned.order, device=context.device)
        return [], lambda logits_BC: logits_BC.index_select(-1, index_C)
    width = student_config.vocab_size
    known = min(len(teacher_tokenizer), len(tokenizer), width)
    if teacher_config.vocab_size == width == known:
        return problems, None
    return problems, lambda logits_BTV: cut_vocabulary(logits_BTV, known, width)


def warn_of_poor_teachers(
    context: Context, loaded: Mapping[str, teachers.Teacher], stores: Stores, tokenizer: Any
) -> None:
    """Measures each teacher once before it teaches; one that is no better than chance is a warning in the report, for it teaches noise."""
    split = "validation" if "validation" in stores else "test"
    if split not in stores:
        return
    data = data_module(context, stores, tokenizer, start_step=0, total_steps=0)
    for name, teacher in loaded.items():
        predictions = predict(
            teacher,
            data.evaluation_batches(split),
            context.task,
            context.device,
            modules=[teacher.module],
            samples=len(stores[split]),
        )
        store = stores[split]
        figures = phase_evaluation(
            predictions, split=split, label_names=context.label_names or (), num_bytes_N=store.num_bytes
        )
        metrics = figures["metrics"]
        if context.task == "classification":
            assert predictions.labels_N is not None
            said, limit = metrics["accuracy"], chance(predictions.labels_N)
            poor, words = (
                said is not None and said <= limit,
                f"accuracy {said}, always naming the commonest class gives {limit:.3f}",
            )
        else:
            said, limit = metrics["perplexity"], float(predictions.classes)  # None where it overflows
            poor, words = (
                metrics["tokens"] > 0 and (said is None or said >= limit),
                f"perplexity {'infinite' if said is None else said}, guessing among all words gives {limit:.0f}",
            )
        if poor:
            context.warnings.append(
                f"teacher {name} is no better than chance on the {split} rows ({words}): what it teaches is noise"
            )
