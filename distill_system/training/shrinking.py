"""Rounds that take whole layers away: chosen by a rule, or by what the output loses without them.

Shapes: B samples, T tokens, D width, C classes or words.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill_system import distributed
from distill_system.losses.base import at_positions
from distill_system.losses.task import HardLabel
from distill_system.models.anatomy import find_anatomy
from distill_system.pruning.base import Group, Surgery
from distill_system.pruning.layers import Layers, by_effect, by_rule, count_removed
from distill_system.pruning.masks import is_private
from distill_system.pruning.schedules import Round
from distill_system.pruning.scores.base import Score
from distill_system.pruning.weights import element_groups
from distill_system.signals import Signals, Targets
from distill_system.training.emit import Batch
from distill_system.training.engine import Engine, Piece
from distill_system.training.scoring import Scorer
from distill_system.training.surgeon import Applied, Tally, parameters_of


class Shrinking:
    """The surgeon of layers.

    Args:
        pruner: as the config has it.
        model: as it is now.
        role: whose.
        remaining: numbers that the present layers had in the model before any cut.
        original: how many layers that had.
        batches: gives this rank's calibration batches, equally many on every rank.
    """

    kind = "layers"
    cuts_units = False
    watches_gradients = False

    def __init__(
        self,
        pruner: Layers,
        model: nn.Module,
        role: str,
        *,
        remaining: Sequence[int],
        original: int,
        batches: Callable[[], Iterable[Batch]],
    ) -> None:
        self.pruner, self.role, self.batches = pruner, role, batches
        self.groups: list[Group] = element_groups(model, (1, 1))
        self.place = find_anatomy(model).layers
        self.remaining, self.original = list(remaining), original

    def begin(self, engine: Engine, sparsity: float) -> None:
        """Nothing is carried from round to round."""

    def observe(self, engine: Engine) -> None:
        raise NotImplementedError("layers are judged by what they do, not by gradients")

    def pieces(self, engine: Engine, part: str) -> Iterator[Piece]:
        yield from ()

    def _scorer(self, engine: Engine) -> Scorer:
        return Scorer(engine, self.role, self.groups, Score(), lambda watcher: None)

    def counts(self, engine: Engine, keep: Mapping[str, Tensor]) -> dict[str, int]:
        return {name: alive for name, (alive, _) in self._scorer(engine).count({}).items()}

    def count(self, engine: Engine, keep: Mapping[str, Tensor]) -> Tally:
        counts = self._scorer(engine).count({})
        alive, present = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
        return Tally(alive, parameters_of(engine, self.role) - present + alive)

    def apply(self, engine: Engine, due: Round, keep: Mapping[str, Tensor]) -> Applied:
        wanted = count_removed(due.sparsity, self.original) - (self.original - len(self.remaining))
        model = engine.objective.roles[self.role]
        gone: list[int] = []  # places in the present model
        words = []
        for _ in range(wanted):
            places = [place for place in range(len(self.remaining)) if place not in gone]
            if self.pruner.by == "rule":
                numbers = [self.remaining[place] for place in places]
                number = by_rule(self.pruner.rule, numbers, self.original, self.pruner.every)
                gone.append(self.remaining.index(number))
                words.append(f"layer {number} goes")
                continue
            effects = self._effects(engine, model, places, gone)
            place, found = by_effect(places, effects.__getitem__)
            gone.append(place)
            words.append(f"layer {self.remaining[place]} goes, {self.pruner.measure} {found[place]:.4g}")
        if not gone:
            return Applied(sentence="no whole layer is due yet")
        stay = [place for place in range(len(self.remaining)) if place not in gone]
        return Applied(
            surgery=Surgery("layers", {"layers": stay}),
            tally=self._after(engine, model, gone),
            sentence="; ".join(words),
        )

    def _after(self, engine: Engine, model: nn.Module, gone: Iterable[int]) -> Tally:
        lost = tuple(f"{self.place}.{place}." for place in gone)
        counts = self._scorer(engine).count({})
        alive = sum(count for name, (count, _) in counts.items() if not name.startswith(lost))
        present = sum(count for name, (_, count) in counts.items() if not name.startswith(lost))
        left = sum(
            getattr(p, "ds_numel", p.numel())
            for name, p in model.named_parameters()
            if not name.startswith(lost) and not is_private(name)
        )
        return Tally(alive, left - present + alive)

    def _effects(
        self, engine: Engine, model: nn.Module, places: Sequence[int], gone: Sequence[int]
    ) -> dict[int, float]:
        """What the output loses without each layer, besides those that are gone already; all ranks together."""
        layers = model.get_submodule(self.place)
        assert isinstance(layers, nn.ModuleList)
        total = torch.zeros(len(places) + 1, dtype=torch.float64)
        objective, task = engine.objective, engine.objective.task
        objective.eval()
        batches = list(self.batches())
        with torch.no_grad(), contextlib.ExitStack() as without:
            with forms(layers) as gives_tuple:
                engine.evaluate(batches[0], self.role)
            for place in gone:
                without.enter_context(bypassed(layers[place], gives_tuple=gives_tuple[place]))
            for batch in batches:
                targets = objective.targets(batch)
                if self.pruner.measure == "similarity":
                    with changes(layers, places, _real(batch)) as changed:
                        engine.evaluate(batch, self.role)
                    total[:-1] += torch.tensor([changed[place] for place in places], dtype=torch.float64)
                    total[-1] += float(_real(batch).sum())
                    continue
                whole = engine.evaluate(batch, self.role).float()
                for number, place in enumerate(places):
                    with bypassed(layers[place], gives_tuple=gives_tuple[place]):
                        other = engine.evaluate(batch, self.role).float()
                    total[number] += effect(whole, other, targets, task, self.pruner.measure)
                total[-1] += float(targets.count())
        objective.train()
        distributed.sum_over_data_ranks(total)
        count = max(float(total[-1]), 1.0)
        return {place: float(total[number]) / count for number, place in enumerate(places)}


def effect(whole: Tensor, other: Tensor, targets: Targets, task: str, measure: str) -> float:
    """What a change of the output amounts to, summed over positions.

    Args:
        whole: logits `[B, C]` or `[B, T, C]` of the model as it is.
        other: of the model without a layer.
        targets: labels and real positions.
        task: tasks without a softmax are measured by the KL of independent labels (multi-label) or the squared difference (regression).
        measure: kl or loss.
    """
    if measure == "loss":
        loss = HardLabel()
        return float(loss(Signals(other), None, targets)[0] - loss(Signals(whole), None, targets)[0])
    whole, other = (at_positions(logits, targets.valid) for logits in (whole, other))
    if task == "regression":
        return float((whole - other).square().sum())
    if task == "multi_label":
        p = whole.sigmoid()
        return float(
            (
                p * (F.logsigmoid(whole) - F.logsigmoid(other))
                + (1 - p) * (F.logsigmoid(-whole) - F.logsigmoid(-other))
            ).sum()
        )
    return float(F.kl_div(other.log_softmax(-1), whole.log_softmax(-1), reduction="sum", log_target=True))


@contextlib.contextmanager
def bypassed(layer: nn.Module, *, gives_tuple: bool) -> Iterator[None]:
    """Inside, the layer hands on what it is given, in the form (a tensor, or a tuple that begins with it) that it has given before."""
    before = layer.forward

    def through(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden,) if gives_tuple else hidden

    layer.forward = through  # type: ignore[method-assign]
    try:
        yield
    finally:
        layer.forward = before  # type: ignore[method-assign]


@contextlib.contextmanager
def forms(layers: nn.ModuleList) -> Iterator[list[bool]]:
    """Inside, one forward tells of each layer whether it gives a tuple."""
    found = [False] * len(layers)

    def hook(place: int) -> Callable[..., None]:
        return lambda module, inputs, output: found.__setitem__(place, isinstance(output, tuple))

    handles = [layer.register_forward_hook(hook(place)) for place, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _real(batch: Batch) -> Tensor:
    """Real tokens `[B, T]` of real rows, or real rows `[B, 1]`."""
    valid_B1 = batch["valid"][:, None]
    mask_BT = batch.get("attention_mask")
    return valid_B1 if mask_BT is None else mask_BT.bool() & valid_B1


@contextlib.contextmanager
def changes(layers: nn.ModuleList, places: Iterable[int], real_BT: Tensor) -> Iterator[dict[int, float]]:
    """Inside, one forward leaves the sum over real tokens of 1 - cos(what goes in, what comes out) for each layer."""
    found: dict[int, float] = {}

    def hook(place: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            turned_BT = 1 - F.cosine_similarity(before.float(), after.float(), dim=-1)
            share = turned_BT.shape[1] / real_BT.shape[1]  # rows of pictures count once, with the mean of their patches
            found[place] = float(torch.where(real_BT.expand(turned_BT.shape), turned_BT, 0.0).sum() / share)

        return keep

    handles = [layers[place].register_forward_hook(hook(place), with_kwargs=True) for place in places]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
