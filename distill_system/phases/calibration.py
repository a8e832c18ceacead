"""The rows that scores look at: the same few of the training split on any number of ranks."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from distill_system import distributed
from distill_system.data.collate import Batch, collate
from distill_system.data.tokens import Stores
from distill_system.evaluation.predict import evaluation_mode
from distill_system.phases.context import Context
from distill_system.pruning.calibration import Watcher
from distill_system.settings import Calibration
from distill_system.training.engine import Engine

SHUFFLE_SEED = 17  # of calibration rows: a fixed one, so that all phases look at the same


def calibration_rows(length: int, samples: int) -> np.ndarray:
    """Numbers of the rows: the first of a fixed shuffle of the split."""
    return np.random.default_rng(SHUFFLE_SEED).permutation(length)[:samples]


def calibration_batches(
    context: Context, stores: Stores, settings: Calibration, pad_id: int
) -> Callable[[], Iterator[Batch]]:
    """Gives this rank's share, equally many batches on every rank; rows that it lacks are filler (`valid` False)."""
    store = stores["train"]
    rows = calibration_rows(len(store), settings.samples)
    world, size = distributed.data_world(), context.training.eval_batch_size
    own = rows[distributed.data_rank() :: world]
    own = np.concatenate([own, np.full(-(-len(rows) // world) - len(own), -1, dtype=own.dtype)])

    def batches() -> Iterator[Batch]:
        for start in range(0, len(own), size):
            batch = collate(store, own[start : start + size].tolist(), pad_id)
            yield {name: tensor.to(context.device) for name, tensor in batch.items()}

    return batches


def show(engine: Engine, watcher: Watcher, role: str, batches: Callable[[], Iterator[Batch]]) -> None:
    """Runs the model over the calibration rows as often as a watcher wants to see them."""
    with torch.no_grad(), evaluation_mode([engine.objective]):
        for number in range(watcher.passes):
            watcher.begin(number)
            with watcher.watching():
                for batch in batches():
                    valid_B1 = batch["valid"][:, None]
                    mask_BT = batch.get("attention_mask")
                    watcher.keep_BT = valid_B1 if mask_BT is None else mask_BT.bool() & valid_B1
                    engine.evaluate(batch, role)
            watcher.end(number)
