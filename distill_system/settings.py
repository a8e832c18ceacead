"""Settings that every phase shares, as plain dataclasses: what a key means, its type and its range stand here once."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from distill_system.schema import Count, Fraction, Index, NonNegative, Positive, ProperFraction, Range

Beta = Annotated[float, Range(at_least=0, below=1)]
ZERO_STRATEGIES = ("zero1", "zero2", "zero3", "zero3_offload")


@dataclass(frozen=True)
class Training:
    """How a phase is trained (`training.*`; `phases.<name>.training.*` wins for that phase)."""

    strategy: Literal["single", "ddp", "zero1", "zero2", "zero3", "zero3_offload"] = "ddp"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Count = 1  # ranks on each node
    nodes: Count = 1
    threads: Count | None = None  # intra-op threads a rank; null: cores / ranks on a CPU
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: Count = 32  # samples in an optimizer step, over all ranks and accumulation
    accumulation: Count = 1  # micro-batches a rank works through in one optimizer step
    eval_batch_size: Count = 64  # samples a rank takes at once where nothing is trained
    max_steps: Count | None = None  # null: as many as max_epochs give
    max_epochs: Positive | None = 1
    lr: Positive = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: ProperFraction = 0.1  # share of the steps in which the learning rate rises
    weight_decay: NonNegative = 0.01  # not on norms, biases and embeddings
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    eps: Positive = 1e-8
    clip: NonNegative = 1.0  # largest gradient norm; 0: none
    activation_checkpointing: bool = False
    log_every: Count = 10  # steps between two lines of metrics.jsonl
    flush_every: Count = 20  # steps whose figures stay on the device before they are fetched
    eval_every: Count | None = None  # steps between validations; null: at the end of each epoch
    checkpoint_every: Count | None = (
        None  # steps between checkpoints; null: every tenth of the phase, and at validation
    )
    keep_last: Count = 2
    monitor: str | None = (
        None  # metric that chooses the best weights; null: accuracy, or perplexity for language models
    )
    patience: Count | None = None  # validations without progress before the phase stops; null: never
    keep: Literal["best", "last"] = "best"  # which weights the phase hands on
    max_bad_steps: Index = 10  # steps with a NaN or infinite loss that are skipped before the run ends


@dataclass(frozen=True)
class Schedule:
    """A number that changes over the phase's steps, where a setting takes a schedule (`weight={start:1,end:0,shape:linear}`)."""

    start: NonNegative
    end: NonNegative = 0.0
    shape: Literal["constant", "linear", "cosine"] = "linear"
    begin: Fraction = 0.0  # share of the steps after which it starts to change
    until: Fraction = 1.0  # share of the steps after which it stays at `end`


@dataclass(frozen=True)
class PositiveSchedule(Schedule):
    """The same for a number that may never be 0 (a temperature)."""

    start: Positive
    end: Positive = 1.0


@dataclass(frozen=True)
class Teacher:
    """Where a teacher comes from and where it lives (`phases.<name>.teachers.<name>`)."""

    phase: str | None = None  # an earlier phase of this run, or one of its members (`cohort.a`)
    model: str | None = None  # or a hub name or local folder
    placement: Literal["replicated", "zero3"] = "replicated"
    weight: NonNegative = 1.0  # against the other teachers of the phase


@dataclass(frozen=True)
class Ensemble:
    """How several teachers of a phase teach together (`phases.<name>.ensemble`)."""

    combine: Literal["probabilities", "logits", "losses"] = "probabilities"  # what is averaged
    weighting: Literal["fixed", "quality", "confidence", "agreement"] = (
        "fixed"  # by teachers.<name>.weight alone, or times ...
    )
    sharpness: Positive = 1.0  # how strongly quality, confidence and agreement tell


@dataclass(frozen=True)
class Cohort:
    """How the members of a mutual-learning phase live and what they leave (`phases.<name>.cohort`)."""

    placement: Literal["auto", "together", "spread"] = "auto"  # all on every rank, or each on ranks of its own
    artifact: Literal["best", "all", "ensemble"] = "all"  # what is kept; ensemble: all, and the figures of their mean
    batched: Literal["auto", "never", "always"] = "never"  # equal tiny members as one batched model
    compile: bool = False  # that model through torch.compile: faster steps, but the first ones take a minute


@dataclass(frozen=True)
class BornAgain:
    """Generations of one size, each taught by the one before (`phases.<name>.born_again`)."""

    generations: Count | None = None  # null: a chain of assistants instead
    ensemble: bool = False  # whether the mean of all generations' probabilities is measured too


@dataclass(frozen=True)
class Pruning:
    """How sparsity grows over the steps of a phase (`phases.<name>.schedule`)."""

    shape: Literal["auto", "one_shot", "linear", "cubic", "exponential"] = "auto"  # cubic; of whole layers linear
    initial_sparsity: ProperFraction = 0.0  # before the first round
    final_sparsity: ProperFraction = 0.5  # after the last
    begin: Fraction = (
        0.1  # share of the steps after which the first round comes; scores of gradients look at the steps before
    )
    end: Fraction = 0.7  # share of the steps after which the last round comes; then the masks stay
    rounds: Count = 5  # evenly spaced from begin to end; one_shot has one
    every: Count | None = None  # steps between two rounds, instead of `rounds`
    rewind: Literal["none", "learning_rate", "weights"] = (
        "none"  # after each round: its schedule anew; weights too, to those of the first round
    )


@dataclass(frozen=True)
class Calibration:
    """Rows of the training split that scores look at (`phases.<name>.calibration`)."""

    samples: Count = 256  # the first so many of a fixed shuffle


@dataclass(frozen=True)
class Embeddings:
    """How the tables of a quantized model are stored (`phases.<name>.embeddings`); a tied output layer goes with its table."""

    bits: Annotated[int, Range(at_least=2, at_most=8)] | None = None  # null: as they are
    group_size: Count | None = None  # neighbours in a row that share a scale; null: the whole row


@dataclass(frozen=True)
class Inputs:
    """How inputs of quantized linears are rounded (`phases.<name>.activations`)."""

    bits: Annotated[int, Range(at_least=2, at_most=8)] | None = None  # null: as they are
    range: Literal["learned", "running"] = "learned"  # steps trained by gradients, or following the largest inputs
    scale_lr: Positive = 1.0  # learning rate of learned steps, over the phase's own


@dataclass(frozen=True)
class Mixing:
    """How the forward goes over from full precision to quantized weights (`phases.<name>.mixing`)."""

    begin: Fraction = 0.0  # share of the steps that are in full precision
    until: Fraction = 0.0  # share of the steps after which all is quantized; 0: from the first step


@dataclass(frozen=True)
class LabelNoise:
    """Training labels that are changed on purpose (`data.label_noise`); validation and test keep theirs."""

    rate: Fraction = 0.0  # share of the labelled training rows that get another label
    kind: Literal["symmetric", "pair"] = "symmetric"  # any other class, or always the next one
    seed: Index = 0


@dataclass(frozen=True)
class Gate:
    """A phase whose metric stays below `at_least` (or above `at_most`) ends the run with status 3."""

    metric: str | None = None
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Run:
    """The run folder is `dir/name`: a function of the experiment and the name, never of the time or a job id."""

    name: str | None = None  # null: the experiment's name
    dir: str = "runs"
    overwrite: bool = False
    shutdown_timeout_s: Positive = (
        8.0  # how long ranks may take to save and leave after SIGTERM or Ctrl-C before they are killed
    )


@dataclass(frozen=True)
class Export:
    """What is written of the last phase's model when a run is finished (`export.*`), as `distill export` does by hand."""

    format: Literal["packed", "onnx", "sparse", "torchao"] | None = None


@dataclass(frozen=True)
class Config:
    """`config.*`: what a user's own config folder may bring in."""

    allowed_targets: list[str] = field(
        default_factory=list
    )  # packages besides distill_system that a `_target_` may name


__all__ = [
    "ZERO_STRATEGIES",
    "BornAgain",
    "Calibration",
    "Cohort",
    "Config",
    "Embeddings",
    "Ensemble",
    "Export",
    "Fraction",
    "Gate",
    "Inputs",
    "LabelNoise",
    "Mixing",
    "PositiveSchedule",
    "Pruning",
    "Run",
    "Schedule",
    "Teacher",
    "Training",
]
