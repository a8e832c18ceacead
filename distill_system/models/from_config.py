"""A model with random weights, from an architecture's name and its sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_system.errors import Problem, Refusal, nearest, refuse
from distill_system.models import architectures
from distill_system.models.common import auto_class, finish, quiet, resolve_labels, seeded, set_dropout, set_labels
from distill_system.models.images import sees_pictures
from distill_system.models.pretrained import Pretrained
from distill_system.models.sources import tokenizer_problems
from distill_system.models.tokenizers import BYTES, first_sentence
from distill_system.models.weights import config_faults, max_positions
from distill_system.schema import ProperFraction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill_system.models.common import Built


class FromConfig:
    """A randomly initialised model; the seed decides its weights, the tokenizer its vocabulary and its special tokens.

    Args:
        architecture: the `model_type` in transformers: bert, roberta, distilbert, gpt2, llama, vit, resnet, convnext, ...
        tokenizer: `bytes` (UTF-8 bytes, needs no file), a folder or a hub name; None for models that take pictures.
        tokenizer_phase: or the phase whose tokenizer is taken.
        dropout: sets every dropout probability; None: the architecture's defaults.
        frozen: patterns of parameter names that aren't trained.
        **values: any setting of the architecture's config (`hidden_size`, `num_hidden_layers`, ...).
    """

    def __init__(
        self,
        architecture: str = "bert",
        tokenizer: str | None = None,
        tokenizer_phase: str | None = None,
        dropout: ProperFraction | None = None,
        frozen: list[str] | None = None,
        **values: Any,
    ) -> None:
        self.architecture = architecture
        self.tokenizer = tokenizer
        self.tokenizer_phase = tokenizer_phase
        self.dropout = dropout
        self.frozen = list(frozen or [])
        self.values = {name: value for name, value in values.items() if value is not None}

    def depends_on(self) -> list[str]:
        return [self.tokenizer_phase] if self.tokenizer_phase else []

    def config(self) -> dict[str, Any]:
        """The settings that were given over the architecture's defaults, under the names of config.json."""
        return architectures.with_defaults(self.architecture, self.values)

    def problems(self, key: str, *, task: str, artifacts_known: set[str]) -> list[Problem]:
        clause = architectures.architecture_problem(self.architecture, task)
        if clause:
            return [Problem(f"{key}.architecture", clause)]
        problems = architectures.settings_problems(self.architecture, self.values, key)
        if not problems:
            problems += [Problem(key, f"is a {self.architecture} that {text}") for text in config_faults(self.config())]
            if clause := architectures.future_problem(self.config(), task):
                problems.append(
                    Problem(
                        f"{key}.is_decoder", f"is false: a {self.architecture} that {clause}; add {key}.is_decoder=true"
                    )
                )
        if sees_pictures(self.config()):
            given = [name for name in ("tokenizer", "tokenizer_phase") if getattr(self, name) is not None]
            text = f"is set, but a {self.architecture} takes pictures, which the data prepares; set it to null"
            return problems + [Problem(f"{key}.{name}", text) for name in given]
        if (self.tokenizer is None) == (self.tokenizer_phase is None):
            problems.append(
                Problem(
                    f"{key}.tokenizer", f"or {key}.tokenizer_phase must be set, and not both; add {key}.tokenizer=bytes"
                )
            )
        if self.tokenizer_phase is not None and self.tokenizer_phase not in artifacts_known:
            problems.append(phase_problem(f"{key}.tokenizer_phase", self.tokenizer_phase, artifacts_known))
        return problems + tokenizer_problems(self.tokenizer, key)

    def fingerprint(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"recipe": "from_config", "architecture": self.architecture}
        settings |= {
            "tokenizer_phase": self.tokenizer_phase,
            "dropout": self.dropout,
            "frozen": self.frozen,
            "values": self.values,
            "tokenizer": self.tokenizer,
        }
        if self.tokenizer not in (None, BYTES):
            settings["tokenizer"] = Pretrained(tokenizer=self.tokenizer).fingerprint()["tokenizer"]
        return settings

    def max_positions(self, artifacts: dict[str, Path]) -> int | None:
        return max_positions(self.config())

    def load_tokenizer(self, artifacts: dict[str, Path] | None = None, key: str = "model") -> "PreTrainedTokenizerBase":
        from distill_system.models import tokenizers

        if sees_pictures(self.config()):
            return None  # type: ignore[return-value]
        if self.tokenizer_phase is not None:
            return tokenizers.load_tokenizer(
                (artifacts or {})[self.tokenizer_phase], f"{key}.tokenizer_phase", local_only=True
            )
        if self.tokenizer is None:
            raise refuse(f"{key}.tokenizer", f"is not set; add {key}.tokenizer=bytes, a folder or a hub name")
        return tokenizers.load_tokenizer(self.tokenizer, f"{key}.tokenizer")

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
        labels = resolve_labels(task, label_names or [], num_labels)
        assert labels or task == "causal_lm", "a new model can't know the labels"
        tokenizer = self.load_tokenizer(artifacts, key)
        config = self._make_config(tokenizer, key)
        set_labels(config, labels, task)
        set_dropout(config, self.dropout)
        import torch

        try:
            with quiet(), seeded(seed):
                model = auto_class(task, config).from_config(config, dtype=torch.float32)
        except ValueError as error:
            raise refuse(key, f"is a {self.architecture} that can't be built ({first_sentence(error)})") from error
        return finish(model, tokenizer, self.frozen, key)

    def _make_config(self, tokenizer: "PreTrainedTokenizerBase", key: str) -> Any:
        from transformers import AutoConfig

        from distill_system.models.own import register

        register()
        unknown = architectures.settings_problems(self.architecture, self.values, key)
        if unknown:
            raise Refusal(unknown)
        values = ({} if tokenizer is None else {"vocab_size": len(tokenizer)}) | self.values
        if tokenizer is not None and values["vocab_size"] < len(tokenizer):
            raise refuse(
                f"{key}.vocab_size",
                f"is {values['vocab_size']}, must be >= {len(tokenizer)}, the tokenizer's number of tokens",
            )
        names = () if tokenizer is None else ("pad_token_id", "bos_token_id", "eos_token_id")
        special = {name: getattr(tokenizer, name) for name in names}
        try:
            config = AutoConfig.for_model(self.architecture, **(special | values))
        except Exception as error:  # the library's own checks, of several kinds
            raise refuse(key, f"is a {self.architecture} that can't be configured ({first_sentence(error)})") from error
        self._check_positions(config, key)
        return config

    @staticmethod
    def _check_positions(config: Any, key: str) -> None:
        limit = max_positions(config.to_dict())
        if limit is not None and limit < 1:
            raise refuse(
                f"{key}.max_position_embeddings",
                "leaves no room for a token: this architecture starts counting behind the padding index",
            )


def phase_problem(key: str, phase: str, known: set[str]) -> Problem:
    hint = nearest(phase, known) if known else " (no phase comes before this one)"
    return Problem(key, f"is {phase!r}, which no earlier phase produces{hint}")
