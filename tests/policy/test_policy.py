"""The repository keeps the house's rules (tests/policy/test_rules.py shows that each rule can be broken)."""

from pathlib import Path

import pytest

from tests.policy import code, conf, text

ROOT = Path(__file__).parents[2]

RULES = {
    "import direction": code.import_direction,
    "libraries in their places": code.library_places,
    "module length": code.module_length,
    "no print in library code": code.prints,
    "module docstrings": code.module_docstrings,
    "Python 3.10": code.python_310,
    "torch comes after the checks": lambda root: code.torch_free(root, conf.torch_free_targets(root)),
    "config files open with a comment": conf.opening_comments,
    "experiments": conf.experiments,
    "targets mirror their folder": conf.targets,
    "training keys": conf.training_keys,
    "no machine or registry is named": text.machine_names,
    "scripts that documents name": text.scripts_exist,
    "subcommands that documents name": lambda root: text.subcommands_exist(root, text.cli_help(root)),
    "choices that documents name": text.choices_exist,
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str):
    violations = RULES[rule](ROOT)
    assert not violations, "\n" + "\n".join(violations)


def test_rules_look_at_something():
    """A rule over an empty folder would always hold."""
    assert sum(1 for _ in code.sources(ROOT)) > 20
    assert {group for group, _, _ in conf.yaml_files(ROOT)} >= {
        "data",
        "losses",
        "models",
        "phases",
        "training",
        "tracking",
        "experiment",
    }
    readme = (ROOT / "README.md").read_text()
    assert len(text.distill_commands(readme)) >= 10
    assert text.subcommands(text.cli_help(ROOT)) >= {"run", "report", "evaluate", "doctor"}
