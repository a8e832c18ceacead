"""What the ranks of test_recurrent.py do: a recurrent student and a recurrent teacher, under every strategy, with texts of other lengths on each rank."""

from pathlib import Path
from typing import Any

import torch

from distill_system import distributed
from distill_system.models.from_config import FromConfig
from tests.distributed.strategies import Work, write_data

WIDE = 160  # 4 x 160 x 160 weights: DeepSpeed keeps matrices of up to 100,000 whole on every rank


def main(folder: Path) -> dict[str, Any]:
    work = Work(folder)
    work.recipe = FromConfig(
        architecture="lstm", tokenizer="bytes", dropout=0.0, frozen=["*embeddings*"], hidden_size=WIDE, embedding_size=9
    )
    if distributed.is_main():
        write_data(folder)
        recipe = FromConfig("lstm", tokenizer="bytes", dropout=0.0, hidden_size=7, num_hidden_layers=2, pooling="last")
        teacher, tokenizer = recipe.build(task="classification", label_names=["blue", "green", "red"], seed=5)
        with torch.no_grad():
            teacher.classifier.weight *= 20
        teacher.save_pretrained(folder / "teacher")
        tokenizer.save_pretrained(folder / "teacher")
    distributed.barrier()
    found = {strategy: work.train(strategy, strategy=strategy, max_steps=4) for strategy in ("ddp", "zero1", "zero2")}
    return found | {"zero3": work.train("zero3", strategy="zero3", placement="zero3", max_steps=4)}
