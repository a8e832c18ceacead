"""What the tests of starting, going on and sweeping share."""

import pytest

from tests.config.files import model_folder


@pytest.fixture
def words(tmp_path):
    """demo_quick around a model of this machine."""
    model = model_folder(tmp_path / "model")
    local = [
        "models@phases.teacher.model=hub",
        f"phases.teacher.model.name={model}",
        "phases.student.model.num_layers=1",
    ]
    return ["experiment=demo_quick", "tracking=none", f"run.dir={tmp_path / 'runs'}", *local]
