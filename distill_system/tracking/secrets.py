"""Keeps keys and passwords out of what is shown or sent: settings are masked by the name of their key and by what their value looks like."""

import os
import re
from typing import Any

MASK = "*****"
SECRET_WORDS = frozenset(
    {
        "key",
        "keys",
        "apikey",
        "token",
        "secret",
        "secrets",
        "password",
        "passwd",
        "passphrase",
        "credential",
        "credentials",
        "auth",
    }
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LOGIN_IN_ADDRESS = re.compile(r"(\w+://)[^/\s@]+@")
_ASSIGNMENT = re.compile(r"([\w.+~@/-]+)=('[^']*'|\"[^\"]*\"|\S+)")


def is_secret(name: str) -> bool:
    """Whether a setting's name speaks of a secret: `api_key`, `hubToken`; not `tokenizer`, `tokens_per_s` or `monkey`."""
    return not SECRET_WORDS.isdisjoint(word.lower() for word in _WORDS.findall(name))


def _known_secrets() -> list[str]:
    """Values of this process's environment variables that are secrets by name; they may stand in any setting by interpolation."""
    return sorted((v for k, v in os.environ.items() if len(v) >= 8 and is_secret(k)), key=len, reverse=True)


def mask_text(text: str) -> str:
    """`text` without logins in addresses (`https://user:pass@host`) and without the values of secret environment variables."""
    text = _LOGIN_IN_ADDRESS.sub(rf"\1{MASK}@", text)
    for secret in _known_secrets():
        text = text.replace(secret, MASK)
    return text


def mask(value: Any, name: str = "") -> Any:
    """A copy of nested settings in which secrets are replaced by `*****`; the shape, the keys, null and switches stay."""
    if name and is_secret(name) and value is not None and not isinstance(value, bool):
        return MASK
    if isinstance(value, dict):
        return {key: mask(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask(item) for item in value]
    return mask_text(value) if isinstance(value, str) else value


def mask_command(command: str) -> str:
    """A command line with the values of secret overrides (`hub.token=...`) masked."""
    masked = _ASSIGNMENT.sub(lambda m: f"{m[1]}={MASK}" if is_secret(m[1].rpartition(".")[2]) else m[0], command)
    return mask_text(masked)
