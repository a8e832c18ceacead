"""Composing: swaps leave no keys of the old choice behind, a user's own groups and modules work, sweeps are spelled out."""

import pytest
import yaml

from distill_system import cli
from distill_system.config.check import check
from distill_system.config.compose import choices, compose, expand_sweep
from distill_system.errors import Refusal
from distill_system.scheduling.run import composed

QUICK = "experiment=demo_quick"


def test_each_experiment_composes_without_a_problem():
    for name in choices("experiment"):
        config, problems = composed([f"experiment={name}"], None)
        assert problems == []
        assert config["run"]["name"] == name


def test_the_grammar_of_the_command_line():
    config, problems = composed(
        [
            QUICK,
            "training=zero2",
            "training.devices=2",
            "training.max_steps=8",
            "phases.student.losses.soft.temperature=4",
            "+losses@phases.student.losses.more=logit_regression",
            "~phases.student.losses.hard",
            "phases.student.training.lr=0.5",
            "+phases@phases.again=distill",
            "+models@phases.again.model=from_layers",
            "phases.again.model.phase=student",
            "phases.again.model.num_layers=1",
            "phases.again.teachers.main.phase=student",
        ],
        None,
    )
    assert problems == []
    assert list(config["phases"]) == ["teacher", "student", "again"]
    assert config["training"]["strategy"] == "zero2"
    assert config["training"]["log_every"] == 1  # of the experiment; it survives the swap of the group
    assert config["phases"]["student"]["losses"]["soft"]["temperature"] == 4
    assert list(config["phases"]["student"]["losses"]) == ["soft", "more"]


def test_an_override_may_need_another_behind_it():
    words = ["models@phases.new.model=minilm", QUICK, "+phases@phases.new=finetune", "training.oops=1"]
    problems = compose([*words, "data=nothing"]).problems
    assert [problem.key for problem in problems] == ["models@phases.new.model", "data"]
    assert "names no group that can be swapped here" in problems[0].message


@pytest.fixture
def own(tmp_path):
    """A user's config folder with an experiment, a loss and the module that it names."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "halved.yaml").write_text("_target_: own_losses.Halved\nfactor: 0.5\nweight: 1.0\n")
    (tmp_path / "own_losses.py").write_text(
        "from distill_system.losses.task import HardLabel\n"
        "class Halved(HardLabel):\n"
        "    needs_teacher = False\n"
        "    def __init__(self, factor: float = 0.5, weight: float = 1.0) -> None:\n"
        "        super().__init__(weight=weight)\n"
    )
    body = """# @package _global_
defaults:
  - demo_quick

phases:
  student:
    losses:
      soft:
        temperature: 4.0
tracking:
  project: mine
data:
  validation_fraction: 0.2
  sha256: "0"
"""
    (tmp_path / "experiment" / "mine.yaml").write_text(body)
    return tmp_path


@pytest.mark.parametrize(
    ("swap", "gone", "kept"),
    [
        ("losses@phases.student.losses.soft=logit_regression", ["phases.student.losses.soft.temperature"], []),
        (
            "models@phases.student.model=hub",
            ["phases.student.model.phase", "phases.student.model.num_layers"],
            ["phases.student.model.dropout", "phases.student.model.frozen"],
        ),
        ("models@phases.student.model=from_config", ["phases.student.model.phase", "phases.student.model.num_layers"], []),
        ("data=table", ["data.sha256"], ["data.limit", "data.validation_fraction"]),
        ("tracking=none", ["tracking.project"], []),
        ("phases@phases.student=finetune", ["phases.student.teachers", "phases.student.losses.soft"], ["phases.student.model.phase"]),
    ],
)  # fmt: skip
def test_a_swap_leaves_nothing_of_the_old_choice(swap, gone, kept, own):
    composition = compose(["experiment=mine", swap], str(own))
    assert len(composition.notes) == 1
    for key in gone:
        assert key in composition.notes[0]
        assert look_up(composition.config, key) is None
    for key in kept:
        assert look_up(composition.config, key) is not None
    assert not [problem for problem in check(composition.config) if "is not a setting" in problem.message]


def look_up(config, key):
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def test_what_the_user_typed_is_still_refused(own, capsys):
    words = ["experiment=mine", "losses@phases.student.losses.soft=logit_regression"]
    words.append("phases.student.losses.soft.temperature=2")
    assert compose(words, str(own)).notes == []
    assert [problem.key for problem in composed(words, str(own))[1]] == ["phases.student.losses.soft.temperature"]
    words = ["models@phases.student.model=hub", "phases.student.model.num_layer=2", "phases.student.model.name=a/b"]
    assert cli.main(["run", "experiment=demo_quick", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "note: phases.student.model.phase, phases.student.model.num_layers of the experiment don't apply"
    )
    assert "phases.student.model.num_layer: is not a setting here" in err


def test_a_slip_in_the_experiment_itself_is_refused(own):
    """Only what the old choice knew is left out; a key that neither knows is a mistake."""
    path = own / "experiment" / "mine.yaml"
    path.write_text(path.read_text().replace("temperature:", "temprature:"))
    composition = compose(["experiment=mine", "losses@phases.student.losses.soft=logit_regression"], str(own))
    assert composition.notes == []
    assert "phases.student.losses.soft.temprature" in [problem.key for problem in check(composition.config)]


def test_no_note_without_a_swap(own):
    assert compose(["experiment=mine"], str(own)).notes == []
    assert compose([QUICK, "training=zero3", "tracking=none", "data=movie_reviews"]).notes == []


def test_ones_own_group_and_module(own, monkeypatch):
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    words = [QUICK, "losses@phases.student.losses.hard=halved"]
    _, problems = composed(words, str(own))
    assert [problem.key for problem in problems] == ["phases.student.losses.hard._target_"]
    assert "config.allowed_targets=[own_losses]" in problems[0].message
    config, problems = composed([*words, "config.allowed_targets=[own_losses]"], str(own))
    assert problems == []
    assert config["phases"]["student"]["losses"]["hard"]["factor"] == 0.5
    _, problems = composed(
        [*words, "config.allowed_targets=[own_losses]", "phases.student.losses.hard.factr=1"], str(own)
    )
    assert "(did you mean 'factor'?)" in problems[0].message


def test_a_config_dir_that_is_none(tmp_path, capsys):
    assert cli.main(["run", QUICK, "--config-dir", str(tmp_path / "nothing")]) == 2
    assert "--config-dir: is " in capsys.readouterr().err
    assert cli.main(["run", QUICK, "--config-dir"]) == 2
    assert "--config-dir: needs a folder" in capsys.readouterr().err


def test_show_prints_what_would_run(capsys):
    assert cli.main(["show", QUICK, "training.lr=0.25"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["training"]["lr"] == 0.25
    assert cli.main(["show", QUICK, "training.lr=0"]) == 2
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["training"]["lr"] == 0
    assert err == "# training.lr: is 0, must be > 0\n"


def test_expand_sweep():
    assert expand_sweep(["a=1,2", "b=x", "c=y,z"]) == [
        ["a=1", "b=x", "c=y"],
        ["a=1", "b=x", "c=z"],
        ["a=2", "b=x", "c=y"],
        ["a=2", "b=x", "c=z"],
    ]
    assert expand_sweep(["a=[1,2]", "training=ddp,zero2"]) == [
        ["a=[1,2]", "training=ddp"],
        ["a=[1,2]", "training=zero2"],
    ]
    assert expand_sweep(["+l@p.x=a,b"]) == [["+l@p.x=a"], ["+l@p.x=b"]]
    assert expand_sweep(["a=range(1,4)"]) == [["a=1"], ["a=2"], ["a=3"]]
    with pytest.raises(Refusal, match="can't be read"):
        expand_sweep(["a=[1"])
