"""What a phase is told, and what it hands back."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from distill_system.artifacts import Artifact
from distill_system.data.datamodule import DataModule
from distill_system.data.tokens import Stores
from distill_system.files import digest_value
from distill_system.phases.terms import Script
from distill_system.settings import Training
from distill_system.training.engine import Engine
from distill_system.training.fit import Outcome
from distill_system.training.teachers import Teacher


@dataclass
class Context:
    """What the pipeline hands to a phase."""

    run_folder: Path
    run_name: str
    name: str  # of the phase
    identity: str  # digest of all that determines the result
    source: Any  # data
    training: Training
    seed: int
    device: torch.device
    artifacts: dict[str, Path]  # models of the finished phases, and `phase.member` of their members
    write: Callable[[list[dict[str, Any]]], None]  # takes journal lines, on rank 0
    rewind: Callable[..., Any]  # drops journal lines after a step, on rank 0; the phase's, or those of a title
    announce: Callable[..., Any]  # told the total of steps, on rank 0, and the title if it isn't the phase's name
    stop_asked: Callable[[], bool]
    # Told title, step, metrics and warnings where a step of a phase ends, on rank 0.
    end: Callable[..., Any] = lambda *_: None
    # Says a sentence to the person at the terminal, on rank 0.
    tell: Callable[[str], None] = lambda sentence: None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was chosen and why: told in the report, no cause for worry
    member: str | None = None  # of the phase, where this speaks of one of several
    seed_as: str | None = None  # phases of one word see the same batches; None: the phase's own name
    inputs: dict[str, Any] = field(default_factory=dict)  # what the phase takes from elsewhere, as the manifest has it
    settings: dict[str, Any] = field(default_factory=dict)  # over the phase's own in the passport

    def note(self, sentence: str) -> None:
        """Something that was chosen, and why: told once, and kept for the report."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            self.tell(sentence)

    @property
    def folder(self) -> Path:
        return self.run_folder / self.name / (self.member or "")

    @property
    def title(self) -> str:
        return f"{self.name}.{self.member}" if self.member else self.name

    def of(self, member: str) -> "Context":
        """The same for one member; warnings are shared."""
        return replace(self, member=member)

    def step(self, name: str, **values: Any) -> "Context":
        """The same for a step that is trained on its own, with a journal of its own; `values` differ."""
        title = f"{self.name}.{name}"
        told: dict[str, Any] = {
            "rewind": lambda step: self.rewind(step, title),
            "announce": lambda total: self.announce(total, title),
        }
        return replace(self, member=name, **told, **values)

    @property
    def task(self) -> str:
        return self.source.task

    @functools.cached_property
    def phase_seed(self) -> int:
        """Differs between phases, and doesn't change when another phase is added before. It decides the order of the batches."""
        return int(digest_value([self.seed, self.seed_as or self.name])[:8], 16)

    @property
    def label_names(self) -> list[str] | None:
        return self.source.label_names() if self.task != "causal_lm" else None


@dataclass
class Member:
    """One of several models that a phase leaves."""

    artifact: Artifact
    evaluation: dict[str, Any]


@dataclass
class Result:
    """What a phase hands back; `artifact` is None when it was told to leave before its end."""

    artifact: Artifact | None
    outcome: Outcome
    evaluation: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    members: dict[str, Member] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)  # for the manifest


@dataclass
class Trained:
    """An engine at the end of its training, with what evaluation and export need."""

    engine: Engine
    outcome: Outcome
    data: DataModule
    stores: Stores
    teachers: dict[str, Teacher]
    tokenizer: Any
    started: float
    script: Script
    write: Callable[..., Any] | None = None  # of the model's folder, where it isn't plain safetensors
    conversion: Any = None  # of the live model's tensors into those that are handed on, where they are quantized
