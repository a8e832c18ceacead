"""From a Training to an engine, and the adapter through which Lightning's Trainer drives it."""

import logging
import signal
import threading
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy

from distill_system import distributed
from distill_system.settings import ZERO_STRATEGIES, Training
from distill_system.training.engine import Engine, PlainEngine
from distill_system.training.objective import Objective

DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_of(training: Training, device: torch.device) -> tuple[str, torch.dtype] | None:
    """Mixed precision for models whose weights are fp32; under ZeRO, DeepSpeed keeps 16-bit weights and fp32 masters instead."""
    if training.precision == "fp32" or training.strategy in ZERO_STRATEGIES:
        return None
    return device.type, DTYPE[training.precision]


def make_engine(objective: Objective, training: Training, device: torch.device) -> Engine:
    if training.strategy in ZERO_STRATEGIES:
        from distill_system.training.zero import ZeroEngine

        return ZeroEngine(objective, training, device)
    return PlainEngine(objective, training, device)


class EngineStrategy(SingleDeviceStrategy):
    """Lightning sees one device and one module; what lies across ranks is the engine's business.

    Lightning's own DDP and DeepSpeed strategies wrap the whole LightningModule, and its manual optimization then runs the backward *inside* the wrapped
    forward. Here the engine wraps the objective alone, and forward, backward and step follow each other as DeepSpeed expects.
    """

    def setup(self, trainer: L.Trainer) -> None:
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module.training_step(*args, **kwargs)

    @property
    def is_global_zero(self) -> bool:
        return distributed.is_main()

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        distributed.barrier()

    def teardown(self) -> None:
        """Leaves the engine where it is: evaluation and export come after `fit`."""


class OwnSignals(L.Callback):
    """Puts our handler of SIGTERM back, which asks all ranks to save at the next step; Lightning's would end this one with an exception."""

    def __init__(self) -> None:
        self.before: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.before)


def make_trainer(device: torch.device) -> L.Trainer:
    """A Trainer that only loops: bars, logs, checkpoints and validation are ours, done every n steps and not in hooks of every step."""
    logging.getLogger("lightning.pytorch").setLevel(
        logging.ERROR
    )  # its tips and its list of devices, once per phase, would hide our own words
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index] if device.type == "cuda" else 1,
        strategy=EngineStrategy(device=device),
        plugins=[LightningEnvironment()],  # ranks are started by our launcher, torchrun or srun: nothing to detect
        callbacks=[OwnSignals()],
        max_epochs=1,  # one pass over our own loader, which goes through the data as often as the phase wants
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )
