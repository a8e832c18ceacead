"""`distill doctor`: is this machine fit for a run, and, given a config, is the run itself sound? Each line says ok, or what to change."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill_system.hardware import usable_cores, visible_gpus

PACKAGES = ("torch", "lightning", "deepspeed", "transformers", "hydra-core", "wandb")
ALL_REDUCE = """
import torch, torch.distributed as dist, time, sys
dist.init_process_group("gloo")
x = torch.ones(1 << 20) * (dist.get_rank() + 1)
dist.all_reduce(x)
assert x.eq(3).all(), x
began = time.perf_counter()
for _ in range(5):
    dist.all_reduce(x)
if dist.get_rank() == 0:
    print(f"{5 * 4 / (time.perf_counter() - began):.0f}")
dist.destroy_process_group()
"""


@dataclass
class Line:
    """One finding: `advice` says what to change, and is empty where all is well."""

    what: str
    finding: str
    advice: str = ""


def main(overrides: list[str], *, config_dir: str | None = None) -> int:
    """Prints the findings; status 1 when one asks for a change, 2 when the config itself is refused."""
    run_dir = Path("runs")
    config = None
    if overrides:
        from distill_system.errors import Refusal
        from distill_system.scheduling.run import composed

        config, problems = composed(overrides, config_dir)
        if problems:
            raise Refusal(problems)
        run_dir = Path(config["run"]["dir"])
    bad = tell(machine(run_dir))
    if config is not None:
        from distill_system.commands.examine import examine

        bad += tell(examine(config))
    print("\nAll is well." if not bad else f"\n{bad} finding{'s' if bad > 1 else ''} to look at.")
    return 1 if bad else 0


def tell(lines: Iterator[Line]) -> int:
    bad = 0
    for line in lines:
        print(
            f"{'ok  ' if not line.advice else 'LOOK'}  {line.what}: {line.finding}{f' -> {line.advice}' if line.advice else ''}",
            flush=True,
        )
        bad += bool(line.advice)
    return bad


def machine(run_dir: Path) -> Iterator[Line]:
    """Versions, devices, a real all-reduce between two processes, disk, W&B and Slurm."""
    yield Line("python", sys.version.split()[0], "" if sys.version_info >= (3, 10) else "needs Python 3.10 or newer")
    for package in PACKAGES:
        try:
            yield Line(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Line(package, "is missing", f"pip install {package}")
    gpus = visible_gpus()
    yield Line(
        "devices",
        f"{gpus} GPUs, {usable_cores()} cores"
        if gpus
        else f"no GPU, {usable_cores()} cores: runs use the CPU (training.accelerator=auto)",
    )
    yield all_reduce()
    yield disk(run_dir)
    from distill_system.tracking.wandb import has_key

    yield Line(
        "W&B",
        "has a key: runs are online"
        if has_key()
        else "has no key: runs are kept offline below the run folder (WANDB_API_KEY changes that)",
    )
    slurm = shutil.which("sbatch")
    yield Line("Slurm", "is here" if slurm else "isn't here: runs use this machine's processes")


def all_reduce() -> Line:
    """Two processes sum a tensor over loopback, as two ranks of a run would."""
    from distill_system.distributed import free_port

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "all_reduce.py"
        script.write_text(ALL_REDUCE)
        base = os.environ | {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
        }
        began = time.monotonic()
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script)],
                env=base | {"RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            told = [rank.communicate(timeout=60) for rank in ranks]
        except subprocess.TimeoutExpired:
            for rank in ranks:
                rank.kill()
            return Line(
                "all-reduce of two ranks",
                "gave no answer in 60 s",
                "is loopback blocked by a firewall, or GLOO_SOCKET_IFNAME set wrongly?",
            )
        if any(rank.returncode for rank in ranks):
            words = (told[0][1] or told[1][1]).strip().splitlines()[-1:]
            return Line("all-reduce of two ranks", "failed", " ".join(words))
        return Line(
            "all-reduce of two ranks",
            f"right sums, {told[0][0].strip()} MB/s, {time.monotonic() - began:.1f} s with the start",
        )


def disk(run_dir: Path) -> Line:
    folder = run_dir.expanduser().resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        return Line("disk", f"{folder} can't be written to", "choose another run.dir")
    return Line(
        "disk", f"{free:.0f} GB free for {run_dir}", "" if free > 2 else "free some space, or choose another run.dir"
    )
