"""Generations of one size after another: what the mean of their probabilities says (Furlanello et al. 2018, https://arxiv.org/abs/1805.04770, section 3)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_system import distributed
from distill_system.evaluation.evaluate import finite, phase_evaluation
from distill_system.evaluation.predict import predict
from distill_system.evaluation.readers import saved_reader
from distill_system.files import write_json
from distill_system.phases.base import Batch, data_module, load_data
from distill_system.phases.context import Context
from distill_system.phases.finish import SPLITS
from distill_system.phases.teachers import load
from distill_system.signals import Signals
from distill_system.training.ensemble import together
from distill_system.training.strategy import autocast_of
from distill_system.training.teachers import Teacher, replicated


def ensemble_of(context: Context, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Metrics of saved models' mean probabilities, on the rows that phases are measured on; all ranks together. Written as ensemble.json."""
    autocast = autocast_of(context.training, context.device)
    models = {
        name: Teacher(replicated(load(folder, context.task), context.device), task=context.task, autocast=autocast)
        for name, folder in folders.items()
    }

    def forward(batch: Batch) -> Tensor:
        said = {name: Signals(model(batch)) for name, model in models.items()}
        logits = next(iter(said.values())).logits
        share = torch.full(logits.shape[:-1], 1 / len(said), device=logits.device)
        return together(said, dict.fromkeys(said, share), "probabilities", context.task)

    reader = saved_reader(next(iter(folders.values())), f"phases.{context.name}")
    stores = load_data(context, reader)
    split = next(name for name in SPLITS if name in stores)
    data = data_module(context, stores, reader, start_step=0, total_steps=0)
    predictions = predict(
        forward,
        data.evaluation_batches(split),
        context.task,
        context.device,
        modules=[model.module for model in models.values()],
        samples=len(stores[split]),
    )
    names, num_bytes_N = context.label_names or (), stores[split].num_bytes
    figures = finite(phase_evaluation(predictions, split=split, label_names=names, num_bytes_N=num_bytes_N))
    distributed.main_only(lambda: write_json(context.folder / "ensemble.json", figures))
    return dict(figures["metrics"])
