"""From a teacher's settings to a frozen model in place: found, proven to fit the student's labels and vocabulary, and put where it belongs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_system import distributed
from distill_system.artifacts import Artifact
from distill_system.data.tokens import Stores
from distill_system.errors import Problem, Refusal, refuse
from distill_system.evaluation.describe import chance_of
from distill_system.evaluation.evaluate import phase_evaluation
from distill_system.evaluation.names import CHANCE_METRIC, better
from distill_system.evaluation.predict import Predictions, predict
from distill_system.export.dense import load as load_any
from distill_system.export.dense import save_model
from distill_system.files import digest_value, folder_atomic
from distill_system.models.alignment import align_labels, check_tokenizers, cut_vocabulary
from distill_system.models.common import auto_class
from distill_system.models.images import load_reader
from distill_system.models.pretrained import Pretrained
from distill_system.models.reading import folder_config, from_config, from_folder, is_sparse, round_inputs
from distill_system.models.streaming import tensor_locations
from distill_system.phases.base import data_module
from distill_system.phases.context import Context
from distill_system.settings import Ensemble
from distill_system.settings import Teacher as TeacherSettings
from distill_system.signals import IGNORE
from distill_system.training import teachers
from distill_system.training.ensemble import quality_weights
from distill_system.training.strategy import DTYPE


def load_teachers(
    settings: Mapping[str, TeacherSettings],
    context: Context,
    students: Mapping[str, nn.Module],
    tokenizer: Any,
    stores: Stores,
    ensemble: Ensemble,
) -> tuple[dict[str, teachers.Teacher], dict[str, float]]:
    """All teachers of a phase, and their weights (before they are brought to a sum of 1).

    Raises:
        Refusal: a teacher doesn't fit, or none has a weight left.
    """
    student = next(iter(students.values()))
    loaded = {name: load_teacher(name, one, context, student, tokenizer) for name, one in settings.items()}
    partial = [name for name, teacher in loaded.items() if teacher.known is not None]
    if partial and len(loaded) > 1 and ensemble.combine != "losses":
        raise refuse(
            f"phases.{context.name}.ensemble.combine",
            f"is {ensemble.combine}, but teacher {partial[0]} knows only some of the classes; set it to losses, so that each teaches what it knows",
        )
    metrics = warn_of_poor_teachers(context, loaded, stores, tokenizer)
    weights = {name: one.weight for name, one in settings.items()}
    if ensemble.weighting == "quality" and len(loaded) > 1:
        if not metrics:
            raise refuse(
                f"phases.{context.name}.ensemble.weighting",
                "is quality, but there are no validation or test rows to measure the teachers on; set it to fixed",
            )
        weights = quality_weights(metrics, weights, ensemble.sharpness)
        if not sum(weights.values()) > 0:
            raise refuse(f"phases.{context.name}.ensemble.weighting", "is quality, which leaves no teacher any weight")
        total = sum(weights.values())
        told = ", ".join(f"{name} {weight / total:.3f}" for name, weight in weights.items())
        context.note(f"teachers' weights by quality: {told}")
    return loaded, weights


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
    problems, align, known = alignment(config, student.config, teacher_tokenizer, tokenizer, context, key)
    if problems:
        raise Refusal(problems)
    if settings.placement == "zero3":
        whole = load(folder, context.task) if getattr(config, "reshape", None) else None
        model = teachers.sharded(folder, lambda: make(config, context.task), context.device, whole=whole)
    else:
        model = teachers.replicated(load(folder, context.task), context.device)
    precision = context.training.precision
    autocast = (context.device.type, DTYPE[precision]) if precision != "fp32" else None
    return teachers.Teacher(model, task=context.task, align=align, autocast=autocast, known=known)


def find(settings: TeacherSettings, context: Context) -> Path:
    """The teacher's folder with weights in safetensors. A hub model is fetched into a folder of the run by rank 0, once."""
    if settings.phase:
        folder = context.artifacts[settings.phase]
        return unpacked(folder, context) if is_sparse(folder) else folder
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


def unpacked(folder: Path, context: Context) -> Path:
    """The model of a sparse folder with all its zeros, in a folder of the run, from which shards can be read; written by rank 0, once."""
    target = context.folder / "teachers" / f"dense-{Artifact.read(folder).digest[:12]}"
    if not (target / "config.json").is_file() and distributed.is_main():
        with folder_atomic(target) as temporary:
            save_model(temporary, load_any(folder, context.task), read_config(folder)[1])
    distributed.barrier()
    return target


def is_native(folder: Path, task: str) -> bool:
    """Whether the files hold the weights under the names that the model's own parameters have, so that shards can be read by name."""
    try:
        places = tensor_locations(folder)
    except (OSError, ValueError, KeyError):  # no plain weights
        return False
    with torch.device("meta"):
        model = make(read_config(folder)[0], task)
    return all(any(name in places for name in names) for names, _ in teachers.shared_parameters(model))


def read_config(folder: Path) -> tuple[Any, Any]:
    config = folder_config(folder, local_files_only=True)
    return config, load_reader(folder, config, "teachers", local_only=True)


def make(config: Any, task: str) -> nn.Module:
    model: nn.Module = from_config(auto_class(task, config), config)
    round_inputs(model, config)
    return model


def load(folder: Path, task: str) -> nn.Module:
    config = read_config(folder)[0]
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    return from_folder(auto_class(task, config), folder, config, **options)[0]


def alignment(
    teacher_config: Any, student_config: Any, teacher_tokenizer: Any, tokenizer: Any, context: Context, key: str
) -> tuple[list[Problem], Callable[[Tensor], Tensor] | None, Tensor | None]:
    """Problems, what brings the teacher's logits into the student's order of classes or its range of words, and the classes it knows if not all."""
    problems = check_tokenizers(teacher_tokenizer, tokenizer, key=key)
    # Pictures have no tokens. A teacher of texts reads the student's.
    if hasattr(tokenizer, "get_vocab") and len(tokenizer) > teacher_config.vocab_size:
        text = f"has {teacher_config.vocab_size} embeddings, the student's tokenizer has {len(tokenizer)} tokens"
        problems.append(Problem(key, f"{text}; take the same tokenizer for both"))
    if context.task == "regression":
        if teacher_config.num_labels != student_config.num_labels:
            text = f"gives {teacher_config.num_labels} numbers, the student {student_config.num_labels}"
            problems.append(Problem(key, f"{text}; they must be the same"))
        return problems, None, None
    if context.task != "causal_lm":
        aligned = align_labels(
            teacher_config.id2label, context.label_names or (), key=key, partial=context.task == "classification"
        )
        context.warnings += aligned.warnings
        problems += aligned.problems
        if problems or aligned.is_identity:
            return problems, None, None
        order_C = torch.tensor(aligned.order, device=context.device)
        if aligned.is_whole:
            return [], lambda logits: logits.index_select(-1, order_C), None
        known_C = order_C >= 0
        chosen_C = order_C.clamp(min=0)
        return [], lambda logits: logits.index_select(-1, chosen_C).masked_fill(~known_C, -torch.inf), known_C
    width = student_config.vocab_size
    known = min(len(teacher_tokenizer), len(tokenizer), width)
    if teacher_config.vocab_size == width == known:
        return problems, None, None
    return problems, lambda logits_BTV: cut_vocabulary(logits_BTV, known, width), None


def warn_of_poor_teachers(
    context: Context, loaded: Mapping[str, teachers.Teacher], stores: Stores, tokenizer: Any
) -> dict[str, dict[str, float | None]]:
    """Measures each teacher once before it teaches; one that is no better than chance is a warning in the report, for it teaches noise.

    Returns:
        Metrics of each on the validation rows (the test rows where there are none); of a teacher that knows part of the classes, on the rows of those.
    """
    split = "validation" if "validation" in stores else "test"
    if split not in stores:
        return {}
    data = data_module(context, stores, tokenizer, start_step=0, total_steps=0)
    found = {}
    for name, teacher in loaded.items():
        predictions = predict(
            teacher,
            data.evaluation_batches(split),
            context.task,
            context.device,
            modules=[teacher.module],
            samples=len(stores[split]),
        )
        if teacher.known is not None:
            assert predictions.labels_N is not None
            known_C = teacher.known.cpu()
            foreign_N = (predictions.labels_N >= 0) & ~known_C[predictions.labels_N.clamp(min=0)]
            predictions.labels_N = predictions.labels_N.masked_fill(foreign_N, IGNORE)
        figures = phase_evaluation(
            predictions, split=split, label_names=context.label_names or (), num_bytes_N=stores[split].num_bytes
        )
        found[name] = figures["metrics"]
        poor = worse_than_chance(figures["metrics"], predictions, context.task)
        if poor:
            context.warnings.append(
                f"teacher {name} is no better than chance on the {split} rows ({poor}): what it teaches is noise"
            )
    return found


def worse_than_chance(metrics: Mapping[str, float | None], predictions: Predictions, task: str) -> str | None:
    """What shows that a teacher knows nothing, in words; None where it knows something, or nobody can tell."""
    metric = CHANCE_METRIC[task]
    said, limit = metrics.get(metric), chance_of(predictions)
    if task == "causal_lm" and metrics["tokens"] and (said is None or said >= limit):  # None where it overflows
        return f"perplexity {'infinite' if said is None else said}, guessing among all words gives {limit:.0f}"
    if said is None or better(metric, said, limit):
        return None
    blind = {"classification": "naming the commonest class", "regression": "giving the mean"}.get(task, "the commonest")
    return f"{metric} {said:.4g}, always {blind} gives {limit:.4g}"
