"""Architectures whose code is in this package, beside those of transformers: known to its auto classes, and copied into the folders of their models."""

import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Own:
    """One architecture.

    Attributes:
        module: in this folder; it needs nothing but torch and transformers.
        config: its config's class.
        classes: its models' classes, by the auto class of transformers that builds them.
    """

    module: str
    config: str
    classes: dict[str, str]

    @property
    def source(self) -> Path:
        return Path(__file__).with_name(f"{self.module}.py")

    @property
    def copy(self) -> str:
        """Name of the source's copy in a model's folder."""
        return f"modeling_{self.module}.py"

    def auto_map(self) -> dict[str, str]:
        """What config.json says, so that `from_pretrained(folder, trust_remote_code=True)` finds the copy."""
        classes = {"AutoConfig": self.config} | self.classes
        return {auto: f"{Path(self.copy).stem}.{name}" for auto, name in classes.items()}


OWN = {"lstm": Own("lstm", "LstmConfig", {"AutoModelForSequenceClassification": "LstmForSequenceClassification"})}


@functools.cache
def register() -> None:
    """Makes the auto classes of transformers build what is ours."""
    import transformers

    for model_type, own in OWN.items():
        module = importlib.import_module(f"{__package__}.{own.module}")
        config = getattr(module, own.config)
        transformers.AutoConfig.register(model_type, config, exist_ok=True)
        for auto, name in own.classes.items():
            getattr(transformers, auto).register(config, getattr(module, name), exist_ok=True)


def class_named(name: str) -> Any:
    """A model's class of transformers, or of ours; None where there is none."""
    import transformers

    for own in OWN.values():
        if name in own.classes.values():
            return getattr(importlib.import_module(f"{__package__}.{own.module}"), name)
    return getattr(transformers, name, None) if name else None


def own_of(config: Any) -> Own | None:
    """Whose config it is; None where the architecture is one of transformers."""
    return OWN.get(getattr(config, "model_type", ""))
