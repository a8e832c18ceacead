"""What `distill evaluate` refuses, before torch is imported; what it measures is tested in tests/evaluation."""

import pytest

from distill_system import cli
from tests.config.files import model_folder

CASES = [
    ([], "PATH: must be one model folder: distill evaluate"),
    (["{a}", "{a}"], "PATH: must be one model folder"),
    (["{a}/nothing"], "which holds no model (no config.json)"),
    (["{a}", "teacher={a}/nothing"], "teacher: is '{a}/nothing', which holds no model"),
    (
        ["{a}", "data=movie_reviws"],
        "data: is 'movie_reviws', which is no choice of group data (did you mean 'movie_revie",
    ),
    (["{a}", "data=movie_reviews", "data.limt=3"], "data.limt: is not a setting here (did you mean 'limit'?)"),
    (["{a}", "data=movie_reviews", "limit=0"], "limit: is '0', must be a whole number >= 1"),
    (["{a}", "data=movie_reviews", "batch_size=many"], "batch_size: is 'many', must be a whole number >= 1"),
    (
        ["{a}", "data=movie_reviews", "split=tets"],
        "split: is 'tets' (did you mean 'test'?), must be one of train, valid",
    ),
    (["{a}", "data=movie_reviews", "techer={a}"], "techer: is not a setting here (did you mean 'teacher'?)"),
    (["{a}", "data=table", "data.path={a}/no.csv"], "data.path: is '{a}/no.csv', which doesn't exist"),
]


@pytest.mark.parametrize(("words", "said"), CASES)
def test_is_refused(words, said, tmp_path, capsys):
    folder = str(model_folder(tmp_path / "model"))
    assert cli.main(["evaluate", *(word.replace("{a}", folder) for word in words)]) == 2
    err = capsys.readouterr().err
    assert said.replace("{a}", folder) in err
    assert "Traceback" not in err


def test_a_users_own_data_class_lies_beside_the_users_config(tmp_path, capsys):
    own = tmp_path / "own"
    (own / "data").mkdir(parents=True)
    (own / "data" / "letters.yaml").write_text("# Mine.\n_target_: my_letters.Letters\n")
    (own / "my_letters.py").write_text(
        "from distill_system.errors import Problem\n\n\n"
        "class Letters:\n    task = 'classification'\n\n"
        "    def problems(self, key='data'):\n        return [Problem(key, 'asked the class itself')]\n"
    )
    folder = str(model_folder(tmp_path / "model"))
    words = ["evaluate", folder, "data=letters", "config.allowed_targets=[my_letters]", "--config-dir", str(own)]
    assert cli.main(words) == 2
    assert "data: asked the class itself" in capsys.readouterr().err
