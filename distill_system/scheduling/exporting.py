"""The form that `export=...` asks of a run's last model: written beside it when all phases are finished, once."""

from pathlib import Path
from typing import Any

from distill_system.settings import Export


def export_last(folder: Path, config: dict[str, Any]) -> None:
    """Writes `<run>/<last phase>/<format>`, unless it is there."""
    form = Export(**config.get("export") or {}).format
    phase = folder / next(reversed(config["phases"]))
    if form is None or (phase / form).exists() or not (phase / "model").is_dir():
        return
    from distill_system.commands.export import main

    main([str(phase), f"format={form}"])
