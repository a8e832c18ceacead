"""A model whose weights are quantized while it trains: how it is made of a phase's settings, and what the phase tells of it at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_system.artifacts import passport_of_copy
from distill_system.data.collate import collate
from distill_system.errors import refuse
from distill_system.evaluation.latency import measure
from distill_system.evaluation.load import load_model
from distill_system.evaluation.predict import evaluation_mode
from distill_system.evaluation.size import size
from distill_system.export.dense import verify
from distill_system.export.packed import pack
from distill_system.files import folder_atomic
from distill_system.models.input_steps import detach_steps
from distill_system.models.packing import bits_of
from distill_system.phases.calibration import calibration_batches
from distill_system.phases.context import Context, Result, Trained
from distill_system.phases.finish import probe, split_of
from distill_system.pruning.masks import is_masked
from distill_system.quantization.activations import Activations
from distill_system.quantization.base import Moment
from distill_system.quantization.convert import Conversion
from distill_system.quantization.kbit import Kbit
from distill_system.quantization.prepare import Target, prepare, targets_of
from distill_system.schema import snake
from distill_system.settings import Calibration, Embeddings, Inputs, Mixing
from distill_system.training.emit import emit
from distill_system.training.engine import Engine
from distill_system.training.objective import STUDENT
from distill_system.training.quantizing import Quantizing

PACKED = "packed"  # the folder beside `model`
PACKED_TOLERANCE = (
    1e-4  # of logits, relative to the largest: tiles of a matrix are summed in another order than the whole
)


@dataclass(frozen=True)
class Settings:
    """What a phase says of quantization.

    `targets` raises: Refusal: patterns match nothing, groups don't divide rows, or inputs of a module can't be rounded.
    """

    quantizer: Any
    embeddings: Embeddings = field(default_factory=Embeddings)
    activations: Inputs = field(default_factory=Inputs)
    mixing: Mixing = field(default_factory=Mixing)
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def embedding_quantizer(self) -> Any:
        """Of tables, from their own range: k bits, asymmetric."""
        if self.embeddings.bits is None:
            return None
        size = self.embeddings.group_size
        granularity: Mapping[str, Any] = (
            {"granularity": "row"} if size is None else {"granularity": "group", "group_size": size}
        )
        return Kbit(bits=self.embeddings.bits, symmetric=False, range="weights", **granularity)

    def targets(self, model: nn.Module, key: str) -> list[Target]:
        found = targets_of(model, self.quantizer, self.embedding_quantizer(), self.include, self.exclude, key)
        for target in found if self.activations.bits else ():
            if getattr(model.get_submodule(target.module), "weight_only", False):
                text = f"is {self.activations.bits}, but {target.module} is asked for its weight, not for a product with inputs"
                raise refuse(f"{key}.activations.bits", f"{text}; set it to null, or exclude '{target.weight}'")
        return found


@dataclass
class Quantized:
    """A model with swapped modules.

    Attributes:
        model: it.
        settings: of the phase.
        targets: what was swapped.
        moment: that all modules share.
        activations: of the inputs, or None.
    """

    model: nn.Module
    settings: Settings
    targets: list[Target]
    moment: Moment
    activations: Activations | None

    def plan(self) -> str:
        """What will happen, for a person."""
        linears = [target for target in self.targets if target.kind == "linear"]
        tables = [target for target in self.targets if target.kind == "embedding"]
        parts = [
            f"{len(linears)} linears ({linears[0].weight} to {linears[-1].weight}) by {self.name}, {self._levels()}"
        ]
        if tables:
            parts.append(f"{len(tables)} embeddings at {self.settings.embeddings.bits} bits")
        if self.activations:
            parts.append(f"inputs at {self.activations.bits} bits")
        return f"quantize: {'; '.join(parts)}"

    @property
    def name(self) -> str:
        return snake(type(self.settings.quantizer))

    def _levels(self) -> str:
        first, last = (self.settings.quantizer.levels(progress) for progress in (0.0, 1.0))
        return f"{last} levels" if first == last else f"{first} levels at first, {last} at the end"

    def modifier(
        self, context: Context, stores: Any, calibration: Calibration, pad_id: int, total_steps: int
    ) -> Quantizing:
        batches = calibration_batches(context, stores, calibration, pad_id)

        def show(engine: Engine) -> None:
            assert self.activations is not None
            with torch.no_grad(), evaluation_mode([engine.objective]):
                for batch in batches():
                    self.activations.rows_B = batch["valid"]
                    engine.evaluate(batch, STUDENT)
            self.activations.rows_B = None

        return Quantizing(
            self.model,
            STUDENT,
            self.moment,
            self.settings.mixing,
            total_steps,
            activations=self.activations,
            show=show,
        )

    def conversion(self) -> "Handing":
        return Handing(self)

    def record(self, context: Context, trained: Trained, result: Result) -> dict[str, Any]:
        """What was quantized, how, and what became of it; writes the packed folder. On rank 0."""
        return {**self._described(trained.conversion), "packed": write_packed(context, trained, result)}

    def _described(self, conversion: Conversion) -> dict[str, Any]:
        tensors = []
        for target in self.targets:
            grid = conversion.grids[target.weight]
            elements = target.shape[0] * target.shape[1]
            tensors.append(
                {
                    "name": target.weight,
                    "kind": target.kind,
                    "quantizer": snake(type(target.quantizer)),
                    "shape": list(target.shape),
                    "levels": grid.grid.count,
                    "bits": bits_of(grid.grid.count),
                    "groups": grid.granularity.shape(*target.matrix)[0],
                    "zeros": conversion.zeros[target.weight] / elements,
                }
            )
        return {
            "quantizer": self.name,
            "granularity": asdict(self.settings.quantizer.granularity),
            "tensors": tensors,
            "activations": asdict(self.settings.activations) if self.activations else None,
            "mixing": asdict(self.settings.mixing),
        }


class Handing(Conversion):
    """The conversion of a phase; when all tensors went through, the config says what became of them."""

    def __init__(self, quantized: Quantized) -> None:
        super().__init__(quantized.model)
        self.quantized = quantized

    def __call__(self, tensors: Any) -> Any:
        yield from super().__call__(tensors)
        config: Any = self.quantized.model.config
        inputs = self.quantized.activations
        config.quantized = {
            "quantizer": self.quantized.name,
            "activations": {"bits": inputs.bits, "steps": self.steps} if inputs else None,
        }
        if getattr(config, "pruned", None):
            config.pruned = "dense"  # the packed folder stores what is zero in few bytes


def quantize_model(model: nn.Module, settings: Settings, context: Context) -> Quantized:
    """Swaps the modules of a model, all ranks alike.

    Raises:
        Refusal: nothing fits the settings, or masked weights would not stay zero.
    """
    key = f"phases.{context.name}"
    detach_steps(model)
    targets = settings.targets(model, key)
    if not settings.quantizer.has_zero:
        for target in targets:
            if target.kind == "linear" and is_masked(model.get_submodule(target.module)):
                text = f"has no level for 0, but weights of {target.weight} were pruned and must stay zero"
                raise refuse(
                    f"{key}.quantizer", f"{text}; take ternary_connect, trained_ternary or kbit, or exclude it"
                )
    inputs = settings.activations
    activations = (
        Activations(inputs.bits, learned=inputs.range == "learned", scale_lr=inputs.scale_lr) if inputs.bits else None
    )
    moment = Moment(seed=context.phase_seed)
    prepare(model, targets, moment, activations)
    return Quantized(model, settings, targets, moment, activations)


def write_packed(context: Context, trained: Trained, result: Result) -> dict[str, Any]:
    """The packed folder beside the model's, proven by reloading it; its figures. On rank 0."""
    assert result.artifact is not None
    source: Path = result.artifact.folder
    folder = source.with_name(PACKED)
    store = trained.stores[split_of(trained)]
    batch = collate(store, list(range(min(32, len(store)))), trained.data.pad_id)
    with folder_atomic(folder) as temporary:
        report = pack(source, temporary)
        expected = logits_of_folder(source, context.task, probe(trained))
        difference = verify(
            temporary, context.task, probe(trained), expected, PACKED_TOLERANCE, tokenizer=trained.tokenizer
        )
        latency = measure(temporary, context.task, batch, device=context.device)["latency"]
        figures = {"size": size(temporary), "latency": latency}
        title = f"{context.run_name}/{context.title}, packed"
        passport_of_copy(result.artifact, temporary, PACKED, title=title, extra=figures)
    return {
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "dense_bytes": size(source)["size_bytes"],
        **report.by_kind,
        "largest_difference": difference,
        "latency": latency,
    }


@torch.no_grad()
def logits_of_folder(folder: Path, task: str, batch: Mapping[str, Tensor]) -> Tensor:
    """What a saved model says of a batch."""
    return emit(load_model(folder, task), batch, task).logits.float()
