"""A smaller model made of another model's layers: some of its layers, its embeddings and its head, copied.

This is how DistilBERT starts its student (Sanh et al. 2019, https://arxiv.org/abs/1910.01108, section 3); it differs from the paper in that any layers
can be taken, and in that "even" takes the middle of each stretch (2 of 6: layers 1 and 4) instead of every second layer from the first.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill_system.errors import Problem, refuse
from distill_system.models.common import auto_class, finish, quiet, resolve_labels, seeded, set_dropout
from distill_system.models.from_config import phase_problem
from distill_system.models.pretrained import Pretrained
from distill_system.models.tokenizers import first_sentence
from distill_system.models.weights import number_of_layers, read_config
from distill_system.schema import Count, ProperFraction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill_system.models.common import Built, Recipe


@dataclass(frozen=True)
class FromLayers:
    """Another model's layers, embeddings and head, copied.

    Args:
        phase: the phase whose model is cut,
        name: or a folder or hub name,
        source: or another recipe (`models@....source=minilm`); exactly one of the three.
        layers: `even`, or the numbers of the layers to keep, from 0, in the student's order.
        num_layers: how many layers `even` keeps.
        share_embeddings: the embeddings stay the source's: copied and never trained, so that they remain equal to the teacher's.
            (They are no shared memory: teacher and student may live in different processes or be sharded in different ways.)
        dropout: sets every dropout probability; None: as the source has it.
        frozen: patterns of further parameter names that aren't trained.
    """

    phase: str | None = None
    name: str | None = None
    source: Any = None
    layers: Literal["even"] | list[int] = "even"
    num_layers: Count | None = None
    share_embeddings: bool = False
    dropout: ProperFraction | None = None
    frozen: list[str] = field(default_factory=list)

    def depends_on(self) -> list[str]:
        return [self.phase] if self.phase else (self.source.depends_on() if self.source is not None else [])

    def _recipe(self, artifacts: dict[str, Path] | None) -> "Recipe | None":
        """The recipe of the source; None while the phase that makes it hasn't run."""
        if self.phase is not None:
            folder = (artifacts or {}).get(self.phase)
            return Pretrained(name=str(folder)) if folder is not None else None
        return self.source if self.source is not None else Pretrained(name=self.name)

    def problems(self, key: str, *, task: str, artifacts_known: set[str]) -> list[Problem]:
        given = [setting for setting in ("phase", "name", "source") if getattr(self, setting) is not None]
        problems = self._choice_problems(key)
        if len(given) != 1:
            text = f"{' and '.join(given)} are set, must be one of phase, name and source" if given else "has no source"
            return [Problem(key, f"{text}; add {key}.phase=NAME of an earlier phase, or {key}.name=FOLDER"), *problems]
        if self.phase is not None:
            return (
                problems
                if self.phase in artifacts_known
                else [phase_problem(f"{key}.phase", self.phase, artifacts_known), *problems]
            )
        recipe = self._recipe(None)
        assert recipe is not None
        problems += recipe.problems(
            f"{key}.source" if self.source is not None else key, task=task, artifacts_known=artifacts_known
        )
        config = recipe.config() if hasattr(recipe, "config") else None
        count = number_of_layers(config) if config else None
        return problems + (self.range_problems(key, count) if count else [])

    def _choice_problems(self, key: str) -> list[Problem]:
        if self.layers == "even":
            return (
                []
                if self.num_layers
                else [Problem(f"{key}.num_layers", f"is null, and {key}.layers is 'even'; add {key}.num_layers=2")]
            )
        layers = list(self.layers)
        problems = []
        if not layers:
            problems.append(Problem(f"{key}.layers", "is empty, must be 'even' or a list of layers such as [1,4]"))
        if len(set(layers)) != len(layers):
            problems.append(Problem(f"{key}.layers", f"is {layers}, which names a layer twice"))
        problems += [
            Problem(f"{key}.layers[{i}]", f"is {layer}, must be >= 0: layers are counted from 0")
            for i, layer in enumerate(layers)
            if layer < 0
        ]
        if self.num_layers not in (None, len(layers)):
            problems.append(
                Problem(
                    f"{key}.num_layers",
                    f"is {self.num_layers}, and {key}.layers names {len(layers)}; leave one of them out",
                )
            )
        return problems

    def range_problems(self, key: str, count: int) -> list[Problem]:
        if self.layers == "even":
            if (self.num_layers or 0) <= count:
                return []
            return [Problem(f"{key}.num_layers", f"is {self.num_layers}, the source has {count} layers")]
        wrong = [(i, layer) for i, layer in enumerate(self.layers) if layer >= count]
        return [
            Problem(f"{key}.layers[{i}]", f"is {layer}, the source has {count} layers: 0 to {count - 1}")
            for i, layer in wrong
        ]

    def fingerprint(self) -> dict[str, Any]:
        """The artifact of a phase isn't in it: its digest is among the inputs of the phase that builds from it."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "source"} | {
            "recipe": "from_layers"
        }
        if self.phase is None and (recipe := self._recipe(None)) is not None:
            settings |= {"name": None, "source": recipe.fingerprint()}
        return settings | {
            "layers": self.layers if self.layers == "even" else list(self.layers),
            "frozen": list(self.frozen),
        }

    def config(self, artifacts: dict[str, Path] | None = None) -> dict[str, Any] | None:
        """The source's config, if it is on this machine."""
        folder = (artifacts or {}).get(self.phase) if self.phase is not None else None
        if folder is not None:
            return read_config(folder)
        recipe = self._recipe(artifacts)
        return recipe.config() if recipe is not None and hasattr(recipe, "config") else None

    def max_positions(self, artifacts: dict[str, Path]) -> int | None:
        recipe = self._recipe(artifacts)
        return recipe.max_positions(artifacts) if recipe is not None else None

    def load_tokenizer(self, artifacts: dict[str, Path] | None = None, key: str = "model") -> "PreTrainedTokenizerBase":
        recipe = self._recipe(artifacts)
        assert recipe is not None, f"phase {self.phase} has not run"
        return recipe.load_tokenizer(artifacts or {}, key)

    def build(
        self,
        *,
        task: str,
        label_names: Sequence[str] | None = None,
        num_labels: int | None = None,
        artifacts: dict[str, Path] | None = None,
        seed: int = 0,
        key: str = "model",
    ) -> "Built":
        from distill_system.models.anatomy import UnknownAnatomy, find_anatomy, parameters_under

        recipe = self._recipe(artifacts)
        assert recipe is not None, f"phase {self.phase} has not run"
        labels = resolve_labels(task, label_names, num_labels)
        where = f"{key}.phase" if self.phase else f"{key}.source" if self.source is not None else f"{key}.name"
        source, tokenizer = recipe.build(
            task=task, label_names=labels, artifacts=artifacts, seed=seed, key=key if self.source is None else where
        )
        try:
            anatomy = find_anatomy(source)
            model = cut_model(source, self._choose(anatomy.count, key), task=task, dropout=self.dropout, seed=seed)
        except UnknownAnatomy as error:
            raise refuse(where, f"is a {source.config.model_type}, which {error}") from error
        del source
        model, tokenizer = finish(model, tokenizer, list(self.frozen), key)
        if self.share_embeddings:
            for name in parameters_under(model, anatomy.embeddings):
                model.get_parameter(name).requires_grad_(False)
        return model, tokenizer

    def _choose(self, count: int, key: str) -> list[int]:
        from distill_system.models.anatomy import even_layers

        problems = self._choice_problems(key) + self.range_problems(key, count)
        if problems:
            raise refuse(problems[0].key, problems[0].message)
        return even_layers(count, self.num_layers or count) if self.layers == "even" else list(self.layers)


def cut_model(source: Any, layers: list[int], *, task: str, dropout: float | None = None, seed: int = 0) -> Any:
    """A new model of the same architecture with the chosen layers of `source`; every weight is copied, none is left random.

    Raises:
        UnknownAnatomy: the layers can't be told apart, or the smaller model isn't made of the same tensors.
    """
    import torch

    from distill_system.models.anatomy import UnknownAnatomy, cut_config, cut_record, cut_state, find_anatomy
    from distill_system.models.reading import from_config
    from distill_system.models.resized import settle

    anatomy = find_anatomy(source)
    config = cut_config(source.config, layers)
    set_dropout(config, dropout)
    record = cut_record(getattr(config, "reshape", None), anatomy.layers, layers)
    if record:
        config.reshape = record
    with quiet(), seeded(seed):
        model = from_config(auto_class(task, config), config, dtype=torch.float32)
    try:
        model.load_state_dict(cut_state(source.state_dict(), anatomy.layers, layers), strict=True)
    except RuntimeError as error:
        raise UnknownAnatomy(f"can't be cut to layers {layers} ({first_sentence(error)})") from error
    if record:  # the layers that stay may all be of one size, which the config can say
        settle(model)
    return model.eval()
