"""From the losses of a config to the terms of an objective: which role hears whom, in which loss, with which factor; and losses fitted to their models."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from distill_system.errors import refuse
from distill_system.files import digest_value
from distill_system.losses.base import Loss
from distill_system.settings import Ensemble
from distill_system.training.emit import LOGITS, Batch, Needs, prepare_for, shown
from distill_system.training.ensemble import TOGETHER
from distill_system.training.objective import Term, needs_of
from distill_system.training.teachers import Teacher


@dataclass
class Script:
    """All that is said and heard in a phase.

    Attributes:
        terms: of all roles, also of those that live on other ranks.
        losses: one of its own for each term, by the term's name.
        sources: what is read of each teacher; `TOGETHER` stands for all as one.
        mapping: what losses chose when they were fitted (hint pairs, say), by term.
        notes: sentences that a user should read once.
    """

    terms: list[Term] = field(default_factory=list)
    losses: dict[str, Loss] = field(default_factory=dict)
    sources: dict[str, Needs] = field(default_factory=dict)
    mapping: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def needs(self, role: str) -> Needs:
        return needs_of(role, self.terms, lambda term: self.losses[term.name])


def write_script(
    roles: list[str],
    losses: Mapping[str, Loss],
    *,
    teachers: Mapping[str, float] | None = None,
    ensemble: Ensemble | None = None,
    peer_losses: Mapping[str, Loss] | None = None,
) -> Script:
    """The terms of a phase.

    Args:
        roles: that are trained.
        losses: by name, as the config has them; each role gets its own copy.
        teachers: weight of each, by name.
        ensemble: how several teachers teach together. What reads more than logits hears each of them on its own.
        peer_losses: between each role and each of the others, whose mean counts.
    """
    script, teachers, ensemble = Script(), dict(teachers or {}), ensemble or Ensemble()
    total = sum(teachers.values())
    several = len(teachers) > 1
    for role in roles:
        prefix = f"{role}/" if len(roles) > 1 else ""
        for name, loss in losses.items():
            if not loss.needs_teacher:
                _add(script, Term(f"{prefix}{name}", role), loss)
            elif several and ensemble.combine != "losses" and tuple(loss.needs) == ("logits",):
                _add(script, Term(f"{prefix}{name}", role, TOGETHER), loss)
            else:
                for teacher, weight in teachers.items():
                    by_position = several and ensemble.weighting in ("confidence", "agreement")
                    factor = 1.0 if by_position else weight / total
                    own = f"{prefix}{name}/{teacher}" if several else f"{prefix}{name}"
                    _add(script, Term(own, role, teacher, factor), loss)
        peers = [other for other in roles if other != role]
        for name, loss in (peer_losses or {}).items():
            for peer in peers:
                _add(script, Term(f"{prefix}{name}/{peer}", role, peer, 1 / len(peers)), loss)
    for source in dict.fromkeys(term.source for term in script.terms):
        if source in teachers or source == TOGETHER:
            script.sources[source] = script.needs(source)
    return script


def _add(script: Script, term: Term, loss: Loss) -> None:
    script.terms.append(term)
    script.losses[term.name] = copy.deepcopy(loss)


def rehearse(
    script: Script,
    roles: Mapping[str, nn.Module],
    teachers: Mapping[str, Teacher],
    batch: Batch,
    *,
    task: str,
    seed: int,
    phase: str,
) -> None:
    """Fits the losses to the models, all ranks together: chooses layers, makes projectors, and switches on what must be shown.

    Args:
        script: its losses are changed in place; `mapping` and `notes` are filled.
        roles: those of this rank.
        teachers: of the phase.
        batch: a few rows, the same on every rank.
        task: of the data.
        seed: of fresh projectors.
        phase: its name, for refusals.

    Raises:
        Refusal: a loss doesn't fit its two models.
    """
    models = {role: (model, script.needs(role)) for role, model in roles.items()}
    for model, needs in models.values():
        note = prepare_for(model, needs, f"phases.{phase}.losses")
        script.notes += [note] if note and note not in script.notes else []
    for name, teacher in teachers.items():
        note = prepare_for(teacher.module, script.sources.get(name, LOGITS), f"phases.{phase}.teachers.{name}")
        script.notes += [note] if note else []
    fitted = [term for term in script.terms if term.source and type(script.losses[term.name]).bind is not Loss.bind]
    if not fitted:
        return
    said = {name: shown(model, batch, task, needs) for name, (model, needs) in models.items()}
    for name, teacher in teachers.items():  # a sharded one answers all ranks at once
        said[name] = teacher.signals(batch, script.sources.get(name, LOGITS))
    for term in fitted:
        if term.role not in roles:
            continue
        if term.source not in said:
            raise refuse(
                f"phases.{phase}.losses",
                f"hold {type(script.losses[term.name]).__name__}, which has to see the inside of {term.source}, and that lives elsewhere; "
                "it can't be a peer loss of a spread cohort",
            )
        own = int(digest_value([seed, term.name])[:8], 16)
        chosen = script.losses[term.name].bind(
            said[term.role], said[term.source], key=f"phases.{phase}.losses.{loss_name(term)}", seed=own
        )
        if chosen:
            script.mapping[term.name] = chosen


def loss_name(term: Term) -> str:
    """The loss's name in the config."""
    parts = term.name.split("/")
    return parts[1] if parts[0] == term.role else parts[0]


def in_words(script: Script) -> list[str]:
    """What losses chose when they were fitted, a sentence for each."""
    told = []
    for term, chosen in script.mapping.items():
        pairs = ", ".join(f"{student} -> {teacher}" for student, teacher in chosen.get("pairs", []))
        if pairs:
            projectors = chosen.get("projectors")
            more = f", through {projectors} learned projector{'s' if projectors > 1 else ''}" if projectors else ""
            told.append(f"{term}: layers of the student hear layers of the teacher {pairs}{more}")
    return told


def known_classes(teachers: Mapping[str, Teacher]) -> dict[str, Tensor]:
    return {name: teacher.known for name, teacher in teachers.items() if teacher.known is not None}
