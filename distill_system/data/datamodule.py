"""The LightningDataModule: one item for each optimizer step, from any step on, and evaluation batches shared out over the ranks."""

from collections.abc import Iterator, Mapping

import lightning
import numpy as np

from distill_system.data import order
from distill_system.data.collate import Batch, collate
from distill_system.data.tokens import TokenStore


class StepLoader:
    """Yields the micro-batches of this rank for the steps `start_step` ... `total_steps - 1`, on through the epochs.

    An item is all that an optimizer step sees of the data on this rank, so that the order and the global batch can't depend on accumulation.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        pad_id: int,
        batch_size: int,
        total_steps: int,
        start_step: int = 0,
        accumulation: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.store, self.pad_id, self.seed = store, pad_id, seed
        self.batch_size, self.accumulation = batch_size, accumulation
        self.rank, self.world = rank, world
        self.start_step, self.total_steps = start_step, total_steps

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    def __iter__(self) -> Iterator[list[Batch]]:
        epoch, batches = -1, []
        for step in range(self.start_step, self.total_steps):
            wanted, number = order.position(step, len(self.store), self.batch_size)
            if wanted != epoch:
                epoch, batches = wanted, order.epoch_batches(self.store.lengths, self.batch_size, self.seed, wanted)
            micro = order.rank_rows(batches[number], self.rank, self.world, self.accumulation)
            yield [collate(self.store, rows, self.pad_id, (self.seed, epoch)) for rows in micro]


class DataModule(lightning.LightningDataModule):
    """Hands a trainer its steps and an evaluation its batches.

    Args:
        stores: tokenised splits; `train` must be there, others may be absent.
        pad_id: token that fills short rows.
        batch_size: samples in an optimizer step, over all ranks and accumulation.
        accumulation: micro-batches a rank works through in one optimizer step.
        eval_batch_size: samples a rank takes at once where nothing is trained.
        seed: of the order.
        rank: this process.
        world: number of processes.
        start_step: optimizer steps already done (a resume).
        total_steps: optimizer steps of the whole phase.
    """

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        *,
        pad_id: int,
        batch_size: int,
        total_steps: int,
        accumulation: int = 1,
        eval_batch_size: int = 64,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
    ) -> None:
        super().__init__()
        self.stores = stores
        self.pad_id, self.batch_size, self.accumulation, self.eval_batch_size = (
            pad_id,
            batch_size,
            accumulation,
            eval_batch_size,
        )
        self.seed, self.rank, self.world = seed, rank, world
        self.start_step, self.total_steps = start_step, total_steps

    @property
    def steps_per_epoch(self) -> int:
        return order.steps_per_epoch(len(self.stores["train"]), self.batch_size)

    def train_dataloader(self) -> StepLoader:
        """Exactly `total_steps - start_step` items, each the list of this rank's micro-batches of one optimizer step."""
        return StepLoader(
            self.stores["train"],
            pad_id=self.pad_id,
            batch_size=self.batch_size,
            total_steps=self.total_steps,
            start_step=self.start_step,
            accumulation=self.accumulation,
            seed=self.seed,
            rank=self.rank,
            world=self.world,
        )

    def evaluation_batches(self, split: str, batch_size: int | None = None) -> Iterator[Batch]:
        """Every row of `split` once over all ranks, the longest first; all ranks get equally many batches of equally many rows.

        Nothing where the split is absent. Rows that a rank lacks are filler (`valid` False).
        """
        if split not in self.stores:
            return
        store, size = self.stores[split], batch_size or self.eval_batch_size
        by_length = np.argsort(-store.lengths, kind="stable")
        own = by_length[self.rank :: self.world]
        own = np.concatenate([own, np.full(-(-len(store) // self.world) - len(own), -1)])
        for start in range(0, len(own), size):
            yield collate(store, own[start : start + size].tolist(), self.pad_id)
