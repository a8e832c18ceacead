"""Several teachers of one phase: each runs once a batch, whatever the number of losses that read it, and together they say one thing or several.

With K teachers, fixed weights w_k (summing to 1) and an energy E_k of each position:

    share_k = w_k exp(-s E_k) / sum_j w_j exp(-s E_j)
    probabilities:  p = sum_k share_k softmax(z_k),  handed on as log p        logits:  z = sum_k share_k (z_k - mean(z_k))
    losses:         sum_k share_k loss(student, teacher_k)

E is 0 (fixed, quality), the entropy of softmax(z_k) (confidence), or its divergence from the mean of all, KL(sum_j w_j p_j || p_k) (agreement); s is
`sharpness`. The arithmetic and the geometric mean of Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 5. A loss with a temperature softens what
is handed on. Differs from other ensembles in: logits are centred first, since a constant that one teacher adds to all of its logits means nothing.

Shapes: B samples, T tokens, C classes or words, K teachers; `...` is B or B, T.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from distill_system.settings import Ensemble as Settings
from distill_system.signals import Signals
from distill_system.training.emit import LOGITS, Batch, Needs
from distill_system.training.teachers import Teacher

TOGETHER = "teachers"  # the name under which several teachers speak as one


class Faculty:
    """The teachers of a phase.

    Args:
        teachers: by name.
        settings: how they teach together.
        weights: of each, >= 0; only their ratios count.
        needs: what losses read of each; that of `TOGETHER` is the logits of all.
        task: of the data.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        settings: Settings,
        weights: Mapping[str, float],
        needs: Mapping[str, Needs],
        task: str,
    ) -> None:
        total = sum(weights.values())
        assert total > 0, weights
        self.teachers, self.settings, self.needs, self.task = dict(teachers), settings, dict(needs), task
        self.weights = {name: weights[name] / total for name in teachers}

    def __call__(self, batch: Batch) -> dict[str, Signals]:
        """What each says, with the trust it has at each position, and what they say together where that is asked for."""
        joint = TOGETHER in self.needs
        said = {
            name: teacher.signals(batch, self.needs.get(name, LOGITS))
            for name, teacher in self.teachers.items()
            if joint or self.needs.get(name) or self.by_position
        }
        if len(self.teachers) == 1:
            return said
        if not (joint or self.by_position):
            return said
        share_K = self._shares(batch, said)
        if joint:
            said[TOGETHER] = Signals(together(said, share_K, self.settings.combine, self.task))
        if self.by_position:
            said |= {name: replace(said[name], trust=share_K[name]) for name in self.teachers}
        return said

    @property
    def by_position(self) -> bool:
        """Whether trust differs from position to position."""
        return len(self.teachers) > 1 and self.settings.weighting in ("confidence", "agreement")

    def _shares(self, batch: Batch, said: Mapping[str, Signals]) -> dict[str, Tensor]:
        """Share `[...]` of each teacher at each position; they sum to 1. A teacher has no share in rows labelled with a class that it doesn't know."""
        logits = {name: said[name].logits for name in self.teachers}
        log_weight = {name: math.log(weight) if weight else -math.inf for name, weight in self.weights.items()}
        energy = energies(logits, self.settings.weighting, self.weights, self.task)
        scores = []
        for name, teacher in self.teachers.items():
            score = log_weight[name] - self.settings.sharpness * energy[name]
            if teacher.known is not None:
                labels = batch["labels"]
                unknown = (labels >= 0) & ~teacher.known.to(labels.device)[labels.clamp(min=0)]
                score = score.masked_fill(unknown, -math.inf)
            scores.append(score)
        shares_K = torch.stack(scores, dim=-1).softmax(dim=-1).nan_to_num(0.0)  # nobody knows: nobody teaches
        return dict(zip(self.teachers, shares_K.unbind(-1), strict=True))


def log_probs(logits: Tensor, task: str) -> Tensor:
    """Of the classes; in multi-label classification `[..., C, 2]`: each label on and off."""
    if task == "multi_label":
        return torch.nn.functional.logsigmoid(torch.stack([logits.double(), -logits.double()], dim=-1))
    return logits.double().log_softmax(dim=-1) if logits.shape[-1] <= 1024 else logits.float().log_softmax(dim=-1)


def energies(
    logits: Mapping[str, Tensor], weighting: str, weights: Mapping[str, float], task: str
) -> dict[str, Tensor]:
    """Energy `[...]` of each teacher: what makes it less trusted at a position.

    Args:
        logits: `[..., C]` of each.
        weighting: "confidence", "agreement", or one that is the same everywhere.
        weights: of each, summing to 1.
        task: of the data.
    """
    if weighting not in ("confidence", "agreement"):
        return {
            name: torch.zeros(one.shape[:-1], dtype=torch.float64, device=one.device) for name, one in logits.items()
        }
    logs = {name: log_probs(one, task) for name, one in logits.items()}
    if weighting == "confidence":
        terms = {name: -log.exp() * log.masked_fill(log == -torch.inf, 0.0) for name, log in logs.items()}
    else:
        mean = sum(weights[name] * log.exp() for name, log in logs.items())
        assert isinstance(mean, Tensor)
        log_mean = mean.log()
        terms = {name: (mean * (log_mean - log)).masked_fill(mean == 0, 0.0) for name, log in logs.items()}
    return {
        name: (term.sum(dim=-1).mean(dim=-1) if task == "multi_label" else term.sum(dim=-1))
        for name, term in terms.items()
    }


def together(said: Mapping[str, Signals], share: Mapping[str, Tensor], combine: str, task: str) -> Tensor:
    """Logits `[..., C]` of all as one, each with its `share` `[...]`; in regression the mean of their numbers."""
    parts = {name: said[name].logits for name in share}
    dtype = next(iter(parts.values())).dtype
    if combine == "logits" or task == "regression":
        centre = task not in ("multi_label", "regression")  # there a logit has a meaning of its own

        def finite_mean(z: Tensor) -> Tensor:
            real = z != -torch.inf
            return z.masked_fill(~real, 0.0).sum(-1, keepdim=True) / real.sum(-1, keepdim=True)

        total = torch.zeros((), dtype=torch.float64)
        for name, z in parts.items():
            part = share[name].unsqueeze(-1)
            # Who has no share has no word cut either: 0 * -inf would be NaN.
            total = total + torch.where(part > 0, part * ((z - finite_mean(z)) if centre else z), 0.0)
        return total.to(dtype)
    logs = []
    for name, z in parts.items():
        log = log_probs(z, task)
        logs.append(log + share[name].log().view(*share[name].shape, *[1] * (log.dim() - share[name].dim())))
    mixed = torch.stack(logs).logsumexp(dim=0)
    if task == "multi_label":
        mixed = mixed[..., 0] - mixed[..., 1]
    return mixed.to(dtype)


def quality_weights(
    metrics: Mapping[str, Mapping[str, float | None]], fixed: Mapping[str, float], sharpness: float
) -> dict[str, float]:
    """w_k times the quality of teacher k on the validation rows to the power of `sharpness`.

    Quality is the geometric mean of the probability it gave to the right answer, exp(-nll); in regression, 1 / mean squared error (the best linear
    unbiased combination of independent estimates). A teacher without a figure keeps none of its weight.
    """
    found = {}
    for name, figures in metrics.items():
        nll, mse = figures.get("nll"), figures.get("mse")
        if nll is not None and math.isfinite(nll):
            quality = math.exp(-nll)
        else:
            quality = 1 / max(mse, 1e-12) if mse is not None and math.isfinite(mse) else 0.0
        found[name] = fixed[name] * quality**sharpness
    return found
