"""Rules about texts (README, docs, scripts, anything), each a function of a root folder that returns one sentence per violation."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Written in pieces, so that this file doesn't break its own rule.
FORBIDDEN = {
    "a path of one machine": ["/" + "work/", "/" + "root/", "/" + "opt/pypi"],
    "a registry's host": ["pypi" + ".org", "python" + "hosted.org", "npm" + "js", "debian" + ".org"],
}
SKIPPED = {
    ".git",
    ".venv",
    "__pycache__",
    "runs",
    "outputs",
    "site",
    "build",
    "dist",
    "wandb",
    "node_modules",
    "multirun",
}


def text_files(root: Path) -> Iterator[tuple[Path, str]]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            f for f in folders if f not in SKIPPED and not f.endswith((".egg-info", "_cache")) and f != ".hypothesis"
        )
        for name in sorted(names):
            path = Path(folder) / name
            try:
                yield path.relative_to(root), path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):  # a picture; a file that another process removed
                continue


def machine_names(root: Path) -> list[str]:
    return [
        f"{path}:{number}: names {what} ({word})"
        for path, text in text_files(root)
        for number, line in enumerate(text.splitlines(), 1)
        for what, words in FORBIDDEN.items()
        for word in words
        if word in line
    ]


def documents(root: Path) -> Iterator[tuple[Path, str]]:
    for path in [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]:
        if path.is_file():
            yield path.relative_to(root), path.read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """Shell commands of a Markdown text: the lines of its code blocks (joined over a trailing backslash), and inline code."""
    found = []
    fence = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    for language, block in fence.findall(text):
        if language in ("", "bash", "sh", "console", "shell", "text"):
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            found += [line.strip().removeprefix("$ ") for line in lines]
    found += re.findall(r"`([^`\n]+)`", fence.sub("", text))
    return [
        re.split(r"\s+#", command)[0].strip()
        for command in found
        if command.strip() and not command.strip().startswith("#")
    ]


def distill_commands(text: str) -> list[list[str]]:
    """The words of each `distill ...` command, from `distill` on."""
    found = []
    for command in commands(text):
        try:
            words = shlex.split(command)
        except ValueError:
            continue
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # VARIABLE=value in front
            words = words[1:]
        if words[:1] == ["distill"] and len(words) > 1:
            found.append(words)
    return found


def scripts_exist(root: Path) -> list[str]:
    found = []
    for path, text in documents(root):
        for command in commands(text):
            for script in re.findall(r"(?:^|\s)(?:bash |\./)?((?:launch|\.ci|slurm|benchmarks)/[\w./-]+)", command):
                if not (root / script).exists():
                    found.append(f"{path}: {script} doesn't exist ({command})")
    return found


def subcommands(help_text: str) -> set[str]:
    """Words of a help text that stand where a subcommand does: first on an indented line, or in braces, between bars or commas."""
    words = set(re.findall(r"^\s+(?:distill )?([a-z][a-z-]+)\b", help_text, re.MULTILINE))
    for group in re.findall(r"\{([a-z,| -]+)\}|((?:[a-z]+\|)+[a-z]+)", help_text):
        words |= set(re.split(r"[,| ]+", "".join(group)))
    return words


def cli_help(root: Path) -> str:
    script = "import sys; from distill_system.cli import main; sys.argv = ['distill', '--help']; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, env=environment, timeout=30
    ).stdout


def subcommands_exist(root: Path, help_text: str) -> list[str]:
    known = subcommands(help_text)
    found = []
    for path, text in documents(root):
        for words in distill_commands(text):
            if not words[1].startswith("-") and not re.fullmatch(r"[A-Z.\[\]…]+", words[1]) and words[1] not in known:
                found.append(f"{path}: `{shlex.join(words)}`: distill --help doesn't know {words[1]!r}")
    return found


def choices_exist(root: Path) -> list[str]:
    """Every `group=choice` in a command of the documents is a file of conf: `training=zero2`, `losses@phases.a.losses.b=soft_target`."""
    conf = root / "conf"
    groups = {path.name for path in conf.iterdir() if path.is_dir()} if conf.is_dir() else set()
    found = []
    for path, text in documents(root):
        for words in distill_commands(text) + [command.split() for command in commands(text) if "launch/" in command]:
            for word in () if "--config-dir" in words else words:  # a reader's own folder has choices of its own
                match = re.fullmatch(r"\+?([a-z_/]+)(?:@[\w.]+)?=([\w/,-]+)", word)
                if not match or match[1] not in groups:
                    continue
                for choice in match[2].split(","):
                    if not choice.isupper() and not (conf / match[1] / f"{choice}.yaml").is_file():
                        found.append(f"{path}: {word}: there is no conf/{match[1]}/{choice}.yaml")
    return found
