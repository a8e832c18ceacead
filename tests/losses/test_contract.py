"""Every loss of conf/losses, also one added tomorrow, keeps the contract: sum and count, masks, order and division of rows, no gradient for the teacher."""

import copy
import importlib
import inspect
import pkgutil
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import distill_system.losses
from distill_system.losses.base import ALL_TASKS, Loss
from distill_system.schema import check_parameters, signature_of_target
from distill_system.signals import Signals, Targets
from tests.losses.samples import (
    YAMLS,
    bound,
    example,
    gradients,
    leaves,
    make,
    mapped,
    poisoned,
    taken,
    tracked,
)

# Values of a row that depend on its neighbours: a batch can't be divided, nor a row's weight be set to 0 as if it weren't there.
OF_WHOLE_BATCHES = {"relational"}
SETTINGS = {  # other branches of the same losses, under the same contract
    "hint": [{"measure": "cosine"}, {"normalise": True, "layers": [[1, 0], [0, 2]]}],
    "attention_transfer": [{"measure": "kl", "layers": "last"}],
    "relation": [{"relations": ["values"], "layers": "auto", "relation_heads": 4}],
    "relational": [{"points": "logits"}, {"angle": 0.0}],
    "skew_kl": [{"direction": "reverse"}, {"direction": "reverse", "alpha": 0.0}],
    "jensen_shannon": [{"beta": 0.0}, {"beta": 1.0}, {"beta": 0.1}],
    "corrected_label": [{"mode": "weigh"}, {"threshold": 0.5}, {"mode": "weigh", "threshold": 0.2}],
    "hard_label": [{"label_smoothing": 0.2}],
    "logit_regression": [{"centred": True}],
    "decoupled": [{"beta": 0.0}],
}
CASES = [
    pytest.param(name, extra, task, id="-".join([name, *map(str, extra.values()), task]))
    for name in YAMLS
    for extra in [{}, *SETTINGS.get(name, [])]
    for task in make(name).tasks
]
PLAIN = [case for case in CASES if not case.values[1]]
every_case = pytest.mark.parametrize(("name", "extra", "task"), CASES)
plain_case = pytest.mark.parametrize(("name", "extra", "task"), PLAIN)
every_loss = pytest.mark.parametrize("name", YAMLS)


def classes() -> set[type[Loss]]:
    modules = [
        importlib.import_module(f"{distill_system.losses.__name__}.{info.name}")
        for info in pkgutil.iter_modules(distill_system.losses.__path__)
    ]
    found = {cls for module in modules for _, cls in inspect.getmembers(module, inspect.isclass)}
    return {cls for cls in found if issubclass(cls, Loss) and cls is not Loss and not cls.__name__.startswith("_")}


def part_of(loss: Loss, student: Signals, teacher: Signals, targets: Targets, rows):
    """The loss of some rows alone."""
    sides = [mapped(side, lambda tensor: tensor[rows]) for side in (student, teacher)]
    return loss(*sides, taken(targets, rows))


def test_every_loss_has_a_file_and_the_other_way_round():
    assert {type(make(name)) for name in YAMLS} == classes()


@every_loss
def test_the_file_shows_the_defaults_and_what_the_class_says_can_be_read_without_an_import(name):
    signature = signature_of_target(YAMLS[name]["_target_"])
    assert check_parameters(YAMLS[name], signature, "") == []
    loss = make(name)
    assert signature.attributes["needs_teacher"] is type(loss).needs_teacher
    for attribute in ("needs", "tasks"):
        assert signature.attributes[attribute] == getattr(type(loss), attribute)
    assert set(loss.tasks) <= set(ALL_TASKS)
    assert set(loss.needs) <= {field.name for field in fields(Signals)}
    defaults = inspect.signature(type(loss)).parameters
    assert {key: parameter.default for key, parameter in defaults.items()} == {
        key: value for key, value in YAMLS[name].items() if key != "_target_"
    }


@every_loss
def test_weight_is_kept_and_not_applied(name):
    student, teacher, targets = example("classification")
    assert make(name).weight == 1.0
    heavy = bound(make(name, weight=3.0))
    assert heavy.weight == 3.0
    torch.testing.assert_close(
        heavy(student, teacher, targets), bound(make(name))(student, teacher, targets), rtol=0, atol=0
    )
    changing = make(name, weight={"start": 1.0, "end": 0.0, "shape": "linear"})
    assert [changing.weight_at(progress) for progress in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]


@every_loss
def test_a_loss_without_a_teacher_reads_none(name):
    loss = make(name)
    if not loss.needs_teacher:
        student, teacher, targets = example("classification")
        torch.testing.assert_close(loss(student, None, targets), loss(student, teacher, targets))


@every_case
def test_count_is_known_before_the_forward(name, extra, task):
    loss, (student, teacher, targets) = bound(make(name, **extra), task), example(task)
    total, count = loss(student, teacher, targets)
    assert total.shape == count.shape == ()
    assert count.dtype == torch.float32
    assert torch.equal(count, loss.count(targets))
    assert 0 < count <= targets.valid.sum()
    assert total > 0


@every_case
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_real_reaches_neither_sum_nor_gradient(name, extra, task, poison):
    loss, (student, teacher, targets) = bound(make(name, **extra), task), example(task)
    clean = gradients(loss, student, teacher, targets)
    bad = [poisoned(side, targets, poison) for side in (student, teacher)]
    wild = targets  # a label there is never looked at either
    if not targets.labels.is_floating_point():
        wild = replace(targets, labels=targets.labels.masked_fill(~targets.valid, 10**6))
    for one, other in zip(gradients(loss, *bad, wild), clean, strict=True):
        assert torch.equal(one, other)


@every_case
@pytest.mark.parametrize("poison", [0.0, float("nan"), -float("inf")])
def test_all_masked_is_zero_with_zero_gradient(name, extra, task, poison):
    loss, (student, teacher, targets) = bound(make(name, **extra), task), example(task)
    nothing = replace(
        targets,
        valid=torch.zeros_like(targets.valid),
        tokens=torch.zeros_like(targets.tokens),
        rows=torch.zeros_like(targets.rows),
    )
    bad = [mapped(side, lambda tensor: torch.full_like(tensor, poison)) for side in (student, teacher)]
    for value in gradients(loss, *bad, nothing):
        assert torch.count_nonzero(value) == 0


@every_case
def test_the_teacher_gets_no_gradient(name, extra, task):
    loss, (student, teacher, targets) = bound(make(name, **extra), task), example(task)
    teacher = tracked(teacher)
    _, _, *found = gradients(loss, student, teacher, targets)
    assert any(torch.count_nonzero(gradient) for gradient in found)
    assert all(torch.isfinite(gradient).all() for gradient in found)
    total, _ = loss(tracked(student), teacher, targets)
    total.backward()
    assert all(leaf.grad is None for leaf in leaves(teacher))


@every_case
def test_it_reads_what_it_needs_and_nothing_else(name, extra, task):
    loss, (student, teacher, targets) = bound(make(name, **extra), task), example(task)
    kept = {"logits", *loss.needs}
    without = [
        replace(side, **{field: None for field in ("hidden", "attention", "projections") if field not in kept})
        for side in (student, teacher)
    ]
    torch.testing.assert_close(loss(*without, targets), loss(student, teacher, targets), rtol=0, atol=0)


@every_case
def test_the_order_of_rows_does_not_matter(name, extra, task):
    loss, (student, teacher, targets) = bound(make(name, **extra), task), example(task)
    shuffled = part_of(loss, student, teacher, targets, [3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(shuffled, loss(student, teacher, targets), rtol=1e-10, atol=1e-12)


@every_case
@given(cut=st.integers(1, 5), seed=st.integers(0, 99), weighted=st.booleans())
@settings(max_examples=4, deadline=None)
def test_micro_batches_add_up_to_the_batch(name, extra, task, cut, seed, weighted):
    if name in OF_WHOLE_BATCHES:
        return
    loss, (student, teacher, targets) = bound(make(name, **extra), task), example(task, seed)
    # A new field of Targets is split by `taken` only if it has one entry a row.
    assert [f.name for f in fields(Targets)] == ["labels", "valid", "tokens", "rows", "weight", "task"]
    if weighted and loss.weighs_rows:
        targets.weight = torch.rand(targets.valid.shape, generator=torch.Generator().manual_seed(seed))
    parts = [part_of(loss, student, teacher, targets, rows) for rows in (slice(None, cut), slice(cut, None))]
    whole = loss(student, teacher, targets)
    torch.testing.assert_close(tuple(a + b for a, b in zip(*parts, strict=True)), whole, rtol=1e-10, atol=1e-12)


@every_case
def test_weights_of_rows(name, extra, task):
    loss, (student, teacher, targets) = bound(make(name, **extra), task), example(task)
    total, count = loss(student, teacher, targets)
    if not loss.weighs_rows:
        return
    doubled = replace(targets, weight=torch.full(targets.valid.shape, 2.0))
    torch.testing.assert_close(loss(student, teacher, doubled), (2 * total, count), rtol=1e-10, atol=1e-12)
    only = torch.zeros(targets.valid.shape)
    only[2] = 1.0
    if name not in OF_WHOLE_BATCHES:
        alone = part_of(loss, student, teacher, targets, slice(2, 3))
        torch.testing.assert_close(loss(student, teacher, replace(targets, weight=only))[0], alone[0])


@plain_case
def test_the_gradient_is_the_derivative(name, extra, task):
    loss, (student, teacher, targets) = bound(make(name, **extra), task), example(task)
    reads = {"logits", "hidden", "attention", "projections"} & set(loss.needs)

    def small(side: Signals) -> Signals:  # three rows, one of them filler, are enough to differentiate
        return mapped(side, lambda tensor: tensor[[0, 2, 3, 4]])

    student, teacher, targets = small(student), small(teacher), taken(targets, [0, 2, 3, 4])
    (field,) = reads
    values = getattr(student, field)
    inputs = [tensor.requires_grad_() for tensor in leaves(values)[-1:]]

    def function(tensor):
        replaced = mapped(values, lambda leaf: tensor if leaf is inputs[0] else leaf)
        return loss(replace(student, **{field: replaced}), teacher, targets)[0]

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    (gradient,) = torch.autograd.grad(function(*inputs), inputs)
    assert torch.count_nonzero(gradient) > 0


@every_case
def test_half_precision_is_computed_wider(name, extra, task):
    student, teacher, targets = example(task, dtype=torch.bfloat16)
    loss = bound(make(name, **extra), task)
    exact, _ = loss(*(mapped(side, lambda tensor: tensor.double()) for side in (student, teacher)), targets)
    total, _ = copy.deepcopy(loss).float()(student, teacher, targets)
    assert total.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(total.double(), exact, rtol=1e-4, atol=1e-5)


@plain_case
def test_classes_that_do_not_exist_leave_no_nan(name, extra, task):
    if task == "regression":  # numbers have no classes
        return
    loss, (student, teacher, targets) = bound(make(name, **extra), task), example(task)
    if targets.labels.is_floating_point():
        targets.labels[:, -1] = 0.0
    for cut_of in ("both", "teacher", "student"):
        if cut_of == "student" and name not in ("jensen_shannon", "skew_kl", "reverse_kl", "logit_regression"):
            continue  # a student that can't say what the teacher says is infinitely far away
        sides = tracked(student), tracked(teacher)
        with torch.no_grad():
            for side, who in zip(sides, ("student", "teacher"), strict=True):
                if cut_of in (who, "both"):
                    side.logits[..., -1] = -float("inf")
        for value in gradients(loss, *sides, targets):
            assert torch.isfinite(value).all(), (cut_of, value)
