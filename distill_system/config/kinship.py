"""Whether teacher and student speak of the same labels and words, as far as files on this machine tell before anything is started."""

from pathlib import Path
from typing import Any

from distill_system.config.instantiate import instantiate
from distill_system.config.recipes import data_node, phase_of, recipe_of, recipes_of
from distill_system.errors import Problem
from distill_system.evaluation.readers import teacher_problems
from distill_system.models.alignment import align_labels, check_tokenizers
from distill_system.models.pretrained import Package, Pretrained
from distill_system.models.tokenizers import BYTES, byte_vocabulary
from distill_system.settings import Teacher


def check_kinship(config: dict[str, Any]) -> list[Problem]:
    """A teacher that would be refused when its phase begins is refused now, and not after the phases before it were trained."""
    problems = []
    for name, phase in config["phases"].items():
        source = instantiate(data_node(config, name))
        for teacher_name, values in (phase.get("teachers") or {}).items():
            teacher, key = Teacher(**values), f"phases.{name}.teachers.{teacher_name}"
            if teacher.model:
                problems += check_teacher_model(teacher.model, f"{key}.model", source)
            for node in recipes_of(phase).values():
                own = root(config, node)
                if teacher.phase and root_of(config, teacher.phase) == own:
                    continue
                student, other = vocabulary(own), teacher_vocabulary(config, teacher)
                if student and other:
                    setting = f"{key}.model" if teacher.model else f"{key}.phase"
                    problems += check_tokenizers(Words(other), Words(student), key=setting, texts=())
    return problems


def check_teacher_model(name: str, key: str, source: Any) -> list[Problem]:
    """A teacher from outside: its files, its task, and its labels against those of the data."""
    recipe = Pretrained(name=name)
    parent = key.rpartition(".")[0]
    found = recipe.problems(parent, task=source.task, artifacts_known=set())
    words = {
        "allow_pickle": f"is '{name}', which holds a pickle only, which could run code; save it as safetensors first",
        "tokenizer": f"is '{name}', which holds no tokenizer; save the teacher's beside it",
    }
    problems = [Problem(key, words.get(p.key.rpartition(".")[2], p.message)) for p in found]
    problems += [] if problems else teacher_problems(name, source, key)
    if problems or source.task in ("causal_lm", "regression") or getattr(source, "remote", False):
        return problems
    values = recipe.config()
    if values is None:
        return problems
    names = values.get("id2label") or {i: f"LABEL_{i}" for i in range(values.get("num_labels") or 2)}
    labels = source.label_names()
    return problems + (
        align_labels(names, labels, key=key, partial=source.task == "classification").problems if labels else []
    )


class Words:
    """A vocabulary in the form that `check_tokenizers` reads."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.vocabulary)

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def teacher_vocabulary(config: dict[str, Any], teacher: Teacher) -> dict[str, int] | None:
    if teacher.phase:
        return vocabulary(root_of(config, teacher.phase))
    return vocabulary_of(Pretrained(name=teacher.model)) if teacher.model else None


def root_of(config: dict[str, Any], output: str) -> dict[str, Any] | None:
    node = recipe_of(config, output)
    if node is None and (phase := phase_of(config, output)):  # the best of several members, which share their tokenizer
        node = next(iter(recipes_of(config["phases"][phase]).values()), None)
    return root(config, node) if node is not None else None


def root(config: dict[str, Any], node: dict[str, Any], seen: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """The recipe whose tokenizer a recipe takes, following references to phases."""
    other = node.get("tokenizer_phase") or node.get("phase")
    if not other:
        return node
    source = recipe_of(config, other) if other not in seen else None
    return root(config, source, (*seen, other)) if source is not None else None


def vocabulary(node: dict[str, Any] | None) -> dict[str, int] | None:
    """The words of a recipe's tokenizer; None where no local file tells."""
    return vocabulary_of(instantiate(node)) if node is not None else None


def vocabulary_of(recipe: Any) -> dict[str, int] | None:
    inner = getattr(recipe, "source", None)
    if inner is not None and not callable(inner):  # another recipe, which this one cuts
        return vocabulary_of(inner)
    tokenizer = getattr(recipe, "tokenizer", None)
    if tokenizer == BYTES:
        return byte_vocabulary()
    if tokenizer is not None:
        return read_vocabulary(Path(tokenizer).expanduser())
    if isinstance(recipe, Package):
        recipe = recipe.cached()
    if not isinstance(recipe, Pretrained):
        name = getattr(recipe, "name", None)
        recipe = Pretrained(name=name) if isinstance(name, str) else None
    folder = recipe.local_folder() if recipe is not None else None
    return read_vocabulary(folder) if folder is not None else None


def read_vocabulary(folder: Path) -> dict[str, int] | None:
    """The words of `tokenizer.json`, which holds what transformers loads; None where there is none that can be read."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return dict(Tokenizer.from_file(str(path)).get_vocab())
    except Exception:  # the library raises plain Exception; loading the tokenizer will say what is wrong
        return None
