"""Walks the graph of phases on every rank: skips what is finished, trains what isn't, checks gates, and keeps the manifest."""

import signal
import time
from pathlib import Path
from typing import Any

from distill_system import distributed
from distill_system.config.graph import references
from distill_system.config.instantiate import instantiate, training_of
from distill_system.config.plan import settings_of
from distill_system.config.recipes import data_node
from distill_system.files import read_json, remove_leftovers
from distill_system.manifest import Manifest, identity, now
from distill_system.phases.context import Context, Member, Result
from distill_system.settings import Gate, Teacher
from distill_system.tracking.journal import Journal
from distill_system.tracking.progress import Progress, say, summary_table
from distill_system.tracking.report import write_report
from distill_system.verdict import first_failed_gate, judge

DONE, GATED, PREEMPTED = 0, 3, 143


class Signals:
    """SIGTERM and SIGUSR1 set a flag; what is under way ends at the next step boundary, where all ranks save together."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: Any) -> None:
        self.asked = True

    def agreed(self) -> bool:
        """Whether any rank was asked, known to all."""
        return any(distributed.everyone(self.asked))


def run(folder: Path, config: dict[str, Any]) -> int:
    """Runs or continues a run on this rank; returns the exit status, the same on every rank.

    Args:
        folder: the run folder; it holds config.yaml already.
        config: the resolved and checked config.
    """
    stop = Signals()
    first = training_of(config, next(iter(config["phases"])))
    device = distributed.device_of(first.accelerator)
    distributed.start(device, threads=first.threads or _threads())
    manifest = Manifest.read(folder, config["run"]["name"])
    scribe = Scribe(folder, config)
    status = DONE
    for name in config["phases"]:
        if not manifest.finished(name):
            if stop.agreed():
                status = PREEMPTED
                break
            result = run_phase(name, config, manifest, scribe, device, stop)
            if result.artifact is None:
                status = PREEMPTED
                break
        if first_failed_gate(config, manifest):
            status = GATED
            break
    if distributed.is_main():
        finish(folder, config, manifest, scribe, status)
    distributed.barrier()
    return status


def run_phase(
    name: str, config: dict[str, Any], manifest: Manifest, scribe: "Scribe", device: Any, stop: Signals
) -> Result:
    """One phase from its inputs to its record in the manifest."""
    phase_config = config["phases"][name]
    settings = settings_of(config, name)
    inputs = input_digests(phase_config, manifest)
    training = training_of(config, name)
    before = manifest.phases.get(name, {})
    record = {
        "state": "running",
        "kind": phase_config["kind"],
        "settings": settings,
        "inputs": inputs,
        "started": before.get("started") or now(),
    }
    if distributed.is_main():
        remove_leftovers(manifest.folder)
        remove_leftovers(manifest.folder / name)
        manifest.update(name, **record)
    context = Context(
        run_folder=manifest.folder,
        run_name=manifest.run,
        name=name,
        identity=identity(settings, inputs),
        source=instantiate(data_node(config, name)),
        training=training,
        seed=config["seed"],
        device=device,
        artifacts=manifest.models(),
        write=scribe.write,
        rewind=lambda step, title=name: scribe.rewind(title, step),
        announce=lambda steps, title=name: scribe.open(title, steps, settings),
        end=lambda title, step, metrics, warnings: scribe.end(title, step, metrics, warnings, "finished"),
        stop_asked=lambda: stop.asked,
        seed_as=phase_config.get("seed_as"),
        inputs=inputs,
        tell=lambda sentence: say(sentence) if distributed.is_main() else None,
    )
    began = time.time()
    phase = instantiate(phase_config)
    try:
        result = phase.run(context)
    except BaseException:
        if distributed.is_main():
            scribe.close_progress()
            manifest.update(name, state="failed")
        raise
    if result.artifact is not None:
        record_end(name, Gate(**(phase_config.get("gate") or {})), manifest, scribe, context, result, began)
    elif distributed.is_main():
        scribe.close_progress()
        manifest.update(name, seconds_before=round(before.get("seconds_before", 0) + time.time() - began, 1))
    distributed.barrier()
    if not distributed.is_main():
        manifest.phases = Manifest.read(manifest.folder, manifest.run).phases
    return result


def record_end(
    name: str, gate: Gate, manifest: Manifest, scribe: "Scribe", context: Context, result: Result, began: float
) -> None:
    if not distributed.is_main():
        return
    assert result.artifact is not None
    progress, metrics = result.outcome.progress, result.evaluation["metrics"]
    verdict = judge(gate, metrics)
    state = "gated" if verdict and not verdict["passed"] else "finished"
    cost = {
        "seconds": round(progress.seconds, 1),
        "samples": progress.samples,
        "tokens": progress.tokens,
        "ranks": distributed.world(),
    }
    manifest.update(
        name,
        state=state,
        digest=result.artifact.digest,
        metrics=metrics,
        **result.evaluation["size"],
        seconds=round(manifest.phases[name].get("seconds_before", 0) + time.time() - began, 1),
        finished=now(),
        steps=progress.step,
        bad_steps=progress.bad_steps,
        resumes=progress.resumes,
        warnings=list(dict.fromkeys(context.warnings)),
        notes=list(dict.fromkeys(context.notes)),
        **result.extra,
        **({"members": {role: in_short(member) for role, member in result.members.items()}} if result.members else {}),
        gate=verdict,
        cost=cost,
    )
    scribe.end(name, progress.step, metrics, context.warnings, state)


def in_short(member: Member) -> dict[str, Any]:
    """A member as the manifest has it."""
    evaluation = member.evaluation
    return {"digest": member.artifact.digest, "metrics": evaluation["metrics"], **evaluation["size"]}


def input_digests(phase: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """What a phase takes from elsewhere: artifacts by digest, models by name."""
    inputs = {key: {"phase": other, "digest": manifest.digest(other)} for key, other in references(phase).items()}
    for name, values in (phase.get("teachers") or {}).items():
        if Teacher(**values).model:
            inputs[f"teachers.{name}.model"] = {"model": values["model"]}
    return inputs


def finish(folder: Path, config: dict[str, Any], manifest: Manifest, scribe: "Scribe", status: int) -> None:
    """The report, the table, and a sentence where the run didn't reach its end."""
    report = write_report(folder)
    scribe.tracking.attach_report(report)
    latency = {
        name: read_json(folder / name / "evaluation.json")["latency"]
        for name in manifest.phases
        if manifest.finished(name)
    }
    summary_table(read_json(folder / "manifest.json"), report, latency)
    if status == GATED:
        say(first_failed_gate(config, manifest) or "")
    if status == PREEMPTED:
        say("Stopped as asked, with a checkpoint; the same command goes on from there.")


class Scribe:
    """Rank 0's pen: the journal, W&B fed from it, and the progress bar. On other ranks it writes nothing."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.run_name = folder, config["run"]["name"]
        self.journal = Journal(folder / "metrics.jsonl")
        self.tracking: Any = instantiate(config["tracking"]) if distributed.is_main() else None
        self.progress: Progress | None = None

    def open(self, phase: str, total_steps: int, settings: dict[str, Any]) -> None:
        self.progress = Progress(phase, total_steps)
        self.tracking.start_phase(self.folder, self.run_name, phase, settings)

    def write(self, lines: list[dict[str, Any]]) -> None:
        self.journal.append(lines)
        self.tracking.feed(lines)
        if self.progress:
            self.progress.update(lines[-1]["step"], lines[-1])

    def rewind(self, phase: str, step: int) -> None:
        self.journal.rewind(phase, step)

    def end(self, phase: str, step: int, metrics: dict[str, Any], warnings: list[str], state: str) -> None:
        self.write([{"phase": phase, "step": step, "time": time.time(), "event": "finish"}])
        self.close_progress()
        self.tracking.finish_phase(metrics, warnings, state)

    def close_progress(self) -> None:
        if self.progress:
            self.progress.close()
            self.progress = None


def _threads() -> int:
    from distill_system.hardware import usable_cores

    return max(1, usable_cores() // distributed.world())
