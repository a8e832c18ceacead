"""A checkpoint gives back exactly what was saved, and one that is not whole is found out and passed over."""

import errno
import json
import shutil

import pytest
import torch

from distill_system.files import TEMPORARY, digest_value
from distill_system.losses.task import HardLabel
from distill_system.training import checkpoint
from distill_system.training.checkpoint import Damaged, Store
from distill_system.training.engine import PlainEngine
from distill_system.training.objective import Objective, Term
from tests.training.tiny import CPU, Net, engine, equal, state, train_step, training

NOTE = {"identity": "mine", "progress": {"step": 0, "best_step": {}}}


@pytest.fixture
def trained():
    one = engine()
    for number in range(3):
        train_step(one, number)
    return one


def save(folder, one, step=3, **note):
    path = folder / f"step_{step:08d}"
    checkpoint.save(path, one, NOTE | {"step": step} | note)
    return path


def rewrite(path, **changes):
    """state.json with other values, as a program that means it would write it."""
    document = json.loads((path / "state.json").read_text())
    document.pop("digest")
    document |= changes
    (path / "state.json").write_text(json.dumps(document | {"digest": digest_value(document)}))


def test_what_is_loaded_goes_on_bit_for_bit(trained, tmp_path):
    path = save(tmp_path, trained)
    other = engine(seed=1)
    assert not equal(state(other), state(trained))
    checkpoint.load(Store(path), other)
    assert equal(state(other), state(trained))
    assert other.scalars() == {"updates": 3.0}
    for number in range(3, 6):
        assert train_step(other, number) == train_step(trained, number)
    assert equal(state(other), state(trained))


def test_saving_disturbs_nothing(trained, tmp_path):
    before = state(trained)
    save(tmp_path, trained)
    assert equal(state(trained), before)


def test_a_checkpoint_before_the_first_step(tmp_path):
    fresh, other = engine(), engine(seed=1)
    checkpoint.load(Store(save(tmp_path, fresh, step=0)), other)
    assert train_step(fresh, 0) == train_step(other, 0)
    assert equal(state(fresh), state(other))


def test_it_holds_frozen_parameters_and_buffers_and_nothing_else(trained, tmp_path):
    store = Store(save(tmp_path, trained))
    weights = {name for name, part in store.places if part == "weight"}
    assert "roles.student.frozen.weight" in weights
    assert "roles.student.seen" in weights
    assert "roles.student.scratch" not in weights  # a buffer that state_dict doesn't keep
    assert all(name.startswith("roles.student.") for name in weights)
    moments = {name for name, part in store.places if part == "exp_avg"}
    assert moments == {f"roles.student.{name}" for name in ("embedding.weight", *TRAINED)}
    other = engine(seed=1)
    checkpoint.load(store, other)
    assert float(other.objective.student.seen) == 3.0
    assert torch.equal(other.objective.student.frozen.weight, trained.objective.student.frozen.weight)


TRAINED = ("norm.weight", "norm.bias", "head.weight", "head.bias")


def test_the_best_weights_come_without_moments(trained, tmp_path):
    path = tmp_path / "best_00000003"
    checkpoint.save(path, trained, NOTE, weights_only=True)
    assert {part for _, part in Store(path).places} == {"weight"}
    other = engine(seed=1)
    train_step(other, 0)
    moments = {name: value for name, value in state(other).items() if "exp_avg" in name or name == "updates"}
    checkpoint.load(Store(path), other, weights_only=True)
    after = state(other)
    assert all(torch.equal(after[name], value) for name, value in moments.items())
    assert all(torch.equal(after[name], v) for name, v in state(trained).items() if name.endswith("|weight"))


def truncate(path):
    file = path / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def change(path):
    file = path / "rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def change_state(path):
    file = path / "state.json"
    file.write_text(file.read_text().replace('"updates": 3.0', '"updates": 2.0'))


DAMAGES = {
    "truncated": (truncate, "rank_00000.safetensors that is truncated or was changed"),
    "one changed bit": (change, "rank_00000.safetensors that is truncated or was changed"),
    "file gone": (lambda path: (path / "rank_00000.safetensors").unlink(), "lacks rank_00000.safetensors"),
    "state torn": (
        lambda path: (path / "state.json").write_text('{"version": 1, "st'),
        "state.json that can't be read",
    ),
    "state gone": (lambda path: (path / "state.json").unlink(), "state.json that can't be read"),
    "state a list": (lambda path: (path / "state.json").write_text("[]"), "state.json that can't be read"),
    "state changed": (change_state, "state.json that was changed"),
    "other version": (lambda path: rewrite(path, version=2), "has version 2, this program reads 1"),
    "foreign": (lambda path: rewrite(path, identity="theirs"), "is of another phase or of other settings"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_checkpoint_is_passed_over_for_the_one_before(trained, tmp_path, damage):
    spoil, words = DAMAGES[damage]
    good = save(tmp_path, trained, step=2)
    spoil(save(tmp_path, trained, step=3))
    store, complaints = checkpoint.newest(tmp_path, "mine")
    assert store.folder == good
    assert len(complaints) == 1
    assert complaints[0].startswith("checkpoint step_00000003 ")
    assert words in complaints[0]
    assert complaints[0].endswith("training went on from step_00000002")


def test_when_none_is_good_it_says_so_of_each(trained, tmp_path):
    truncate(save(tmp_path, trained, step=2))
    change(save(tmp_path, trained, step=3))
    store, complaints = checkpoint.newest(tmp_path, "mine")
    assert store is None
    assert [complaint.split()[1] for complaint in complaints] == ["step_00000003", "step_00000002"]
    assert all(complaint.endswith("training began anew") for complaint in complaints)
    assert checkpoint.newest(tmp_path / "nothing", "mine") == (None, [])


def test_a_rank_that_finds_damage_is_heard_by_all(trained, tmp_path, monkeypatch):
    save(tmp_path, trained)
    monkeypatch.setattr(checkpoint.distributed, "everyone", lambda value: [value, "lacks rank_00001.safetensors"])
    store, complaints = checkpoint.newest(tmp_path, "mine")
    assert store is None
    assert "lacks rank_00001" in complaints[0]


def test_missing_elements_and_other_models_are_refused(trained, tmp_path):
    store = Store(save(tmp_path, trained))
    del store.places["roles.student.head.bias", "exp_avg"]
    with pytest.raises(Damaged, match=r"0 of 3 elements of roles.student.head.bias \(exp_avg\)"):
        checkpoint.load(store, engine(seed=1))
    store.state["shapes"]["roles.student.head.bias"] = [4]
    with pytest.raises(Damaged, match="another model"):
        checkpoint.load(store, engine(seed=1))


def steps(folder, pattern="step_*"):
    return sorted(int(path.name.split("_")[1]) for path in folder.glob(pattern))


def test_pruning_keeps_the_newest(trained, tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, trained, step)
    checkpoint.prune(tmp_path, 2, 3)
    assert steps(tmp_path) == [2, 3]


@pytest.mark.parametrize("spoil", [truncate, lambda path: rewrite(path, identity="theirs")])
def test_pruning_never_takes_the_only_good_one(trained, tmp_path, spoil):
    """After damage at step 8 the run went on from 4 and wrote 6: the damaged 8 must not count as the newest."""
    save(tmp_path, trained, 4)
    spoil(save(tmp_path, trained, 8))
    save(tmp_path, trained, 6)
    checkpoint.prune(tmp_path, 1, 6)
    assert steps(tmp_path) == [6]
    store, complaints = checkpoint.newest(tmp_path, "mine")
    assert (store.folder.name, complaints) == ("step_00000006", [])


def test_best_weights_go_when_no_kept_checkpoint_speaks_of_them(trained, tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / f"best_{step:08d}", trained, NOTE, weights_only=True)
    save(tmp_path, trained, 2, progress={"best_step": {"student": 2}})
    save(tmp_path, trained, 4, progress={"best_step": {"student": 3}})
    checkpoint.prune_best(tmp_path)
    assert steps(tmp_path, "best_*") == [2, 3]
    shutil.rmtree(tmp_path / "step_00000002")
    checkpoint.prune_best(tmp_path)
    assert steps(tmp_path, "best_*") == [3]


def test_leftovers_of_a_killed_save_are_no_checkpoint_and_go(trained, tmp_path):
    half = tmp_path / f"{TEMPORARY}step_00000009"
    half.mkdir()
    (half / "rank_00000.safetensors").write_bytes(b"half")
    assert list(checkpoint.existing(tmp_path)) == []
    save(tmp_path, trained)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


def test_a_step_that_is_saved_again_is_replaced(trained, tmp_path):
    save(tmp_path, trained, note="old")
    train_step(trained, 3)
    path = save(tmp_path, trained, note="new")
    assert Store(path).state["note"] == "new"
    assert Store(path).state["scalars"] == {"updates": 4.0}
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


@pytest.mark.parametrize("place", ["save_file", "write_json"])
def test_a_full_disk_leaves_what_was_there(trained, tmp_path, monkeypatch, place):
    before = save(tmp_path, trained)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    train_step(trained, 3)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, place, full)
        for step in (3, 4):
            with pytest.raises(OSError, match="No space left") as raised:
                save(tmp_path, trained, step)
            assert raised.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]
    assert Store(before).state["scalars"] == {"updates": 3.0}


def test_the_library_s_own_error_for_a_full_disk_is_one_too(trained, tmp_path, monkeypatch):
    def full(*_, **__):
        raise checkpoint.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="could not be written") as raised:
        save(tmp_path, trained)
    assert raised.value.errno == errno.ENOSPC


def test_one_role_is_brought_back_and_the_other_stays(tmp_path):
    """Roles have their best weights at different steps."""
    terms = [Term(f"{role}/hard", role) for role in "ab"]

    def made(seeds):
        losses = {term.name: HardLabel() for term in terms}
        roles = {role: Net(seed) for role, seed in zip("ab", seeds, strict=True)}
        return PlainEngine(Objective(roles, losses, task="classification", terms=terms), training(), CPU)

    before, now = made((1, 2)), made((3, 4))
    checkpoint.save(tmp_path / "best", before, NOTE, weights_only=True)
    store, fault = checkpoint.opened(tmp_path / "best", "mine")
    assert fault == ""
    checkpoint.load(store, now, weights_only=True, role="a")
    heads = {role: model.head.weight for role, model in now.objective.roles.items()}
    assert torch.equal(heads["a"], before.objective.roles["a"].head.weight)
    assert torch.equal(heads["b"], Net(4).head.weight)
