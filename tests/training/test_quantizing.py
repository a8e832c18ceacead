"""What a quantize phase does between steps: groups of elements in runs, mixing, scales fitted to the curvature, ranges of inputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distill_system.losses.task import HardLabel
from distill_system.models.grid import Granularity, grouped
from distill_system.models.input_steps import limits
from distill_system.quantization.activations import Activations
from distill_system.quantization.base import Moment
from distill_system.quantization.loss_aware import LossAware
from distill_system.quantization.prepare import prepare, targets_of
from distill_system.quantization.swap import quantized_modules
from distill_system.settings import Mixing, Training
from distill_system.training.engine import PlainEngine
from distill_system.training.modifier import Change, Several
from distill_system.training.objective import STUDENT, Objective
from distill_system.training.quantizing import Quantizing, groups_of, mixed
from tests.quantization.test_prepare import model_of
from tests.quantization.toys import Halves, Signs


@given(
    outputs=st.integers(1, 6),
    parts=st.integers(1, 4),
    size=st.integers(1, 5),
    kind=st.sampled_from(["tensor", "row", "group"]),
    axis=st.integers(0, 1),
    data=st.data(),
)
def test_groups_of_a_run(outputs, parts, size, kind, axis, data):
    inputs = parts * size
    granularity = Granularity(kind, size)
    groups, members = granularity.shape(outputs, inputs)
    wanted_GN = torch.arange(groups)[:, None].expand(groups, members)
    matrix_OI = wanted_GN.reshape(outputs, inputs)
    stored = matrix_OI if axis == 1 else matrix_OI.t()
    assert torch.equal(grouped(stored, granularity, axis), wanted_GN)
    flat = stored.reshape(-1)
    start = data.draw(st.integers(0, len(flat)))
    count = data.draw(st.integers(0, len(flat) - start))
    found = groups_of(start, count, tuple(stored.shape), granularity, axis)
    assert torch.equal(found, flat[start : start + count])


def test_mixing_by_hand():
    assert mixed(Mixing(), 0.0) == 1.0
    mixing = Mixing(begin=0.2, until=0.6)
    assert [mixed(mixing, at) for at in (0.0, 0.2, 0.3, 0.6, 1.0)] == pytest.approx([0, 0, 0.25, 1, 1])


def engine_of(quantizer, activations=None, **training):
    torch.manual_seed(0)
    model, moment = model_of("bert"), Moment()
    prepare(model, targets_of(model, quantizer, None, (), (), "phases.q"), moment, activations)
    objective = Objective(model, {"hard": HardLabel()}, task="classification")
    settings = Training(strategy="single", **training)
    return PlainEngine(objective.train(), settings, torch.device("cpu")), model, moment


def batch(rows=4):
    ids_BT = torch.randint(5, 200, (rows, 6), generator=torch.Generator().manual_seed(1))
    labels, valid = torch.tensor([0, 1] * (rows // 2)), torch.ones(rows, dtype=torch.bool)
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": labels, "valid": valid}


def step(engine, lr=1e-2):
    loss, _ = engine.forward(batch(), None, torch.tensor([0.25], dtype=torch.float64), last=True)
    engine.backward(loss, last=True)
    engine.step(lr)


def modifier_of(engine, model, moment, activations=None, **more):
    settings = {"mixing": Mixing(), "total_steps": 10} | more

    def show(engine):
        with torch.no_grad():
            engine.evaluate(batch(8))

    return Quantizing(
        model, STUDENT, moment, settings["mixing"], settings["total_steps"], activations=activations, show=show
    )


def test_binary_scales_are_the_closed_form():
    engine, model, moment = engine_of(LossAware("binary"))
    modifier = modifier_of(engine, model, moment)
    modifier.after_step(engine, 0, None, last=False)
    step(engine)
    modifier.after_step(engine, 1, None, last=False)
    module = model.bert.encoder.layer[1].output.dense
    curvature = engine.optimizer.state[module.weight]["exp_avg_sq"].double().sqrt()
    assert curvature.max() > 0
    wanted_O = (curvature * module.weight.detach().double().abs()).sum(1) / curvature.sum(1)
    torch.testing.assert_close(module.weight_alpha.view(-1).double(), wanted_O, rtol=1e-6, atol=0)


def test_ternary_scales_lower_the_weighted_error():
    quantizer = LossAware("ternary", iterations=5)
    engine, model, moment = engine_of(quantizer)
    modifier = modifier_of(engine, model, moment)
    modifier.after_step(engine, 0, None, last=False)
    step(engine)
    module = model.bert.encoder.layer[0].intermediate.dense
    curvature = engine.optimizer.state[module.weight]["exp_avg_sq"].double().sqrt()

    def error():
        value = module.site.effective(module.weight.detach(), None, {"alpha": module.weight_alpha}, training=True)
        return (curvature * (module.weight.detach() - value).double() ** 2).sum().item()

    before = error()
    modifier.after_step(engine, 1, None, last=False)
    assert error() < before


@pytest.mark.parametrize("states", ["ternary", "kbit"])
def test_masked_weights_have_no_say_in_the_scale(states):
    """A pruner's masks act in the forward; below them the optimizer's weights and second moments stay what they were for a while."""
    engine, model, moment = engine_of(LossAware(states, iterations=1))
    module = model.bert.encoder.layer[0].output.dense
    modifier = modifier_of(engine, model, moment)
    modifier.after_step(engine, 0, None, last=False)
    step(engine)
    kept_OI = torch.rand(module.weight.shape, generator=torch.Generator().manual_seed(3)) > 0.5
    module.weight_mask = nn.Parameter(kept_OI, requires_grad=False)
    before = module.weight_alpha.clone()
    modifier.after_step(engine, 1, None, last=False)
    curvature_OI = engine.optimizer.state[module.weight]["exp_avg_sq"].sqrt()
    assert curvature_OI[~kept_OI].min() > 0
    seen_OI = module.weight.detach() * kept_OI
    over_OI, under_OI = module.site.quantizer.terms(seen_OI, curvature_OI, before)
    wanted_O = over_OI.double().sum(1) / under_OI.double().sum(1)
    torch.testing.assert_close(module.weight_alpha.view(-1).double(), wanted_O, rtol=1e-6, atol=0)


def test_a_resume_does_not_fit_twice():
    engine, model, moment = engine_of(LossAware("ternary"))
    modifier = modifier_of(engine, model, moment)
    modifier.after_step(engine, 0, None, last=False)
    step(engine)
    modifier.after_step(engine, 1, None, last=False)
    module = model.bert.encoder.layer[0].intermediate.dense
    before = module.weight_alpha.clone()
    again = modifier_of(engine, model, moment)
    again.restore(modifier.state())
    again.after_step(engine, 1, None, last=False)
    assert torch.equal(module.weight_alpha, before)


@pytest.mark.parametrize("learned", [True, False])
def test_steps_of_inputs_begin_with_what_calibration_shows(learned):
    activations = Activations(4, learned=learned)
    engine, model, moment = engine_of(Signs(), activations)
    seen = []
    query = model.bert.encoder.layer[1].attention.self.query
    hook = query.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    modifier = modifier_of(engine, model, moment, activations)
    modifier.after_step(engine, 0, None, last=False)
    hook.remove()
    size = torch.cat([x.flatten(0, 1) for x in seen]).abs()
    high = limits(4)[1]
    wanted = 2 * size.mean() / high**0.5 if learned else size.max() / high
    assert query.input_step.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert modifier.wants_gradients(0) is not learned
    before = query.input_step.item()
    for number in (1, 2):
        step(engine)
        if not learned:
            modifier.observe(engine)
        modifier.after_step(engine, number, None, last=False)
    assert query.input_step.item() != before


@pytest.mark.parametrize("learned", [True, False])
def test_padding_and_filler_have_no_say_in_the_steps_of_inputs(learned):
    """How far rows are padded hangs on which rows a rank has beside them; filler fills up ranks that lack a row."""

    def steps_of(batches):
        activations = Activations(4, learned=learned)
        engine, model, moment = engine_of(Signs(), activations)

        def show(engine):
            with torch.no_grad():
                for one in batches:
                    activations.rows_B = one["valid"]
                    engine.evaluate(one)
            activations.rows_B = None

        modifier = Quantizing(model, STUDENT, moment, Mixing(), 10, activations=activations, show=show)
        modifier.after_step(engine, 0, None, last=False)
        return [module.input_step.item() for _, module in quantized_modules(model)]

    ids_BT = torch.randint(5, 200, (3, 9), generator=torch.Generator().manual_seed(2))
    lengths = (4, 9, 6)

    def rows(numbers, width, valid=None):
        mask_BT = torch.stack([(torch.arange(width) < lengths[i]).long() for i in numbers])
        return {
            "input_ids": torch.where(mask_BT == 1, ids_BT[list(numbers), :width], 0),
            "attention_mask": mask_BT,
            "valid": torch.tensor(valid or [True] * len(numbers)),
        }

    together = steps_of([rows((0, 1, 2), 9)])
    apart = steps_of([rows((0,), 4), rows((1, 1), 9, [True, False]), rows((2,), 6)])
    assert apart == pytest.approx(together, rel=1e-5)


def test_where_training_stands_is_told_and_best_weights_count_at_the_end_of_mixing():
    engine, model, moment = engine_of(Halves())
    modifier = modifier_of(engine, model, moment, mixing=Mixing(until=0.5))
    modifier.after_step(engine, 2, None, last=False)
    assert (moment.step, moment.progress, moment.mixing) == (2, 0.2, pytest.approx(0.4))
    assert not modifier.settled
    modifier.after_step(engine, 5, None, last=False)
    assert modifier.settled


class Speaking:
    def __init__(self, name):
        self.name, self.settled, self.observed = name, name == "a", 0

    def wants_gradients(self, step):
        return self.name == "b"

    def observe(self, engine):
        self.observed += 1

    def wants_figures(self, step, *, last):
        return last

    def after_step(self, engine, step, figures, *, last):
        return Change(halt=self.name == "b", lines=[{"event": self.name}])

    def window(self, step):
        return (0, 1) if self.name == "a" else (0, 2)

    def state(self):
        return {"name": self.name}

    def restore(self, state):
        self.name = state["name"]

    def pieces(self, engine):
        yield self.name


def test_several_modifiers_act_as_one():
    one, two = Speaking("a"), Speaking("b")
    both = Several([one, two])
    assert not both.settled
    assert both.wants_gradients(0)
    both.observe(None)
    assert (one.observed, two.observed) == (0, 1)
    change = both.after_step(None, 1, None, last=False)
    assert (change.halt, change.stop, [line["event"] for line in change.lines]) == (True, False, ["a", "b"])
    assert both.window(0) == (0, 1)
    assert list(both.pieces(None)) == ["a", "b"]
    both.restore({"name": "c", "beside": [{"name": "d"}]})
    assert (one.name, two.name) == ("c", "d")
    assert both.state() == {"name": "c", "beside": [{"name": "d"}]}
