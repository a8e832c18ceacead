"""What a ZeRO-3 teacher holds, moves and leaves behind on each rank.

    python -m benchmarks.teacher [--quick] [--ranks 2 4] [--json FILE]

A random BERT of 117 MB (--quick: 2 MB) lies in shard files of at most 20 MB; N processes on this machine load it as `placement=zero3` does and distil a small ZeRO-3
student from it. Figures of the busiest rank, N in their names:

resident_share_N  parameters of the teacher on a rank between any two steps, counted, as a share of all. Goal: <= 1/N + 1 %. Peer: replicated, 1.
resident_rss_N    the same by memory: what loading it added to the process, as a share of the weights' bytes. Peer: `from_pretrained`, measured in the same way.
loading_peak_N    highest memory while loading above that before, as a share of the weights' bytes. Goal: <= 1/N + 1 % + the largest shard file. Peer: `from_pretrained`.
forward_peak_N    elements of parameters that are whole at once within a forward, as a share of all; what remains is never gathered. Floor: the largest module's own.
gathers_N         most gathers of a single parameter in one forward, of this model and of a GPT-2 whose head is its embedding. Goal: exactly 1. The first forward after
                  loading is left out: DeepSpeed learns the order of the modules in it, and gathers an embedding that is the head as well a second time.
gathered_N        elements that were sent around in a forward, without padding, as a share of all. Goal: exactly 1 (M of a forward, against 3M of a trained model).
rss_growth_N      memory of the process at the last step (200) above that at step 20, as a share. Goal: <= 0.01.

Memory is VmRSS and VmHWM of /proc, "before" being a process that has loaded, run and dropped a tiny teacher, with every library in place. Not measured: GPUs,
bandwidth, the time of a step (gloo on one machine says little about a network).
"""

from benchmarks.common import arguments, figure, machine, one_thread, reset_peak, resident, write_figures

one_thread()

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_system import distributed

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
LABELS = ["no", "yes"]
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("bert", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}),
    "student": ("bert", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}),
    "quick": ("bert", {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}),
    "full": (
        "bert",
        {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048}
        | {"vocab_size": 8000},
    ),
    "tied": ("gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 2, "vocab_size": 2000}),
}
FIRST_READING = 20  # the step whose memory the last step's is compared with


def task_of(name: str) -> str:
    return "causal_lm" if name == "tied" else "classification"


def build(name: str) -> tuple[nn.Module, Any]:
    from distill_system.models.from_config import FromConfig

    architecture, sizes = ARCHITECTURES[name]
    recipe = FromConfig(architecture, tokenizer="bytes", dropout=0.0, max_position_embeddings=64, **sizes)
    return recipe.build(task=task_of(name), label_names=LABELS if task_of(name) == "classification" else None)


def write_teachers(folder: Path, names: list[str], shard_bytes: float) -> None:
    from distill_system.export.dense import save_model

    for name in names:
        save_model(folder / name, *build(name), max_shard_bytes=shard_bytes)


def batch(step: int, rows: int = 2, tokens: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids_BT = torch.randint(5, 200, (rows, tokens - step % 3), generator=generator)  # lengths differ, as in a run
    return {
        "input_ids": ids_BT,
        "attention_mask": torch.ones_like(ids_BT),
        "labels": torch.randint(0, 2, (rows,), generator=generator),
        "valid": torch.ones(rows, dtype=torch.bool),
        "index": torch.arange(rows),
    }


def load_sharded(folder: Path, task: str) -> Any:
    from distill_system.phases.teachers import make, read_config
    from distill_system.training import teachers

    return teachers.Teacher(teachers.sharded(folder, lambda: make(read_config(folder)[0], task), CPU), task=task)


def load_replicated(folder: Path, task: str) -> Any:
    from distill_system.phases.teachers import load
    from distill_system.training import teachers

    return teachers.Teacher(teachers.replicated(load(folder, task), CPU), task=task)


def touched(teacher: Any) -> Any:
    """Weights that `from_pretrained` maps into memory take none until they are used."""
    for parameter in teacher.module.parameters():
        parameter.sum()
    return teacher


def memory_of(load: Callable[[], Any]) -> tuple[Any, int, int]:
    """What `load` gives, the bytes it added to the process, and those it added at its highest."""
    gc.collect()
    before = resident()
    reset_peak()
    loaded = load()
    peak = resident("VmHWM") - before
    gc.collect()
    return loaded, resident() - before, peak


def is_whole(parameter: Any) -> bool:
    """Whether all of it is here (or on its way), and not this rank's share alone."""
    return parameter.ds_status.name != "NOT_AVAILABLE"


def held(model: nn.Module) -> int:
    """Elements of parameters on this rank, whole ones and shares."""
    return sum(p.ds_tensor.numel() + is_whole(p) * p.ds_numel for p in model.parameters())


class Gathers:
    """Counts, while in use, how often each parameter of a model is gathered, the elements that are sent around, and those whole at once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.times: Counter[int] = Counter()
        self.padded = self.sent = self.at_once = 0

    def __enter__(self) -> "Gathers":
        import deepspeed.comm as comm

        self._comm, self._gather = comm, comm.allgather_fn
        comm.allgather_fn = self._sent
        self._before = [(p, p.all_gather_coalesced) for p in self.model.parameters()]
        for parameter, gather in self._before:
            parameter.all_gather_coalesced = lambda params, gather=gather, **more: gather(self._count(params), **more)
        self._hooks = [module.register_forward_pre_hook(self._look) for module in self.model.modules()]
        return self

    def __exit__(self, *_: object) -> None:
        self._comm.allgather_fn = self._gather
        for parameter, gather in self._before:
            parameter.all_gather_coalesced = gather
        for hook in self._hooks:
            hook.remove()

    def _count(self, params: Any) -> list[Any]:
        params = list(params)
        self.times.update(id(p) for p in params)
        self.sent += sum(p.ds_numel for p in params)
        return params

    def _sent(self, output: Tensor, *rest: Any, **more: Any) -> Any:
        self.padded += output.numel()
        return self._gather(output, *rest, **more)

    def _look(self, *_: Any) -> None:
        self.at_once = max(self.at_once, sum(p.ds_numel for p in self.model.parameters() if is_whole(p)))


def count_gathers(teacher: Any, forwards: int = 4) -> dict[str, float]:
    """The worst of some forwards, without the very first, in which DeepSpeed learns the order of the modules."""
    teacher(batch(0))
    parameters = list(teacher.module.parameters())
    total = sum(p.ds_numel for p in parameters)
    found = {"gathers": 0.0, "never": 0.0, "gathered": 0.0, "padded": 0.0, "at_once": 0.0}
    for number in range(forwards):
        with Gathers(teacher.module) as gathers:
            teacher(batch(number))
        here = {"gathers": max(gathers.times.values()), "never": sum(not gathers.times[id(p)] for p in parameters)}
        here |= {"gathered": gathers.sent / total, "padded": gathers.padded / total, "at_once": gathers.at_once / total}
        found = {key: max(found[key], float(here[key])) for key in found}
    return found


class Steps:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Any:
        return ([batch(step)] for step in range(self.steps))


def train(teacher: Any, steps: int) -> dict[str, float]:
    """Distils a ZeRO-3 student; memory after the steps that count, and the most parameters of the teacher that were here between two steps."""
    from distill_system.losses.logits import SoftTarget
    from distill_system.losses.task import HardLabel
    from distill_system.settings import Training
    from distill_system.training.module import Distillation
    from distill_system.training.objective import Objective
    from distill_system.training.recorder import Recorder
    from distill_system.training.strategy import make_engine, make_trainer

    losses: dict[str, Any] = {"soft": SoftTarget(2.0), "hard": HardLabel()}
    training = Training(strategy="zero3")
    engine = make_engine(Objective(build("student")[0], losses, task="classification"), training, CPU)
    readings: dict[int, int] = {}
    most = 0

    def after(step: int, told: bool) -> bool:
        nonlocal most
        most = max(most, held(teacher.module))
        if step in (FIRST_READING, steps):
            readings[step] = resident()
        return told

    recorder = Recorder(
        phase="student",
        names=list(losses),
        log_every=10,
        flush_every=20,
        max_bad_steps=0,
        total_steps=steps,
        write=lambda lines: None,
    )
    module = Distillation(
        engine,
        teachers=lambda batch: {"main": teacher.signals(batch)},
        recorder=recorder,
        after_step=after,
        stop_asked=lambda: False,
        loader=Steps(steps),
        first_step=0,
        total_steps=steps,
        schedule={"lr": 1e-4, "schedule": "constant", "warmup": 0.0},
        seed=0,
    )
    make_trainer(CPU).fit(module)
    return {"growth": readings[steps] / readings[FIRST_READING] - 1, "most": most, "rss": readings[steps]}


def work(folder: Path, name: str, steps: int) -> None:
    """What each rank does; rank 0 writes down the figures of the busiest."""
    warnings.filterwarnings("ignore")
    distributed.start(CPU, threads=1)
    tied = count_gathers(load_sharded(folder / "tied", "causal_lm"))
    for load in (load_sharded, load_replicated):  # every library is imported, every cache filled
        load(folder / "tiny", "classification")(batch(0))
    whole, rss_whole, peak_whole = memory_of(lambda: touched(load_replicated(folder / name, "classification")))
    size = sum(p.nbytes for p in whole.module.parameters())
    del whole
    teacher, rss, peak = memory_of(lambda: load_sharded(folder / name, "classification"))
    share, total = teacher.resident()
    assert share == held(teacher.module)
    own = count_gathers(teacher)
    began = time.monotonic()
    trained = train(teacher, steps)
    mine = {
        "resident": max(share, trained["most"]) / total,
        "rss": rss / size,
        "peak": peak / size,
        "rss_whole": rss_whole / size,
        "peak_whole": peak_whole / size,
        "at_once": own["at_once"],
        "gathers": max(own["gathers"], tied["gathers"]),
        "never": max(own["never"], tied["never"]),
        "gathered": max(own["gathered"], tied["gathered"]),
        "padded": max(own["padded"], tied["padded"]),
        "growth": trained["growth"],
        "megabytes": trained["rss"] / 1e6,
        "largest_module": max(sum(p.ds_numel for p in m.parameters(recurse=False)) for m in teacher.module.modules())
        / total,
        "largest_file": max(file.stat().st_size for file in (folder / name).glob("*.safetensors")) / size,
        "step_s": (time.monotonic() - began) / steps,
    }
    ranks = distributed.everyone(mine)
    if distributed.is_main():
        (folder / "result.json").write_text(json.dumps({key: max(r[key] for r in ranks) for key in mine}))
    distributed.barrier()
    distributed.stop()


def on_ranks(world: int, folder: Path, name: str, steps: int) -> dict[str, float]:
    address = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(distributed.free_port())}
    # Without the threshold, the allocator keeps holes of freed tensors, and memory tells nothing about what is held.
    environment = (
        os.environ | address | {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    )
    command = [
        sys.executable,
        "-c",
        f"from benchmarks.teacher import *; work(Path({str(folder)!r}), {name!r}, {steps})",
    ]
    ranks = []
    for rank in range(world):
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=sys.stderr))
    try:
        while any(rank.poll() is None for rank in ranks):
            if any(rank.poll() for rank in ranks):
                break
            time.sleep(0.2)
    finally:
        for process in ranks:
            process.kill()
    if any(process.wait() for process in ranks):
        raise SystemExit("a rank failed; its traceback stands above")
    return json.loads((folder / "result.json").read_text())


def figures_of(world: int, found: dict[str, float]) -> dict[str, dict[str, Any]]:
    least = 1 / world
    print(
        f"{world} ranks: the largest shard file is {found['largest_file']:.3f} of the weights, so loading may take {least + 0.01 + found['largest_file']:.3f};"
        f" parameters never gathered {found['never']:.0f}; with padding {found['padded']:.5f} is sent; {found['megabytes']:.0f} MB a process;"
        f" {found['step_s']:.2f} s a step"
    )
    named = {
        "resident_share": figure(found["resident"], 1.0, least, "of the parameters"),
        "resident_rss": figure(found["rss"], found["rss_whole"], least, "of the weights' bytes"),
        "loading_peak": figure(found["peak"], found["peak_whole"], least, "of the weights' bytes"),
        "forward_peak": figure(found["at_once"], 1.0, found["largest_module"], "of the parameters"),
        "gathers": figure(found["gathers"], None, 1.0, "a parameter and forward"),
        "gathered": figure(found["gathered"], None, 1.0, "models a forward"),
        "rss_growth": figure(found["growth"], None, 0.0, "of the process"),
    }
    return {f"{name}_{world}": entry for name, entry in named.items()}


def main(argv: list[str] | None = None) -> None:
    chosen = arguments(__doc__, argv, ranks={"nargs": "+", "type": int, "default": [2], "metavar": "N"})
    warnings.filterwarnings("ignore")
    name, steps, shard_bytes = ("quick", 30, 4e5) if chosen.quick else ("full", 200, 20e6)
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_teachers(Path(folder), ["tiny", "tied", name], shard_bytes)
        for world in chosen.ranks:
            figures |= figures_of(world, on_ranks(world, Path(folder), name, steps))
    print(machine())
    write_figures(chosen.json, figures)


if __name__ == "__main__":
    main()
