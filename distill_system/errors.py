"""What a user did wrong, in words: problems are gathered and refused together, before anything is started or written."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the config key it hangs on and a sentence with the value, the limit and the nearest fix."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class Refusal(ValueError):
    """Input or config that is refused (exit status 2). Carries every problem that was found, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"  {problem}" for problem in self.problems))


def refuse(key: str, message: str) -> Refusal:
    """A refusal with one problem: `raise refuse("data.path", "...")`."""
    return Refusal([Problem(key, message)])


def nearest(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'temperature'?)` for the choice most like `word`, else the choices, else an empty string."""
    known = sorted(str(choice) for choice in choices)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(known)})" if known else ""
