"""The adapter to Lightning: SIGTERM stays ours while it loops."""

import os
import signal

import lightning as L
import torch
from torch.utils.data import DataLoader

from distill_system.training.strategy import OwnSignals


class Stopper(L.LightningModule):
    """Gets SIGTERM in its second step, and counts its steps."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.steps = 0

    def training_step(self, batch, number):
        self.steps += 1
        if self.steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.layer(batch[:, None]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_sigterm_reaches_our_handler_and_ends_no_step():
    asked = []
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    try:
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[OwnSignals()],
        )  # fmt: skip
        module = Stopper()
        trainer.fit(module, DataLoader(torch.ones(5), batch_size=1))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == [True]
    assert module.steps == 5
