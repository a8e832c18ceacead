"""The whole model that an earlier phase left, to be trained further: with its head, its tokenizer and, where it was cut, its sizes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_system.errors import Problem
from distill_system.models.from_config import phase_problem
from distill_system.models.pretrained import Pretrained
from distill_system.models.weights import read_config
from distill_system.schema import ProperFraction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill_system.models.common import Built


@dataclass(frozen=True)
class FromPhase:
    """An earlier phase's model.

    Args:
        phase: the phase, or a member of one (`cohort.a`).
        dropout: sets every dropout probability; None: as the model has it.
        frozen: patterns of parameter names that aren't trained.
    """

    phase: str | None = None
    dropout: ProperFraction | None = None
    frozen: list[str] = field(default_factory=list)

    def depends_on(self) -> list[str]:
        return [self.phase] if self.phase else []

    def _folder(self, artifacts: dict[str, Path] | None) -> Path | None:
        """None while the phase hasn't run."""
        return (artifacts or {}).get(self.phase) if self.phase else None

    def _recipe(self, artifacts: dict[str, Path] | None) -> Pretrained:
        folder = self._folder(artifacts)
        assert folder is not None, f"phase {self.phase} has not run"
        return Pretrained(name=str(folder), dropout=self.dropout, frozen=list(self.frozen))

    def problems(self, key: str, *, task: str, artifacts_known: set[str]) -> list[Problem]:
        if not self.phase:
            known = f" ({', '.join(sorted(artifacts_known))})" if artifacts_known else ""
            return [Problem(f"{key}.phase", f"is not set; add {key}.phase=NAME of an earlier phase{known}")]
        known_phase = self.phase in artifacts_known
        return [] if known_phase else [phase_problem(f"{key}.phase", self.phase, artifacts_known)]

    def fingerprint(self) -> dict[str, Any]:
        """The artifact isn't in it: its digest is among the inputs of the phase that builds from it."""
        return {"recipe": "from_phase", "phase": self.phase, "dropout": self.dropout, "frozen": list(self.frozen)}

    def config(self, artifacts: dict[str, Path] | None = None) -> dict[str, Any] | None:
        folder = self._folder(artifacts)
        return read_config(folder) if folder is not None else None

    def max_positions(self, artifacts: dict[str, Path]) -> int | None:
        return self._recipe(artifacts).max_positions(artifacts) if self._folder(artifacts) is not None else None

    def load_tokenizer(self, artifacts: dict[str, Path] | None = None, key: str = "model") -> "PreTrainedTokenizerBase":
        return self._recipe(artifacts).load_tokenizer(artifacts, key)

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
        return self._recipe(artifacts).build(
            task=task, label_names=label_names, num_labels=num_labels, artifacts=artifacts, seed=seed, key=key
        )
