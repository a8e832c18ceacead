"""A run folder as the pipeline leaves it, without a step of training."""

from typing import Any

from distill_system.config.graph import references
from distill_system.config.plan import run_folder, settings_of
from distill_system.files import write_json
from distill_system.manifest import Manifest


def finish(config: dict[str, Any], phase: str, accuracy: float = 0.5) -> None:
    folder = run_folder(config)
    manifest = Manifest.read(folder, config["run"]["name"])
    (folder / phase / "model").mkdir(parents=True, exist_ok=True)
    write_json(folder / phase / "model" / "config.json", {})
    inputs = {
        key: {"phase": other, "digest": manifest.phases[other]["digest"]}
        for key, other in references(config["phases"][phase]).items()
    }
    manifest.update(
        phase,
        state="finished",
        kind=config["phases"][phase]["kind"],
        settings=settings_of(config, phase),
        inputs=inputs,
        digest=f"digest of {phase}",
        metrics={"accuracy": accuracy},
        gate=None,
    )
