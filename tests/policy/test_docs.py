"""What README and docs say about settings is what the code has, and each command they show composes."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from distill_system.config.check import check
from distill_system.config.compose import compose
from distill_system.settings import (
    BornAgain,
    Cohort,
    Embeddings,
    Ensemble,
    Inputs,
    LabelNoise,
    Mixing,
    Pruning,
    Run,
    Schedule,
    Teacher,
    Training,
)
from tests.policy import text

ROOT = Path(__file__).parents[2]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def rows(section: str) -> dict[str, str]:
    """First and second column of the table below a heading of docs/configuration.md."""
    body = CONFIGURATION.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([\w.]*\w)` \| `?([^|`]*)", body, re.MULTILINE))


def shown(value: object) -> str:
    return json.dumps(value).strip('"')


def test_training_table_has_every_field_with_its_default():
    assert rows("Training") == {field.name: shown(field.default) for field in dataclasses.fields(Training)}


def test_run_table_has_every_field():
    table = rows("The run")
    assert set(table) == {f"run.{field.name}" for field in dataclasses.fields(Run)} | {"seed"}
    assert table["run.shutdown_timeout_s"] == shown(Run.shutdown_timeout_s)
    assert table["run.overwrite"] == shown(Run.overwrite)


def test_teacher_table_has_every_field():
    assert set(rows("Teachers")) == {field.name for field in dataclasses.fields(Teacher)}


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("Schedules", Schedule),
        ("Several teachers", Ensemble),
        ("Cohorts", Cohort),
        ("Born-again generations", BornAgain),
        ("Label noise", LabelNoise),
        ("Pruning schedules", Pruning),
        ("Quantized embeddings", Embeddings),
        ("Quantized inputs", Inputs),
        ("Mixing", Mixing),
    ],
)
def test_table_has_every_field_with_its_default(section, settings):
    known = {field.name: field.default for field in dataclasses.fields(settings)}
    wanted = {name: "must be given " if value is dataclasses.MISSING else shown(value) for name, value in known.items()}
    assert rows(section) == wanted


def test_phases_table_has_every_key_and_its_kinds():
    kinds: dict[str, list[str]] = {}
    files = sorted((ROOT / "conf" / "phases").glob("*.yaml"))
    for path in files:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
        # A part that another file fills: `/pruning@pruner: neurons`, `/losses@losses.hard: hard_label`.
        filled = {next(iter(entry)).partition("@")[2].partition(".")[0] for entry in node["defaults"]}
        for key in {"losses", *filled, *node} - {"defaults", "_target_"}:
            kinds.setdefault(key, []).append(path.stem)
    found = {key: words.split() for key, words in rows("Phases").items()}
    every = [path.stem for path in files]
    assert {key: sorted(every if words == ["all"] else words) for key, words in found.items()} == kinds


def test_losses_table_has_every_loss():
    assert set(rows("Losses")) == {path.stem for path in (ROOT / "conf" / "losses").glob("*.yaml")}


def run_commands() -> list[str]:
    """Overrides of each `distill run` that documents show, without those that need a folder of the reader's."""
    found = []
    for _, document in text.documents(ROOT):
        for words in text.distill_commands(document):
            if words[1] == "run" and "--config-dir" not in words and any("experiment=" in word for word in words):
                found.append(" ".join(words[2:]))
    return sorted(
        {command for command in found if not re.search(r"=[A-Z]+\b|\.\.\.|experiment=(mine|taught)", command)}
    )


@pytest.mark.parametrize("command", run_commands(), ids=str)
def test_run_command_composes(command):
    """Each override is one that Hydra accepts, and a sweep's values too; what the checks say about files is not asked here."""
    overrides = [word for word in command.split() if word not in ("-m", "--multirun")]
    first = [re.sub(r"=([^\[\]{}]*?),.*", r"=\1", word) for word in overrides]
    assert compose(first).problems == []


EXAMPLES = [
    example
    for _, document in text.documents(ROOT)
    for example in re.findall(r"^```yaml\n(# @package _global_.*?)^```", document, re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_experiment_is_accepted(example, tmp_path, monkeypatch):
    """The experiments that documents print, in a folder of the reader's own, on a table of the reader's own."""
    name = re.search(r"distill run experiment=(\w+)", example)[1]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / f"{name}.yaml").write_text(example)
    table = tmp_path / "tickets.csv"
    table.write_text("text,label\n" + "".join(f"ticket {i},{('red', 'blue')[i % 2]}\n" for i in range(200)))
    monkeypatch.delenv("HF_HUB_OFFLINE")  # the example names a model of the hub; the checks never fetch it
    composition = compose([f"experiment={name}", f"run.name={name}", f"data.path={table}"], config_dir=str(tmp_path))
    assert composition.problems == []
    assert check(composition.config) == []
    assert "student" in composition.config["phases"]


def test_readme_shows_ten_commands():
    assert len(run_commands()) >= 10
