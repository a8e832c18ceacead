"""Mutual learning: members that train together, each on labels and on what its peers say, which it takes as given (Zhang et al. 2018, arXiv:1706.00384)."""

import contextlib
import functools
import time
from typing import Any, cast

from distill_system import distributed
from distill_system.phases import base
from distill_system.phases.batching import batch_members
from distill_system.phases.cohort import check_members, ensemble_evaluation, place
from distill_system.phases.context import Context, Result
from distill_system.phases.finish import finish
from distill_system.phases.teachers import load_teachers
from distill_system.settings import Cohort, Ensemble, Gate, Teacher


class Mutual:
    """A mutual-learning phase.

    Args:
        kind: "mutual".
        members: recipes by name, two at least; the same or different architectures.
        losses: of each member with the labels (and with teachers, where there are some), by name.
        peer_losses: of each member with each of its peers, whose mean counts; a peer's signals carry no gradient.
        teachers: by name, beside the cohort; none is needed.
        ensemble: how several teachers teach together.
        cohort: where members live and what is kept of them.
        seeds: of the members' fresh weights, by name; a member without one takes it from its name.
        training: what differs from the run's training settings; read by the pipeline.
        data: what differs from the run's data; read by the pipeline.
        seed_as: phases with the same word see the same batches; read by the pipeline.
        gate: bound that the result must keep; read by the pipeline.
    """

    def __init__(
        self,
        kind: str,
        members: dict[str, Any],
        losses: dict[str, Any],
        peer_losses: dict[str, Any],
        teachers: dict[str, Teacher] | None = None,
        ensemble: Ensemble | None = None,
        cohort: Cohort | None = None,
        seeds: dict[str, int] | None = None,
        training: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        seed_as: str | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.kind, self.members, self.losses, self.peer_losses = kind, members, losses, peer_losses
        self.teachers = {name: Teacher(**cast(dict, settings)) for name, settings in (teachers or {}).items()}
        self.ensemble = Ensemble(**cast(dict, ensemble or {}))
        self.cohort = Cohort(**cast(dict, cohort or {}))
        self.seeds = seeds or {}

    def run(self, context: Context) -> Result:
        started = time.perf_counter()
        members, tokenizer = base.build_members(self.members, context, group="members", seeds=self.seeds)
        check_members(members, context)
        roles = list(members)
        stores = base.load_data(context, tokenizer)
        teachers, weights = load_teachers(self.teachers, context, members, tokenizer, stores, self.ensemble)
        spread, why = place(self.cohort, members, context.training, context.folder / "placement.json")
        if why:
            context.note(why)
        with distributed.divided(len(roles)) if spread else contextlib.nullcontext() as division:
            if division:
                mine = roles[division.part]
                members = {mine: members[mine]}
            trained = base.train(
                context,
                members,
                tokenizer,
                self.losses,
                stores=stores,
                teachers=teachers,
                weights=weights,
                ensemble=self.ensemble,
                peer_losses=self.peer_losses,
                roles=roles,
                batch_members=functools.partial(batch_members, self.cohort, context),
                started=started,
            )
            del members  # where they live apart, the others' weights are held on their own ranks only
            result = finish(context, trained, keep=self.cohort.artifact)
            if result.artifact is not None and self.cohort.artifact == "ensemble":
                result.extra["ensemble"] = ensemble_evaluation(context, trained)
        return result
