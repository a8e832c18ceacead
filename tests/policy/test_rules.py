"""Each rule on a small tree that keeps it and on one that breaks it: a rule that can't fail guards nothing."""

import importlib.util
import sys
from pathlib import Path

import pytest

from distill_system.schema import signature_of_target
from tests.policy import code, conf, text


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def module(name: str, *lines: str) -> dict[str, str]:
    return {f"distill_system/{name}.py": "\n".join(['"""It."""', *lines, ""])}


BREAKS = [  # rule, a file that breaks it, the same file mended, a word of the sentence
    (
        code.import_direction,
        module("losses/a", "import distill_system.phases.b"),
        module("phases/b", "import distill_system.losses.a"),
        "level 4",
    ),
    (
        code.import_direction,
        module("data/a", "from distill_system.models import b"),
        module("data/a", "from distill_system.data import b"),
        "neighbour",
    ),
    (
        code.import_direction,
        module("data/a", "from ..models import b"),
        module("data/a", "from . import b"),
        "neighbour",
    ),
    (
        code.import_direction,
        module("data/a", "def f():\n    from distill_system import cli"),
        module("cli", "from distill_system import data"),
        "cli",
    ),
    (
        code.import_direction,
        module("pruning/a", "from distill_system.models import b"),
        module("pruning/a", "from distill_system.models import anatomy"),
        "b",
    ),
    (code.import_direction, module("newcomer"), module("files"), "no level"),
    (code.library_places, module("losses/a", "import wandb"), module("tracking/wandb", "import wandb"), "wandb"),
    (
        code.library_places,
        module("pipeline", "from hydra import compose"),
        module("config/compose", "from hydra import compose"),
        "hydra",
    ),
    (
        code.library_places,
        module("data/table", "import lightning.pytorch"),
        module("data/datamodule", "import lightning.pytorch"),
        "lightning",
    ),
    (
        code.library_places,
        module("phases/a", "def f():\n    import deepspeed"),
        module("distributed", "import deepspeed"),
        "deepspeed",
    ),
    (code.module_length, module("files", *["x = 1"] * 350), module("files", *["x = 1"] * 349), "351 lines"),
    (code.module_length, {"tests/test_a.py": "x = 1\n" * 351}, {"tests/test_a.py": "x = 1\n" * 350}, "351 lines"),
    (code.prints, module("losses/a", "print(1)"), module("tracking/a", "print(1)"), "print"),
    (code.module_docstrings, {"distill_system/files.py": "x = 1\n"}, module("files"), "docstring"),
    (
        code.module_docstrings,
        {"distill_system/losses/__init__.py": "import os\n"},
        {"distill_system/losses/__init__.py": ""},
        "empty",
    ),
    (code.python_310, module("files", "import tomllib"), module("files", "import json"), "tomllib"),
    (code.python_310, module("files", "from typing import Self"), module("files", "from typing import Any"), "Self"),
    (
        code.python_310,
        module("files", "import hashlib\nhashlib.file_digest"),
        module("files", "import hashlib\nhashlib.sha256"),
        "file_digest",
    ),
    (
        code.python_310,
        module("files", "try:\n    f()\nexcept* E:\n    g()"),
        module("files", "try:\n    f()\nexcept E:\n    g()"),
        "3.11",
    ),
    (conf.opening_comments, {"conf/data/a.yaml": "x: 1\n"}, {"conf/data/a.yaml": "# It.\nx: 1\n"}, "comment"),
    (
        conf.opening_comments,
        {"conf/data/a.yaml": "# @package _global_\nx: 1\n"},
        {"conf/data/a.yaml": "# @package x\n# It.\nx: 1\n"},
        "comment",
    ),
    (
        conf.experiments,
        {"conf/experiment/a.yaml": "# @package _global_\n# distill run experiment=ab\nx: 1\n"},
        {"conf/experiment/a.yaml": "# @package _global_\n# distill run experiment=a\nx: 1\n"},
        "experiment=a",
    ),
    (
        conf.experiments,
        {"conf/experiment/e/a.yaml": "# @package _global_\n# distill run experiment=e/a\nphases: {x: {_target_: y}}\n"},
        {"conf/experiment/e/a.yaml": "# @package _global_\n# distill run experiment=e/a\nphases: {x: {y: 1}}\n"},
        "phases.x",
    ),
    (
        conf.experiments,
        {"conf/experiment/a.yaml": "# distill run experiment=a\n"},
        {"conf/data/a.yaml": "x: 1\n"},
        "_global_",
    ),
    (
        conf.training_keys,
        {"conf/training/a.yaml": "learning_rate: 1\n"},
        {"conf/losses/a.yaml": "learning_rate: 1\n"},
        "learning_rate",
    ),
    (text.machine_names, {"a.sh": "cd /" + "root/x"}, {"a.sh": "cd /home/x"}, "path"),
    (text.machine_names, {"docs/a.md": "\nhttps://pypi" + ".org"}, {"docs/a.md": "PyPI"}, "a.md:2"),
    (
        text.scripts_exist,
        {"README.md": "```bash\nbash launch/a.sh\n```\n"},
        {"README.md": "`bash launch/a.sh`", "launch/a.sh": ""},
        "launch/a.sh",
    ),
    (text.scripts_exist, {"docs/b.md": "Type `bash launch/a.sh x=1`."}, {"docs/b.md": "Type `ls`."}, "docs/b.md"),
]


@pytest.mark.parametrize(("rule", "broken", "mended", "word"), BREAKS, ids=lambda value: getattr(value, "__name__", ""))
def test_rule_can_fail(rule, broken, mended, word, tmp_path):
    violations = rule(tree(tmp_path / "broken", broken))
    assert len([v for v in violations if word in v]) == 1, violations
    (tmp_path / "mended").mkdir()
    mended_violations = [v for v in rule(tree(tmp_path / "mended", mended)) if word in v]
    assert not mended_violations


def test_torch_is_found_behind_another_import(tmp_path):
    files = {
        "torch.py": "",
        "distill_system/__init__.py": "",
        **module("files", "import distill_system.helper"),
        **module("helper", "import torch"),
    }
    files |= {"distill_system/data/__init__.py": "", **module("data/table", "import torch"), **module("errors")}
    root = tree(tmp_path, files)
    assert code.torch_free(root, set()) == [
        "distill_system.files: importing it imports torch; import that inside the function that needs it"
    ]
    assert [line.split(":")[0] for line in code.torch_free(root, {"distill_system.data.table"})] == [
        "distill_system.data.table",
        "distill_system.files",
    ]
    (root / "distill_system/helper.py").write_text('"""It."""\n\n\ndef f():\n    import torch\n')
    assert code.torch_free(root, set()) == []


TOY = '''"""It."""


class Soft:
    def __init__(self, temperature: float = 2.0, weight: float = 1.0): ...
'''


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("losses/soft", "_target_: toy_house.losses.soft.Soft\ntemperature: 2.0\nweight: 1.0\n", []),
        ("losses/soft", "_target_: toy_house.losses.soft.Soft\ntemperature: 2.0\n", ["'weight' is not in the file"]),
        (
            "losses/soft",
            "_target_: toy_house.losses.soft.Soft\ntemperature: 2.0\nweight: 1.0\nheat: 1\n",
            ["'heat' is no parameter"],
        ),
        ("losses/soft", "_target_: toy_house.losses.soft.Sof\n", ["has no 'Sof'"]),
        ("losses/soft", "_target_: toy_house.losses.hard.Soft\n", ["there is no module"]),
        (
            "models/soft",
            "_target_: toy_house.losses.soft.Soft\ntemperature: 2.0\nweight: 1.0\n",
            ["must begin with toy_house.models."],
        ),
        ("phases/a", "losses:\n  soft: {_target_: toy_house.losses.soft.Soft}\n", []),
        (
            "phases/a",
            "losses:\n  soft: {_target_: toy_house.losses.soft.Soft, heat: 1}\n",
            ["losses.soft._target_: 'heat'"],
        ),
        ("losses/soft", "defaults:\n  - /data@weight: a\n_target_: toy_house.losses.soft.Soft\ntemperature: 2.0\n", []),
    ],
)
def test_targets(file, content, words, tmp_path, monkeypatch):
    root = tree(
        tmp_path,
        {
            "toy_house/__init__.py": "",
            "toy_house/losses/__init__.py": "",
            "toy_house/losses/soft.py": TOY,
            f"conf/{file}.yaml": content,
        },
    )
    monkeypatch.syspath_prepend(root)
    signature_of_target.cache_clear()
    violations = conf.targets(root, package="toy_house")
    assert len(violations) == len(words), violations
    assert all(word in violation for word, violation in zip(words, violations))
    for name in [name for name in sys.modules if name.split(".")[0] == "toy_house"]:  # the next case has another one
        del sys.modules[name]


def test_training_defaults_must_be_shown_as_they_are(tmp_path):
    violations = conf.training_keys(tree(tmp_path, {"conf/training/default.yaml": "lr: 1\n"}))
    assert any("'batch_size'" in v for v in violations)
    assert any("lr is 1 here" in v for v in violations)
    assert not any("'lr'" in v for v in violations)


HELP = """usage: distill COMMAND [overrides]

  run        compose, check, train
  report     write the report again
"""

DOCUMENT = """Type `distill run experiment=demo` and

```bash
DS_ACCELERATOR=cpu distill run experiment=demo training=zero2 \\
    losses@phases.student.losses.soft=hard_label   # swap
distill plant runs/demo
bash launch/local.sh 2 data=tabel
```

`distill COMMAND` is a placeholder, `distill --help` an option.
"""


def test_commands_of_documents(tmp_path):
    files = {
        "README.md": DOCUMENT,
        "conf/training/zero2.yaml": "",
        "conf/experiment/demo.yaml": "",
        "conf/losses/soft.yaml": "",
        "conf/data/table.yaml": "",
    }
    root = tree(tmp_path, files)
    assert text.subcommands(HELP) >= {"run", "report"}
    assert text.subcommands("usage: distill {run,report,cache} ...\ndistill doctor|evaluate") >= {
        "run",
        "report",
        "cache",
        "doctor",
        "evaluate",
    }
    unknown = text.subcommands_exist(root, HELP)
    assert len(unknown) == 1, unknown
    assert "'plant'" in unknown[0]
    choices = text.choices_exist(root)
    assert [choice.split(": ")[1] for choice in choices] == [
        "losses@phases.student.losses.soft=hard_label",
        "data=tabel",
    ]


def test_skipped_tests_fail_the_run(tmp_path):
    spec = importlib.util.spec_from_file_location("skipped", Path(__file__).parents[2] / ".ci" / "skipped.py")
    skipped = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(skipped)
    case = '<testcase classname="tests.{}" name="test_a">{}</testcase>'
    skip = '<skipped type="pytest.skip" message="two ranks need gloo"/>'

    def complaints(*cases: str) -> list[str]:
        (tmp_path / "junit.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
        return skipped.complaints(tmp_path / "junit.xml", ["tests/distributed"], tmp_path)

    good = case.format("distributed.test_ranks", "")
    assert complaints(good, case.format("models.test_gguf", skip)) == []
    assert complaints(good, case.format("distributed.test_ranks", skip)) == [
        "tests.distributed.test_ranks::test_a was skipped: two ranks need gloo"
    ]
    tree(tmp_path, {"tests/distributed/test_ranks.py": ""})
    assert complaints(case.format("models.test_gguf", "")) == ["no test of tests/distributed ran"]
