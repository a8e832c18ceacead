"""`distill`: composes a config, checks it, and starts what it describes. Heavy libraries are imported only by the command that needs them."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

HELP = """distill: compress transformer models by distillation, on one machine or a cluster.

Usage: distill COMMAND [experiment=NAME] [key=value ...]

  run [-m] experiment=NAME [key=value ...]   run or continue a graph of phases; -m: every combination of a=1,2,4
  evaluate PATH data=NAME [key=value ...]    quality, speed and size of a saved model (teacher=PATH compares)
  export RUN/PHASE format=NAME [out=FOLDER]  a finished model as dense, sparse (compressed) or onnx
  report RUN                                 write the report of a run folder anew
  doctor [experiment=NAME ...]               check this machine; with a config, also the run, without training
  show [experiment=NAME ...]                 print the composed config

Options: --config-dir FOLDER adds your own config groups; --help; --version.

  distill run experiment=demo_quick
  distill run experiment=demo training=zero2 training.devices=2
  distill run experiment=demo phases.student.losses.soft.temperature=4
  distill run experiment=demo losses@phases.student.losses.soft=logit_regression
  distill run -m experiment=demo_quick phases.student.losses.soft.temperature=1,2,4

Experiments: {experiments}

Exit status: 0 done, 2 config or input refused, 3 a gate failed, 143 stopped with a checkpoint, 1 anything else.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("help", "--help", "-h") or (words[0] in COMMANDS and {"--help", "-h"} & set(words)):
        from distill_system.config.compose import choices

        print(HELP.format(experiments=", ".join(choices("experiment"))))
        return 0
    if words[0] == "--version":
        from distill_system import __version__

        print(f"distill_system {__version__}")
        return 0
    from distill_system.errors import Refusal, nearest
    from distill_system.scheduling.failure import REFUSED, describe, leave, refusal_text

    if words[0] not in COMMANDS:
        print(
            f"distill: there is no command '{words[0]}'{nearest(words[0], [c for c in COMMANDS if c[0] != '_'])}",
            file=sys.stderr,
        )
        return REFUSED
    try:
        return COMMANDS[words[0]](words[1:])
    except Refusal as refusal:
        print(refusal_text(refusal), file=sys.stderr)
        return REFUSED
    except OSError as error:
        failure = describe(error)
        if failure.kind != "disk":
            raise
        leave(failure)
        return failure.status
    except KeyboardInterrupt:  # where ranks were at work, the launcher has told already
        return 1


def run(words: list[str]) -> int:
    from distill_system.scheduling.run import run_or_sweep

    options, overrides = split_options(words, flags=("-m", "--multirun"))
    sweep = "-m" in options or "--multirun" in options
    return run_or_sweep(overrides, config_dir=options.get("--config-dir"), sweep=sweep, command=command_line(words))


def rank(words: list[str]) -> int:
    """What one rank does; started by `run`, not by a person."""
    from distill_system.scheduling.rank import main as rank_main

    return rank_main(Path(words[0]))


def evaluate(words: list[str]) -> int:
    from distill_system.commands.evaluate import main as evaluate_main

    options, rest = split_options(words)
    return evaluate_main(rest, config_dir=options.get("--config-dir"))


def export(words: list[str]) -> int:
    from distill_system.commands.export import main as export_main

    return export_main(words)


def report(words: list[str]) -> int:
    from distill_system.errors import refuse
    from distill_system.tracking.report import write_report

    if not words:
        raise refuse("RUN", "is not given: distill report runs/NAME")
    for word in words:
        if not (Path(word) / "manifest.json").is_file():
            raise refuse("RUN", f"is '{word}', which is no run folder (it has no manifest.json)")
        print(write_report(Path(word)))
    return 0


def doctor(words: list[str]) -> int:
    from distill_system.commands.doctor import main as doctor_main

    options, overrides = split_options(words)
    return doctor_main(overrides, config_dir=options.get("--config-dir"))


def show(words: list[str]) -> int:
    import yaml

    from distill_system.scheduling.run import composed

    options, overrides = split_options(words)
    config, problems = composed(overrides, options.get("--config-dir"))
    print(yaml.safe_dump(config, sort_keys=False), end="")
    for problem in problems:
        print(f"# {problem}", file=sys.stderr)
    return 2 if problems else 0


def split_options(words: Sequence[str], flags: Sequence[str] = ()) -> tuple[dict[str, str], list[str]]:
    """Options (`--config-dir X` or `--config-dir=X`, and flags) apart from overrides."""
    from distill_system.errors import nearest, refuse

    options: dict[str, str] = {}
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if word in flags:
            options[word] = ""
        elif name in ("--config-dir", "-cd"):
            if not equals and not queue:
                raise refuse(name, "needs a folder")
            options["--config-dir"] = value if equals else queue.pop(0)
        elif word.startswith("-"):
            raise refuse(word, f"is no option here{nearest(word, ['--config-dir', '--help', *flags])}")
        else:
            rest.append(word)
    return options, rest


def command_line(words: Sequence[str]) -> str:
    import shlex

    return shlex.join(["distill", "run", *words])


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": run,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "doctor": doctor,
    "show": show,
    "_rank": rank,
}

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ended = main()
    if "RANK" in os.environ:
        from distill_system.scheduling.rank import leave_process

        leave_process(ended)
    sys.exit(ended)
