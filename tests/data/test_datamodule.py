"""Batches against rows worked by hand; steps, resumes, ranks and evaluation lose and repeat nothing."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.data.collate import collate
from distill_system.data.datamodule import DataModule
from distill_system.signals import IGNORE


class Store:
    """A token store in memory: row i is `lengths[i]` times the token i + 1, its label i % 2."""

    def __init__(self, lengths, task="classification", types=False):
        self.lengths, self.task = np.array(lengths), task
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.tokens = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
        self.labels = np.arange(len(lengths)) % 2
        self.type_ids = (self.tokens % 2).astype(np.int8) if types else None

    def __len__(self):
        return len(self.lengths)


def module(store, **kwargs):
    return DataModule({"train": store, "test": store}, **({"pad_id": 0, "batch_size": 4, "total_steps": 6} | kwargs))


def seen(items):
    return [[i for micro in item for i in micro["index"].tolist() if i >= 0] for item in items]


def test_classification_batch_by_hand():
    batch = collate(Store([1, 3, 2], types=True), [2, -1, 0], pad_id=9)
    assert batch["input_ids"].tolist() == [[3, 3], [3, 3], [1, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 1], [1, 0]]
    assert batch["token_type_ids"].tolist() == [[1, 1], [1, 1], [1, 0]]
    assert batch["labels"].tolist() == [0, IGNORE, 0]
    assert batch["valid"].tolist() == [True, False, True]
    assert batch["index"].tolist() == [2, -1, 0]
    wanted = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "labels", "index"), torch.int64) | {
        "valid": torch.bool
    }
    assert {name: tensor.dtype for name, tensor in batch.items()} == wanted


def test_language_batch_by_hand():
    batch = collate(Store([1, 2], task="causal_lm"), [0, 1, -1], pad_id=1)  # a real token may be the padding's
    assert batch["input_ids"].tolist() == [[1, 1], [2, 2], [2, 2]]
    assert batch["labels"].tolist() == [[1, IGNORE], [2, 2], [IGNORE, IGNORE]]
    assert "token_type_ids" not in batch


def test_batch_of_filler_alone():
    batch = collate(Store([2, 1]), [-1], pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 1]]
    assert not batch["valid"].any()


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 12))
def test_global_batch_does_not_depend_on_ranks_or_accumulation(n, batch_size, world, accumulation, start):
    store = Store(np.random.default_rng(n).integers(1, 9, n))
    whole = seen(module(store, batch_size=batch_size, total_steps=12).train_dataloader())
    loaders = [
        module(
            store,
            batch_size=batch_size,
            total_steps=12,
            start_step=start,
            accumulation=accumulation,
            rank=rank,
            world=world,
        ).train_dataloader()
        for rank in range(world)
    ]
    items = [list(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [12 - start] * world == [len(item) for item in items]
    for step, shares in enumerate(zip(*items, strict=True), start=start):
        assert sorted(i for share in shares for i in seen([share])[0]) == sorted(whole[step])
        assert len({len(micro["index"]) for share in shares for micro in share}) == 1


@pytest.mark.parametrize("n", [1, 3, 4, 10])
def test_epochs_see_every_sample_once(n):
    data = module(Store([2] * n), batch_size=4, total_steps=100)
    steps = data.steps_per_epoch
    assert steps == -(-n // 4)
    items = seen(data.train_dataloader())
    for epoch in range(3):
        assert sorted(i for item in items[epoch * steps : (epoch + 1) * steps] for i in item) == list(range(n))


def test_finished_phase_has_no_steps():
    assert len(list(module(Store([1, 2]), start_step=6).train_dataloader())) == 0


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 7))
def test_evaluation_sees_every_row_once(n, world, size):
    store = Store(np.random.default_rng(n).integers(1, 9, n))
    ranks = [
        list(module(store, rank=r, world=world, eval_batch_size=size).evaluation_batches("test")) for r in range(world)
    ]
    assert len({tuple(len(batch["index"]) for batch in batches) for batches in ranks}) == 1
    rows = [i for batches in ranks for batch in batches for i in batch["index"][batch["valid"]].tolist()]
    assert sorted(rows) == list(range(n))


def test_evaluation_starts_with_the_longest_and_skips_an_absent_split():
    data = module(Store([1, 5, 3]), eval_batch_size=1)
    assert [batch["input_ids"].shape[1] for batch in data.evaluation_batches("test")] == [5, 3, 1]
    assert list(data.evaluation_batches("validation")) == []


def test_lightning_takes_the_loader():
    import lightning

    class Count(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.items = []

        def training_step(self, item, number):
            self.items.append(item)
            return self.weight * 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    model, options = Count(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_steps=5, max_epochs=1, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(model, datamodule=module(Store([1, 2, 3]), total_steps=5, batch_size=2, accumulation=2))
    assert [len(item) for item in model.items] == [2] * 5


def test_a_step_is_cheap():
    store = Store(np.full(10_000, 48))
    loader = module(store, batch_size=16, total_steps=400).train_dataloader()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for _ in loader:
            pass
        best = min(best, (time.perf_counter() - start) / len(loader))
    assert best < 3e-4 * 3  # 0.3 ms on a quiet machine; a busy one gets three times that
