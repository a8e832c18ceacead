"""Teachers from anywhere: found, converted, aligned, or refused."""

import pytest
import torch

from distill_system.errors import Refusal
from distill_system.phases.teachers import find, is_native, load, load_teacher, make, read_config, warn_of_poor_teachers
from distill_system.settings import Teacher as Settings
from distill_system.training.teachers import shared_parameters
from tests.models import tiny as models
from tests.phases.work import COLOURS, context, distill, finetune, knowing_teacher, losses, recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two teachers that say the same, one with its classes in another order and spelling."""
    folder = tmp_path_factory.mktemp("teachers")
    knowing_teacher(folder / "plain")
    knowing_teacher(folder / "permuted", ["Red", "BLUE", "green"])
    return folder


def test_the_order_of_a_teacher_s_labels_does_not_matter(folder, tmp_path):
    plain, first = distill(tmp_path / "a", {"model": str(folder / "plain")})
    permuted, second = distill(tmp_path / "b", {"model": str(folder / "permuted")})
    assert len(losses(plain)) == 4
    assert losses(permuted) == losses(plain)
    assert second.artifact.digest == first.artifact.digest
    assert second.evaluation["teacher"] == first.evaluation["teacher"]
    assert second.evaluation["teachers"]["main"] == first.evaluation["teachers"]["main"]


def test_unaligned_it_would_matter(folder, tmp_path, monkeypatch):
    plain, _ = distill(tmp_path / "a", {"model": str(folder / "plain")})
    monkeypatch.setattr("distill_system.phases.teachers.alignment", lambda *_: ([], None, None))
    permuted, _ = distill(tmp_path / "b", {"model": str(folder / "permuted")})
    assert losses(permuted)[-1] != pytest.approx(losses(plain)[-1], rel=1e-3)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["blue", "green", "purple"], "has no label 'red'"),
        (["blue", "purple"], "has 2 labels (blue, purple), the data has 3"),
    ],
)
def test_labels_that_clash_are_refused(tmp_path, labels, words):
    model, tokenizer = recipe().build(task="classification", label_names=labels)
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(Refusal) as refused:
        distill(tmp_path, {"model": str(tmp_path / "teacher")})
    problem = refused.value.problems[0]
    assert problem.key == "phases.student.teachers.main"
    assert words in problem.message
    assert not (tmp_path / "student" / "checkpoints").exists()


def test_a_student_with_tokens_that_the_teacher_has_no_embedding_for_is_refused(folder, tmp_path):
    made = context(tmp_path, "student")
    student, tokenizer = recipe().build(task="classification", label_names=COLOURS)
    tokenizer.add_tokens(["very"])
    with pytest.raises(Refusal, match=r"has 260 embeddings, the student's tokenizer has 261 tokens"):
        load_teacher("main", Settings(model=str(folder / "plain")), made, student, tokenizer)


def like_gpt2(path):
    """A folder such as the hub has of GPT-2: saved from the body alone, so that names lack `transformer.`, and the head is tied."""
    model, tokenizer = models.build("gpt2", "causal_lm")
    model.transformer.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


def like_mixtral(path):
    """One whose experts lie apart in the files and are one tensor in the model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "num_local_experts": 3, "vocab_size": 260}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **sizes))
    model.save_pretrained(path)
    recipe().load_tokenizer().save_pretrained(path)
    return model


@pytest.mark.parametrize("write", [like_gpt2, like_mixtral])
def test_weights_under_other_names_are_converted_once(tmp_path, write):
    model = write(tmp_path / "hub")
    assert not is_native(tmp_path / "hub", "causal_lm")
    made = context(tmp_path / "run", "student")
    made.source.task = "causal_lm"
    found = find(Settings(model=str(tmp_path / "hub")), made)
    assert found.is_relative_to(tmp_path / "run" / "student")
    assert is_native(found, "causal_lm")
    loaded = load(found, "causal_lm")
    inputs = {"input_ids": torch.arange(12).view(2, 6) + 5, "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    assert torch.equal(models.logits(loaded.eval(), inputs), models.logits(model.eval(), inputs))
    stamp = (found / "config.json").stat().st_mtime_ns
    assert find(Settings(model=str(tmp_path / "hub")), made) == found
    assert (found / "config.json").stat().st_mtime_ns == stamp


def test_a_folder_of_ours_is_taken_as_it_is(folder, tmp_path):
    made = context(tmp_path, "student", {"teacher": folder / "plain"})
    assert is_native(folder / "plain", "classification")
    assert find(Settings(model=str(folder / "plain")), made) == folder / "plain"
    assert find(Settings(phase="teacher"), made) == folder / "plain"
    assert not (tmp_path / "student").exists()


def test_a_folder_without_safetensors_is_not_native(folder, tmp_path):
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (folder / "plain" / file).is_file():
            (tmp_path / file).write_bytes((folder / "plain" / file).read_bytes())
    assert not is_native(tmp_path, "classification")
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    assert not is_native(tmp_path, "classification")


def test_a_model_is_made_from_its_config_alone(folder):
    config, _ = read_config(folder / "plain")
    names = [names for names, _ in shared_parameters(make(config, "classification"))]
    assert ["classifier.weight"] in names


def test_a_teacher_that_knows_nothing_is_a_warning(tmp_path):
    constant, tokenizer = recipe().build(task="classification", label_names=COLOURS)
    with torch.no_grad():
        constant.classifier.weight.zero_()
        constant.classifier.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    constant.save_pretrained(tmp_path / "constant")
    tokenizer.save_pretrained(tmp_path / "constant")
    made, _ = distill(tmp_path, {"model": str(tmp_path / "constant")})
    warnings = [warning for warning in made.warnings if "no better than chance" in warning]
    assert len(warnings) == 1
    assert warnings[0].startswith("teacher main")
    assert "validation rows" in warnings[0]


def test_a_good_teacher_is_none(tmp_path):
    _, result = finetune(tmp_path, training={"max_steps": 60, "lr": 2e-2})
    assert result.evaluation["metrics"]["accuracy"] > 0.6  # the texts name their colour
    given = {"teachers.main.phase": {"phase": "teacher", "digest": result.artifact.digest}}
    made, _ = distill(
        tmp_path, {"phase": "teacher"}, artifacts={"teacher": tmp_path / "teacher" / "model"}, inputs=given
    )
    assert not [warning for warning in made.warnings if "chance" in warning]


@pytest.mark.parametrize(("scale", "poor"), [(30.0, True), (1e30, True), (1.0, False)])
def test_a_language_model_worse_than_guessing_is_a_warning(tmp_path, scale, poor):
    """Also one whose perplexity overflows."""
    from distill_system.data.text import Text
    from distill_system.data.tokens import tokenise
    from distill_system.training.teachers import Teacher

    (tmp_path / "a.txt").write_text("abcd efgh " * 200)
    (tmp_path / "b.txt").write_text("abcd ijkl " * 200)
    model, tokenizer = models.build("llama", "causal_lm", tie_word_embeddings=False)
    made = context(tmp_path / "run", "student", source=Text(path=str(tmp_path), block_size=32, validation_fraction=0.4))
    stores = tokenise(made.source, tokenizer)
    seen = stores["validation"].tokens
    teacher = Teacher(model.eval(), task="causal_lm", align=lambda logits: logits * scale)
    if not poor:  # knows at least which words there are
        known = torch.full((model.config.vocab_size,), -5.0)
        known[torch.tensor(sorted(set(seen.tolist())))] = 5.0
        teacher.align = lambda logits: logits * 0 + known
    warn_of_poor_teachers(made, {"main": teacher}, stores, tokenizer)
    assert bool(made.warnings) == poor
    if poor:
        assert "guessing among all words gives 260" in made.warnings[0]
