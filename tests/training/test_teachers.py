"""A teacher only teaches: never trained, never saved, never in train mode; and its shards are read element by element."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distill_system import distributed
from distill_system.models.alignment import cut_vocabulary
from distill_system.signals import Signals
from distill_system.training.teachers import Teacher, fill, replicated, shared_parameters
from tests.models import tiny as models
from tests.training.tiny import CPU, Bench, Net, batch, state


class Spy(Teacher):
    """Remembers in which mode it was asked."""

    def __init__(self, model, **more):
        super().__init__(model, task="classification", **more)
        self.modes = []

    def __call__(self, given):
        self.modes.append(self.module.training)
        logits = super().__call__(given)
        assert not logits.requires_grad
        return logits


def test_it_stays_as_it_is_while_a_student_is_trained(tmp_path):
    spy = Spy(replicated(Net(seed=5), CPU))
    before = {name: tensor.clone() for name, tensor in spy.module.state_dict().items()}
    bench = Bench(tmp_path, total_steps=4, validate=lambda one: {"accuracy": 0.5})
    bench.teacher = lambda given: {"main": Signals(spy(given))}
    bench.run()
    assert spy.modes == [False] * 4
    assert not spy.module.training
    assert bench.fit.module.training  # Lightning did switch its own module
    after = spy.module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in spy.module.parameters())


def test_it_is_in_no_optimizer_no_checkpoint_and_no_module_tree(tmp_path):
    spy = Spy(replicated(Net(seed=5), CPU))
    bench = Bench(tmp_path, total_steps=2)
    bench.teacher = lambda given: {"main": Signals(spy(given))}
    bench.run()
    theirs = {id(tensor) for tensor in [*spy.module.parameters(), *spy.module.buffers()]}
    assert not theirs & {id(parameter) for parameter in bench.engine.parameters}
    assert not theirs & {id(tensor) for tensor in bench.fit.module.parameters()}
    assert list(bench.fit.module.children()) == []
    assert {name.split(".")[0] for name in state(bench.engine) if "|" in name} == {"roles"}


def test_a_teacher_in_train_mode_is_a_defect():
    teacher = Teacher(Net().train(), task="classification")
    with pytest.raises(AssertionError, match="eval mode"):
        teacher(batch(0))


def test_its_classes_come_in_the_student_s_order():
    net = Net(seed=5).eval()
    plain = Teacher(net, task="classification")(batch(0))
    order = torch.tensor([2, 0, 1])
    aligned = Teacher(net, task="classification", align=lambda logits: logits.index_select(-1, order))(batch(0))
    assert torch.equal(aligned, plain[:, [2, 0, 1]])


def test_words_that_a_teacher_does_not_have_are_minus_infinity():
    model, tokenizer = models.build("llama", "causal_lm", vocab_size=270)  # padded from 260 to 270
    known, width = len(tokenizer), 264
    teacher = Teacher(model.eval(), task="causal_lm", align=lambda logits: cut_vocabulary(logits, known, width))
    inputs = models.batch(tokenizer, "some words")
    logits_BTV = teacher(inputs)
    assert logits_BTV.shape == (1, inputs["input_ids"].shape[1] - 1, width)
    assert torch.isinf(logits_BTV[..., known:]).all()
    assert (logits_BTV[..., known:] < 0).all()
    assert torch.equal(logits_BTV[..., :known], models.logits(model, inputs)[:, :-1, :known])
    assert (logits_BTV.softmax(-1)[..., known:] == 0).all()


def test_the_engine_around_a_model_is_called_and_the_model_s_signature_read():
    class Around(nn.Module):  # as DeepSpeed's: takes anything
        def __init__(self, module):
            super().__init__()
            self.module = module
            self.calls = 0

        def forward(self, *args, **inputs):
            self.calls += 1
            assert inputs.keys() == {"input_ids", "attention_mask"}
            return self.module(*args, **inputs)

    around = Around(Net(seed=5).eval())
    logits = Teacher(around, task="classification")(batch(0) | {"token_type_ids": torch.zeros(8, 5)})
    assert around.calls == 1
    assert torch.equal(logits, Teacher(around.module, task="classification")(batch(0)))


def test_shared_parameters_come_once_with_all_their_names():
    model, _ = models.build("llama", "causal_lm", tie_word_embeddings=True)
    found = {tuple(names): parameter for names, parameter in shared_parameters(model)}
    assert ("model.embed_tokens.weight", "lm_head.weight") in found
    assert len(found) == len(list(model.parameters()))
    assert sum(len(names) for names in found) == len(found) + 1


def scatter(model, world):
    """Every parameter as one of `world` ranks would hold it under ZeRO-3, filled with rubbish."""
    for parameter in model.parameters():
        share = -(-parameter.numel() // world)
        held = torch.full((share,), 77.0)
        held.ds_numel = share
        parameter.ds_tensor, parameter.ds_shape, parameter.ds_numel = held, parameter.shape, parameter.numel()
    return model


@pytest.mark.parametrize("world", [1, 3, 7])
def test_each_rank_reads_its_own_elements(tmp_path, monkeypatch, world):
    """Neither 3 nor 7 divides widths of 32 and 48; of a bias of 3, some of 7 ranks hold nothing."""
    folder = models.folder(tmp_path / "teacher", "bert")
    whole, _ = models.build("bert")
    pieces = {name: [] for name, _ in whole.named_parameters()}
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        model = scatter(models.build("bert", seed=9)[0], world)
        fill(model, folder)
        for name, parameter in model.named_parameters():
            pieces[name].append(parameter.ds_tensor)
    for name, parameter in whole.named_parameters():
        flat = torch.cat(pieces[name])
        assert torch.equal(flat[: parameter.numel()], parameter.detach().flatten()), name
        assert (flat[parameter.numel() :] == 0).all(), name  # padding, not rubbish
    assert whole.classifier.bias.numel() == 3


def test_a_tied_head_is_read_from_the_embedding(tmp_path):
    folder = models.folder(tmp_path / "teacher", "llama", "causal_lm", tie_word_embeddings=True)
    model = scatter(models.build("llama", "causal_lm", seed=9, tie_word_embeddings=True)[0], 1)
    fill(model, folder)
    expected, _ = models.build("llama", "causal_lm", tie_word_embeddings=True)
    assert torch.equal(model.lm_head.weight.ds_tensor, expected.model.embed_tokens.weight.detach().flatten())


def test_buffers_are_read_whole(tmp_path):
    save_file(Net(seed=5).state_dict() | {"seen": torch.tensor(4.0)}, tmp_path / "model.safetensors")
    model = scatter(Net(seed=9), 3)
    fill(model, tmp_path)
    assert float(model.seen) == 4.0


def test_weights_that_are_not_there_or_have_another_shape_are_told(tmp_path):
    folder = models.folder(tmp_path / "teacher", "bert")
    deeper = scatter(models.build("bert", num_hidden_layers=5)[0], 2)
    with pytest.raises(RuntimeError, match=r"holds no weights for bert\.encoder\.layer\.4"):
        fill(deeper, folder)
    wider = scatter(models.build("bert", intermediate_size=64)[0], 2)
    with pytest.raises(RuntimeError, match=r"has shape \(48, 32\) in .*, the model wants \(64, 32\)"):
        fill(wider, folder)


def test_resident_counts_what_this_rank_holds():
    whole = Teacher(Net().eval(), task="classification")
    size = sum(parameter.numel() for parameter in whole.module.parameters())
    assert whole.resident() == (size, size)
    part = Teacher(scatter(Net(), 3).eval(), task="classification")
    held, total = part.resident()
    assert total == size
    assert size / 3 <= held <= size / 3 + 7  # one element of padding a parameter
