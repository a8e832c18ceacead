"""What can't be pruned is refused before anything runs, with the key and the nearest fix; also what only shows on the model, after the cuts before it."""

import pytest

from distill_system.config.check import check
from distill_system.config.compose import compose

TEXT = ["run.name=x", "experiment=evidence/hints", "~phases.kd", "~phases.hints", "+phases@phases.prune=prune"]
VIT = [*TEXT, "phases.prune.model.phase=teacher"]  # 4 layers, width 48, 4 heads, 128 neurons
LLAMA = [
    "run.name=x",
    "experiment=lm_quick",
    "~phases.student",
    "+phases@phases.prune=prune",
    "phases.prune.model.phase=teacher",
]


def problems(*overrides: str, base=VIT) -> list[str]:
    return [str(problem) for problem in check(compose([*base, *overrides]).config)]


def kind(name: str, *more: str) -> list[str]:
    return [f"pruning@phases.prune.pruner={name}", *more]


SPARSITY = "phases.prune.schedule.final_sparsity"
SCORE = "scores@phases.prune.pruner.score"
CASES = [
    (kind("neurons", f"{SPARSITY}=1.0"), SPARSITY, "must be >= 0 and < 1"),
    (kind("neurons", f"{SPARSITY}=-0.1"), SPARSITY, "must be >= 0 and < 1"),
    (kind("neurons", f"{SPARSITY}=0"), SPARSITY, "nothing would be pruned"),
    (kind("neurons", f"{SPARSITY}=0.999"), SPARSITY, "leaves none of 128 neurons in layer 0 neurons; nearest: 0.9922"),
    (kind("neurons", f"{SPARSITY}=0.001"), SPARSITY, "too little to take one of 128 neurons out; nearest: 0.007812"),
    (kind("neurons", "phases.prune.schedule.end=1.5"), "phases.prune.schedule.end", "must be >= 0 and <= 1"),
    (kind("neurons", "phases.prune.schedule.rounds=500"), "phases.prune.schedule.rounds", "nearest: rounds=361"),
    (kind("neurons", "phases.prune.schedule.begin=0.9"), "phases.prune.schedule.end", "before begin 0.9; nearest: end=0.9"),
    (kind("neurons", "phases.prune.schedule.shape=cubik"), "phases.prune.schedule.shape", "did you mean 'cubic'"),
    (kind("neurons", "phases.prune.schedule.initial_sparsity=0.6"), SPARSITY, "below initial_sparsity 0.6"),
    (kind("neurons", "phases.prune.pruner.include=['*nowhere*']"), "phases.prune.pruner.include[0]", "matches none of the 8 matrices"),
    (kind("neurons", "phases.prune.pruner.exclude=['*']"), "phases.prune.pruner.include", "leave nothing to prune"),
    (kind("neurons", "phases.prune.calibration.samples=0"), "phases.prune.calibration.samples", "must be >= 1"),
    (kind("neurons", "phases.prune.model.phase=teach"), "phases.prune.model.phase", "did you mean 'teacher'"),
    (kind("neurons", "~phases.prune.losses.hard"), "phases.prune.losses", "is empty"),
    (kind("neurons", f"{SCORE}=taylor", "phases.prune.schedule.begin=0"), "phases.prune.schedule.begin", "set it to 0.1"),
    (kind("heads", f"{SPARSITY}=0.9"), SPARSITY, "leaves none of 4 heads in layer 0 heads; nearest: 0.75"),
    (kind("layers", f"{SPARSITY}=0.9"), SPARSITY, "leaves none of 4 layers; nearest: 0.75"),
    (kind("layers", f"{SPARSITY}=0.05"), SPARSITY, "too little for one of 4 layers; nearest: 0.25"),
    (kind("layers", "phases.prune.schedule.rewind=weights"), "phases.prune.schedule.rewind", "have none to go back to"),
    (kind("layers", "phases.prune.pruner.rule=third"), "phases.prune.pruner.rule", "every"),
    (kind("weights", "phases.prune.pruner.pattern=[2,4]", f"{SPARSITY}=0.6"), SPARSITY, "2 of 4 leaves 0.5; set it to 0.5"),
    (kind("weights", "phases.prune.pruner.pattern=[4,2]"), "phases.prune.pruner.pattern", "must be [n, m] with 0 < n < m"),
    (kind("weights", "phases.prune.pruner.pattern=[5,10]"), "phases.prune.pruner.pattern", "inputs, which 10 doesn't divide"),
    (kind("weights", f"{SCORE}=entropy"), "phases.prune.pruner.score", "values neurons and heads, not weights"),
    (kind("weights", "phases.prune.pruner.allocation=teacher"), "phases.prune.pruner.allocation", "which suggests nothing"),
    (kind("weights", "phases.prune.storage=zip"), "phases.prune.storage", "auto, sparse, dense"),
    (kind("blocks", "phases.prune.pruner.block=[16,100]"), "phases.prune.pruner.block", "which it doesn't divide"),
    (kind("heads", f"{SCORE}=movement", "phases.prune.pruner.score.mode=learned", "phases.prune.pruner.score.threshold=soft"),
     "phases.prune.pruner.score.threshold", "heads need threshold=hard"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "key", "words"), CASES, ids=[f"{case[1]}-{i}" for i, case in enumerate(CASES)])
def test_refused(overrides, key, words):
    found = problems(*overrides)
    assert any(line.strip().startswith(f"{key}:") and words in line for line in found), found


@pytest.mark.parametrize("name", ["weights", "blocks", "neurons", "heads", "layers"])
def test_every_kind_is_fine_as_it_comes(name):
    assert problems(*kind(name)) == []


@pytest.mark.parametrize(
    "score", ["magnitude", "movement", "taylor", "activation", "mean_activation", "entropy", "random"]
)
def test_every_score_is_fine_as_it_comes(score):
    assert problems(*kind("neurons", f"{SCORE}={score}")) == []


def test_heads_that_share_keys_and_values_go_together():
    shared = ["+phases.teacher.model.num_key_value_heads=2", *kind("heads")]
    assert problems(*shared, f"{SPARSITY}=0.5", base=LLAMA) == []
    (found,) = problems(*shared, f"{SPARSITY}=0.25", base=LLAMA)
    assert "1 of 4 heads, but 2 share each of the 2 key-value heads and go together; nearest: 0.5" in found


def test_a_phase_is_checked_on_what_the_phases_before_leave():
    """128 neurons are divided by 16; the 64 that a phase leaves of them aren't by 48. Of the two layers left, none may go."""
    chain = [*kind("neurons"), "+phases@phases.more=prune", "phases.more.model.phase=prune"]
    fits = "pruning@phases.more.pruner=blocks"
    assert problems(*chain, fits) == []
    (found,) = problems(*chain, fits, "phases.more.pruner.block=[48,16]", "phases.more.pruner.include=['*fc1*']")
    assert "64 x 64, which it doesn't divide" in found
    layers = [
        *kind("layers"),
        "+phases@phases.more=prune",
        "phases.more.model.phase=prune",
        "pruning@phases.more.pruner=layers",
    ]
    (found,) = problems(*layers, "phases.more.schedule.final_sparsity=0.75")
    assert "leaves none of 2 layers; nearest: 0.5" in found


def test_an_allocation_comes_from_a_phase_that_measured_the_same():
    measured = [
        *TEXT[:-1],
        "+phases@phases.s=sensitivity",
        "phases.s.model.phase=teacher",
        TEXT[-1],
        "phases.prune.model.phase=teacher",
    ]
    given = "phases.prune.pruner.allocation=s"
    assert problems(*kind("weights", given), base=measured) == []
    (found,) = problems(*kind("neurons", given, "phases.prune.pruner.uniform=false"), base=measured)
    assert "which measures weights, but neurons are pruned here" in found
    (found,) = problems(*kind("neurons", given), "pruning@phases.s.pruner=neurons", base=measured)
    assert "phases.prune.pruner.uniform: is true" in found


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["phases.s.levels=[0.5,0.25]"], "must be ascending shares"),
        (["phases.s.target=0.95"], "at most the highest level, 0.9"),
        (["pruning@phases.s.pruner=layers"], "can't be taken away by degrees"),
        (["scores@phases.s.pruner.score=taylor"], "looks at gradients, but nothing is trained here"),
    ],
)
def test_what_can_t_be_measured(overrides, words):
    base = [*TEXT[:-1], "+phases@phases.s=sensitivity", "phases.s.model.phase=teacher"]
    assert any(words in line for line in problems(*overrides, base=base))
