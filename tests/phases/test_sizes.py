"""Planned sizes: targets in equal ratios, depth before width, the nearest that fall strictly; counted without weights, and equal to what is built."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_system.errors import Refusal
from distill_system.export.dense import save_model
from distill_system.models.from_config import FromConfig
from distill_system.models.from_layers import FromLayers
from distill_system.models.pretrained import Pretrained
from distill_system.phases.sizes import Size, check_order, choose, path, plan, size_of, size_of_folder
from tests.phases.work import COLOURS, context, recipe


def built(one, made, **more):
    model, tokenizer = one.build(task=made.task, label_names=made.label_names, artifacts=made.artifacts, **more)
    return sum(p.numel() for p in model.parameters()), model, tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return context(tmp_path_factory.mktemp("run"), "chain")


def folder_of(one, made, path):
    _, model, tokenizer = built(one, made)
    save_model(path, model, tokenizer)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, made):
    """Six layers of width 32, with heads of width 8."""
    big = recipe(hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=48)
    return folder_of(big, made, tmp_path_factory.mktemp("teacher") / "model")


def test_by_hand():
    """100 -> 25 -> 6.25 wished for between 400 and 1.5625, of the sizes 200, 90, 30, 5."""
    assert choose([200, 90, 30, 5], [100.0, 25.0, 6.25]) == [1, 2, 3]
    assert choose([100, 99, 2], [100.0, 98.0]) == [0, 1]
    assert choose([100, 50], [60.0, 55.0]) == [0, 1], "a size is taken once"


@given(
    st.lists(st.integers(2, 10_000), min_size=1, max_size=7, unique=True),
    st.lists(st.integers(2, 10_000), min_size=1, max_size=4),
)
def test_no_choice_is_nearer(sizes, targets):
    sizes, targets = sorted(sizes, reverse=True), sorted(targets, reverse=True)[: len(sizes)]

    def cost(places):
        return sum(math.log(sizes[p] / t) ** 2 for p, t in zip(places, targets, strict=True))

    chosen = choose(sizes, targets)
    assert chosen == sorted(set(chosen))
    best = min(cost(places) for places in itertools.combinations(range(len(sizes)), len(targets)))
    assert cost(chosen) == pytest.approx(best)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_plans_deepen_and_halve_in_equal_ratios(made, teacher, count):
    student = recipe(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    planned, targets = plan(student, teacher, count, made)
    above, below = size_of_folder(teacher, made).parameters, size_of(student, made).parameters
    assert (below, above) == (11_139 + 7_504, 11_139 + 6 * 7_504)
    assert list(planned) == [f"assistant_{i + 1}" for i in range(count)]
    ends = [above, *targets, below]
    assert [a / b for a, b in itertools.pairwise(ends)] == pytest.approx(
        [(above / below) ** (1 / (count + 1))] * (count + 1)
    )
    assert {size.width for size in planned.values()} == {32}, "depth alone reaches all of them"
    assert [size.layers for size in planned.values()] == {1: [3], 2: [4, 2], 3: [4, 3, 2]}[
        count
    ]  # 11,139 parameters and 7,504 a layer
    for size in planned.values():
        assert built(size.recipe, made)[0] == size.parameters
    assert {name: size.parameters for name, size in plan(student, teacher, count, made)[0].items()} == {
        name: size.parameters for name, size in planned.items()
    }


def test_width_follows_where_depth_ends(made, teacher):
    student = recipe(hidden_size=8, num_hidden_layers=5, num_attention_heads=1, intermediate_size=12)
    sizes = path(student, size_of_folder(teacher, made), made)
    assert [(size.layers, size.width) for size in sizes] == [(6, 8), (6, 16), (6, 24), (6, 32)]
    assert [size.parameters for size in sizes] == sorted(size.parameters for size in sizes)
    _, model, _ = built(sizes[2].recipe, made)
    config = model.config
    assert (config.num_attention_heads, config.intermediate_size, config.hidden_size // config.num_attention_heads) == (
        3,
        36,
        8,
    )
    assert [size.width for size in plan(student, teacher, 2, made)[0].values()] == [24, 16]


def test_a_deeper_student_of_a_wide_teacher_only_widens(made, tmp_path):
    shallow = folder_of(recipe(hidden_size=40, num_attention_heads=5), made, tmp_path / "model")
    planned, _ = plan(recipe(num_hidden_layers=2), shallow, 1, made)
    assert [(size.layers, size.width) for size in planned.values()] == [(2, 24)]


def test_heads_that_share_keys_stay_together(made, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    student = FromConfig("llama", tokenizer="bytes", num_key_value_heads=2, max_position_embeddings=64, **sizes)
    big = FromConfig("llama", tokenizer="bytes", max_position_embeddings=64, **(sizes | {"hidden_size": 64}))
    found = path(student, size_of_folder(folder_of(big, made, tmp_path / "model"), made), made)
    configs = [built(size.recipe, made)[1].config for size in found]
    assert [(c.hidden_size, c.num_attention_heads, c.num_key_value_heads) for c in configs[:3]] == [
        (24, 6, 3),
        (32, 8, 4),
        (40, 10, 5),
    ]


def test_a_recipe_keeps_the_names_that_it_uses(made, tmp_path):
    student = FromConfig("gpt2", tokenizer="bytes", n_embd=16, n_layer=1, n_head=2, n_positions=64)
    big = FromConfig("gpt2", tokenizer="bytes", n_embd=32, n_layer=2, n_head=2, n_positions=64)
    found = path(student, size_of_folder(folder_of(big, made, tmp_path / "model"), made), made)
    assert [(size.layers, size.width) for size in found] == [(2, 16), (2, 24), (2, 32)]
    assert found[-1].recipe.values["n_embd"] == 32
    assert "hidden_size" not in found[-1].recipe.values


def test_layers_of_a_phase_s_model_or_of_a_recipe(made, teacher):
    made = context(made.run_folder, "chain", {"teacher": teacher})
    for student in (
        FromLayers(phase="teacher", num_layers=2),
        FromLayers(name=str(teacher), layers=[1, 4]),
        FromLayers(source=Pretrained(name=str(teacher)), num_layers=2),
    ):
        planned, _ = plan(student, teacher, 2, made)
        assert [size.layers for size in planned.values()] == [4, 3]
        for size in [*planned.values(), size_of(student, made)]:
            assert built(size.recipe, made)[0] == size.parameters


def test_a_recipe_that_must_be_built_is_built(made, teacher):
    assert size_of(Pretrained(name=str(teacher)), made).parameters == size_of_folder(teacher, made).parameters


def test_no_room(made, teacher):
    made = context(made.run_folder, "chain", {"teacher": teacher})
    with pytest.raises(Refusal, match=r"phases.chain.count: is 4, but the student's recipe has 3 sizes .*; nearest: 3"):
        plan(FromLayers(phase="teacher", num_layers=2), teacher, 4, made)
    with pytest.raises(Refusal, match=r"has no sizes .*; name assistants with"):
        plan(FromLayers(phase="teacher", num_layers=5), teacher, 1, made)
    with pytest.raises(Refusal, match=r"phases.chain.model: .*nothing lies between"):
        plan(FromLayers(phase="teacher", num_layers=6), teacher, 1, made)


def test_order():
    large, small = Size(None, 20, 2, 4), Size(None, 10, None, None)
    keys = {"a": "assistants.a", "student": "model"}
    check_order({"a": large, "student": small}, large, "p", keys)
    with pytest.raises(Refusal) as refused:
        check_order({"a": small, "student": large}, large, "p", keys)
    told = (
        "phases.p.model: has 20 parameters (2 layers of width 4), more than a, which teaches it and has 10 parameters"
    )
    assert told in str(refused.value)


def test_colours_are_three(made):
    """The head of a counted model is that of the data."""
    assert list(made.label_names) == COLOURS
    two = FromConfig("bert", tokenizer="bytes", **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2})
    assert size_of(two, made).parameters == built(two, made)[0]
