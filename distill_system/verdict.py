"""Whether a phase's metrics keep its gate's bound."""

from typing import Any

from distill_system.manifest import Manifest
from distill_system.settings import Gate


def judge(gate: Gate, metrics: dict[str, float]) -> dict[str, Any] | None:
    """The gate with the value it was held against; None where there is no gate. A figure that is missing passes nothing."""
    if gate.metric is None:
        return None
    value = metrics.get(gate.metric)
    passed = (
        value is not None
        and (gate.at_least is None or value >= gate.at_least)
        and (gate.at_most is None or value <= gate.at_most)
    )
    return {"metric": gate.metric, "at_least": gate.at_least, "at_most": gate.at_most, "value": value, "passed": passed}


def judge_anew(config: dict[str, Any], manifest: Manifest) -> bool:
    """Brings the record of finished phases in line with the gates of now; answers whether anything changed. Writes nothing."""
    changed = False
    for name, phase in config["phases"].items():
        if not manifest.finished(name):
            continue
        record = manifest.phases[name]
        verdict = judge(Gate(**(phase.get("gate") or {})), record.get("metrics") or {})
        state = "gated" if verdict and not verdict["passed"] else "finished"
        changed |= (record.get("gate"), record["state"]) != (verdict, state)
        record.update(gate=verdict, state=state)
    return changed


def first_failed_gate(config: dict[str, Any], manifest: Manifest) -> str | None:
    """A sentence on the first finished phase whose gate, as the config has it now, is not kept."""
    for name, phase in config["phases"].items():
        verdict = judge(Gate(**(phase.get("gate") or {})), manifest.phases.get(name, {}).get("metrics") or {})
        if manifest.finished(name) and verdict and not verdict["passed"]:
            bound = " and ".join(f"{key} {verdict[key]}" for key in ("at_least", "at_most") if verdict[key] is not None)
            return f"The run ends here: phase {name} has {verdict['metric']} {verdict['value']}, its gate asks for {bound} (phases.{name}.gate)."
    return None
