"""What is trained: one or several students and their losses as one module, so that losses run inside the engine's forward.

Inside it, parameters that ZeRO-3 has scattered are whole; a loss that reads the output head outside would see an empty tensor.

Shapes: B samples, T tokens, C classes or words, L terms.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distill_system.losses.base import Loss
from distill_system.losses.several import alike, sums_at_once
from distill_system.signals import IGNORE, Signals, Targets
from distill_system.training.emit import LOGITS, Batch, Needs, emit

STUDENT = "student"  # the role of the only student, and
TEACHER = "main"  # the name of the only teacher, where nobody names them

Exchange = Callable[[Mapping[str, Signals]], Mapping[str, Signals]]


@dataclass(frozen=True)
class Term:
    """One summand of the objective: a loss between a role that is trained and, it may be, a source that it hears."""

    name: str  # in the journal, and of its loss in the objective
    role: str  # whose parameters it trains
    source: str | None = None  # the teacher, or the other role, whose signals it reads; None: labels alone
    factor: float = 1.0  # beside the loss's own weight: 1 / number of peers, a teacher's share


def targets_of(batch: Batch, task: str) -> Targets:
    """Labels and validity of the positions that logits speak of; in language modelling each position speaks of the next token."""
    labels, valid_B = batch["labels"], batch["valid"]
    mask_BT = batch.get("attention_mask")
    tokens_BT = None if mask_BT is None else mask_BT.bool() & valid_B[:, None]
    if task == "causal_lm":
        labels_BT = labels[:, 1:]
        return Targets(labels_BT, valid_B[:, None] & (labels_BT != IGNORE), tokens_BT, valid_B, task=task)
    if task == "token_classification":
        assert tokens_BT is not None
        return Targets(labels, tokens_BT, tokens_BT, valid_B, task=task)
    return Targets(labels, valid_B, tokens_BT, valid_B, task=task)


def logits_of(model: nn.Module, batch: Batch, task: str) -> Tensor:
    """`[B, C]`; in language modelling `[B, T-1, C]`, in token classification `[B, T, C]`."""
    return emit(model, batch, task).logits


class Objective(nn.Module):
    """Roles that are trained, and what they are trained on. `forward` gives the scaled loss to differentiate, or logits alone when no scale is given.

    Args:
        roles: students or members by name, or a single student. Where members live apart, only those of this rank.
        losses: by the name of their term.
        terms: all terms, of roles elsewhere too; None: each loss is a term of the only student, which hears the teacher `main`.
        task: of the data.
        autocast: (device type, dtype) for mixed precision, or None.
        known: classes `[C]` (bool) of teachers that know only part of them.
        exchange: fetches the signals of roles that live elsewhere.
        batched: gives the logits of all roles at once, where they run as one model.
    """

    def __init__(
        self,
        roles: nn.Module | Mapping[str, nn.Module],
        losses: Mapping[str, nn.Module],
        *,
        task: str,
        terms: Sequence[Term] | None = None,
        autocast: tuple[str, torch.dtype] | None = None,
        known: Mapping[str, Tensor] | None = None,
        exchange: Exchange | None = None,
        batched: Callable[[Batch], Mapping[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(roles, nn.Module):
            roles = {STUDENT: roles}
        self.roles = nn.ModuleDict(roles)
        if terms is None:
            terms = [Term(name, STUDENT, TEACHER if loss.needs_teacher else None) for name, loss in losses.items()]
        self.terms = tuple(terms)
        self.own = [(number, term) for number, term in enumerate(self.terms) if term.role in self.roles]
        self.losses = nn.ModuleDict({module_name(term.name): losses[term.name] for _, term in self.own})
        self.task = task
        self._autocast = autocast
        self._known = dict(known or {})
        self._exchange, self._batched = exchange, batched
        peers = [entry for entry in self.own if batched is not None and entry[1].source in (None, *self.roles)]
        groups = alike(peers, lambda entry: (self.loss_of(entry[1]), entry[1].source is None))
        groups += [[entry] for entry in self.own if entry not in peers]
        self._groups = [[term for _, term in group] for group in groups]
        self._order = [number for group in groups for number, _ in group]
        self.role_names = list(dict.fromkeys(term.role for term in self.terms)) or list(self.roles)
        self.needs = {name: needs_of(name, (term for _, term in self.own), self.loss_of) for name in self.roles}

    @property
    def student(self) -> nn.Module:
        """The only student."""
        (student,) = self.roles.values()
        return student

    def loss_of(self, term: Term) -> Loss:
        loss = self.losses[module_name(term.name)]
        assert isinstance(loss, Loss)
        return loss

    def role_of(self, parameter: str) -> str:
        """The role that a parameter, by its name in this module, belongs to: a role's own, or a projector of one of its losses."""
        kind, name, *_ = parameter.split(".")
        return name if kind == "roles" else next(term.role for _, term in self.own if module_name(term.name) == name)

    def set_progress(self, progress: float) -> None:
        """Tells the losses how much of the phase is done."""
        for loss in self.losses.values():
            loss.progress = progress

    def weights(self, progress: float) -> list[float]:
        """Factor of each of all terms (0 for those that aren't computed here)."""
        weights = [0.0] * len(self.terms)
        for number, term in self.own:
            weights[number] = term.factor * self.loss_of(term).weight_at(progress)
        return weights

    @property
    def weights_change(self) -> bool:
        return any(not isinstance(self.loss_of(term).weight, int | float) for _, term in self.own)

    def targets(self, batch: Batch) -> Targets:
        return targets_of(batch, self.task)

    def _for(self, term: Term, targets: Targets) -> Targets:
        """A teacher that knows part of the classes says nothing of rows that are labelled with another."""
        known_C = self._known.get(term.source or "")
        if known_C is None:
            return targets
        known_C = known_C.to(targets.labels.device)
        unlabelled = targets.labels == IGNORE
        knows = unlabelled | known_C[targets.labels.masked_fill(unlabelled, 0)]
        return replace(targets, valid=targets.valid & knows)

    def count(self, batch: Batch) -> Tensor:
        """Counts `[L]` that the losses will divide by, from the batch alone; 0 for terms that are computed elsewhere."""
        targets = self.targets(batch)
        count_L = torch.zeros(len(self.terms), device=targets.valid.device)
        for number, term in self.own:
            count_L[number] = self.loss_of(term).count(self._for(term, targets))
        return count_L

    def forward(
        self,
        batch: Batch,
        teachers: Mapping[str, Signals] | None = None,
        scale_L: Tensor | None = None,
        *,
        role: str | None = None,
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Returns (loss, sums `[L]`): loss is `sum_l scale_l * sum_l`; a scale is weight / global count, so ranks and padding can't change it.

        Without scales: the logits of one role (of the only one, if `role` is None).
        """
        if scale_L is None:
            return self._emit(role or next(iter(self.roles)), batch, LOGITS).logits
        signals = self._signals(batch)
        heard = dict(teachers or {}) | {name: said.detached() for name, said in signals.items()}
        if self._exchange is not None:
            heard |= self._exchange(signals)
        targets = self.targets(batch)
        parts = [self._sums(terms, signals, heard, targets) for terms in self._groups]
        sum_L = torch.stack(parts) if self._batched is None else torch.cat([part.view(-1) for part in parts])
        if self._order != list(range(len(self.terms))):
            all_L = torch.zeros(len(self.terms), dtype=torch.float64, device=sum_L.device)
            sum_L = all_L.index_copy(0, torch.tensor(self._order, device=sum_L.device), sum_L)
        loss = (sum_L * scale_L).sum().float()
        # Every parameter must take part in the backward, or DDP waits for its gradient.
        for logits in [said.logits for name, said in signals.items() if "logits" not in self.needs[name]]:
            loss = loss + 0.0 * torch.where(logits.isfinite(), logits, 0.0).sum()
        return loss, sum_L.detach()

    def _sums(
        self,
        terms: Sequence[Term],
        signals: Mapping[str, Signals],
        heard: Mapping[str, Signals],
        targets: Targets,
    ) -> Tensor:
        """Sums `[G]` of terms whose losses are alike; a number of one term."""
        sources = [heard[term.source] if term.source is not None else None for term in terms]
        if len(terms) > 1:
            said = [source.logits for source in sources if source is not None]
            return sums_at_once(
                self.loss_of(terms[0]), [signals[term.role].logits for term in terms], said or None, targets
            ).double()
        ((term,), (source,)) = terms, sources
        known_C = self._known.get(term.source or "")
        student = signals[term.role] if known_C is None else restricted(signals[term.role], known_C)
        own = self._for(term, targets)
        if source is not None and source.trust is not None:
            own = replace(own, weight=source.trust)
        return self.loss_of(term)(student, source, own)[0].double()

    def _signals(self, batch: Batch) -> dict[str, Signals]:
        if self._batched is not None and self.training:
            with self._mixed():
                return {name: Signals(logits) for name, logits in self._batched(batch).items()}
        seed = int(torch.randint(2**62, ())) if len(self.roles) > 1 and self.training else None
        signals = {}
        for number, name in enumerate(self.roles):
            if seed is not None:  # a member's dropout doesn't depend on how much its neighbours draw
                torch.manual_seed((seed + number) % 2**63)
            signals[name] = self._emit(name, batch, self.needs[name])
        return signals

    def _mixed(self) -> contextlib.AbstractContextManager:
        return torch.autocast(*self._autocast) if self._autocast else contextlib.nullcontext()

    def _emit(self, role: str, batch: Batch, needs: Needs) -> Signals:
        with self._mixed():
            return emit(self.roles[role], batch, self.task, needs)


def needs_of(name: str, terms: Iterable[Term], loss_of: Callable[[Term], Loss]) -> Needs:
    """Fields of Signals that some term reads of a role or a teacher."""
    return frozenset(field for term in terms if name in (term.role, term.source) for field in loss_of(term).needs)


def module_name(term: str) -> str:
    """Modules can't have a dot in their name."""
    return term.replace(".", "_")


def restricted(signals: Signals, known_C: Tensor) -> Signals:
    """A student as a teacher of part of the classes can speak of it: without the classes that the teacher doesn't know."""
    return replace(signals, logits=signals.logits.masked_fill(~known_C.to(signals.logits.device), -torch.inf))
