"""A phase that goes on with another's model: what is refused before it starts, and what is known of the model by then."""

import pytest

from distill_system.config.check import check
from distill_system.config.compose import compose
from distill_system.config.graph import layers_of, parameter_words, positions_of
from distill_system.config.instantiate import instantiate
from distill_system.config.kinship import root
from distill_system.config.recipes import recipe_of
from distill_system.config.steps import shape_of
from distill_system.models.from_phase import FromPhase
from tests.models import tiny

TARGETS = "distill_system.models"
WHOLE = {"_target_": f"{TARGETS}.from_phase.FromPhase", "phase": "first", "dropout": None, "frozen": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("model") / "bert")


def run(folder, kind: str = "finetune", pruner: str = "Neurons", **last) -> dict:
    """Phases first (a folder's model), second (goes on with it) and third (goes on with that, or what `last` says)."""
    first = {"_target_": f"{TARGETS}.pretrained.Pretrained", "name": str(folder)}
    second = {"kind": kind, "model": WHOLE, "pruner": {"_target_": f"distill_system.pruning.x.{pruner}"}}
    return {
        "phases": {"first": {"kind": "finetune", "model": first}, "second": second}
        | {"third": {"kind": "finetune", "model": WHOLE | {"phase": "second"} | last}}
    }


def test_problems_name_the_key_and_the_fix():
    def told(recipe):
        return [str(p) for p in recipe.problems("m", task="classification", artifacts_known={"teacher", "helper"})]

    assert told(FromPhase("teacher")) == []
    assert told(FromPhase()) == ["m.phase: is not set; add m.phase=NAME of an earlier phase (helper, teacher)"]
    (text,) = told(FromPhase("techer"))
    assert "m.phase: is 'techer', which no earlier phase produces" in text
    assert "teacher" in text


def test_what_is_known_before_and_after_the_phase_ran(folder):
    recipe = FromPhase("teacher", frozen=["*embeddings*"])
    assert recipe.depends_on() == ["teacher"]
    assert FromPhase().depends_on() == []
    assert recipe.config() is recipe.max_positions({}) is None
    assert recipe.max_positions({"teacher": folder}) == 64
    assert recipe.config({"teacher": folder})["model_type"] == "bert"
    assert len(recipe.load_tokenizer({"teacher": folder})) > 200
    prints = [r.fingerprint() for r in (recipe, FromPhase("teacher"), FromPhase("teacher", dropout=0.0))]
    assert len({str(p) for p in prints}) == 3


def test_a_chain_is_followed_to_its_source(folder):
    config = run(folder)
    node = recipe_of(config, "third")
    assert layers_of(config, "third") == 4
    assert positions_of(config, node) == 64
    assert root(config, node)["name"] == str(folder)
    assert {"query", "embeddings"} <= parameter_words(config, node)
    assert str(shape_of(config, node)) == "4 layers of width 32 (48 inside)"
    assert instantiate(node) == FromPhase("second")


@pytest.mark.parametrize(("pruner", "layers"), [("Neurons", 4), ("Layers", None)])
def test_what_a_pruning_leaves_is_not_guessed(folder, pruner, layers):
    config = run(folder, kind="prune", pruner=pruner)
    node = recipe_of(config, "third")
    assert layers_of(config, "third") == layers_of(config, "second") == layers
    assert layers_of(config, "first") == 4
    assert shape_of(config, node) is None
    assert positions_of(config, node) == 64
    some = {"_target_": f"{TARGETS}.from_layers.FromLayers", "layers": [0, 1]}
    assert layers_of(run(folder, "prune", pruner, **some), "third") == 2
    assert shape_of(run(folder, "prune", pruner, **some), {**some, "phase": "second"}) is None


def test_a_circle_ends(folder):
    config = run(folder)
    config["phases"]["second"]["model"] = WHOLE | {"phase": "third"}
    node = recipe_of(config, "third")
    assert (
        layers_of(config, "third") is positions_of(config, node) is shape_of(config, node) is root(config, node) is None
    )


def told(*overrides: str) -> list[str]:
    base = ["experiment=demo_quick", "run.name=x", "data=movie_reviews", "models@phases.student.model=from_phase"]
    return [str(problem) for problem in check(compose([*base, *overrides]).config)]


def test_a_student_can_go_on_with_the_teacher_s_model():
    assert told("phases.student.model.phase=teacher") == []
    (text,) = told("phases.student.model.phase=null")
    assert text.startswith("phases.student.model.phase: is not set")
    (text,) = told("phases.student.model.phase=student")
    assert "can't take its own result" in text
