"""W&B: failures are one warning, secrets reach no file, a resume sends nothing twice."""

import json
import logging
import sys
import time
import types

import pytest

from distill_system.tracking.journal import Journal
from distill_system.tracking.secrets import MASK, is_secret, mask, mask_command
from distill_system.tracking.wandb import NoTracking, Wandb, choose_mode, run_id

KEY = "0123456789abcdef0123456789abcdefPLANTED"


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "run": "demo", "created": "2026-01-01T00:00:00"}))
    return folder


class FakeRun:
    def __init__(self, store):
        self.store, self.summary = store, {}

    def log(self, figures, step=None):
        self.store["logged"].append((step, {k: v for k, v in figures.items() if k != "_timestamp"}))

    def log_artifact(self, artifact):
        self.store["artifacts"].append(artifact)

    def finish(self, exit_code=None):
        self.store["finished"].append((exit_code, self.summary))


class FakeArtifact:
    def __init__(self, name, type, metadata):
        self.name, self.type, self.metadata, self.folders = name, type, metadata, []

    def add_dir(self, folder):
        self.folders.append(folder)


@pytest.fixture
def fake(monkeypatch):
    store = {"inits": [], "logged": [], "finished": [], "artifacts": []}

    def init(**arguments):
        store["inits"].append(arguments)
        if store.get("fail") in ("always", arguments["mode"]):
            raise RuntimeError(f"no route to host, key {KEY}")
        return FakeRun(store)

    module = types.ModuleType("wandb")
    module.Artifact = FakeArtifact
    module.init, module.Settings, module.Html = init, dict, lambda text, inject: text[:20]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return store


def lines(steps, **extra):
    return [{"phase": "student", "step": step, "time": 100.0 + step, "loss": 1 / step, **extra} for step in steps]


def test_lines_reach_wandb_with_group_stable_id_and_summary(run_folder, fake):
    tracker = Wandb(mode="offline", tags=["x"])
    tracker.start_phase(run_folder, "demo", "student", {"kind": "distill", "hub_token": "s3cret"})
    tracker.feed(
        [
            *lines([1, 2]),
            {"phase": "student", "step": 2, "event": "resume"},
            {"phase": "student", "step": 2, "valid/accuracy": 0.5},
        ]
    )
    tracker.finish_phase({"accuracy": 0.8, "ece": None}, ["w"])
    (init,) = fake["inits"]
    assert (init["group"], init["name"], init["id"]) == (
        "demo",
        "demo/student",
        run_id("demo", "student", "2026-01-01T00:00:00"),
    )
    assert (init["resume"], init["job_type"], init["tags"], init["config"]["hub_token"]) == (
        "allow",
        "distill",
        ["x"],
        MASK,
    )
    assert fake["logged"] == [(1, {"loss": 1.0}), (2, {"loss": 0.5}), (2, {"valid/accuracy": 0.5})]
    assert fake["finished"] == [(0, {"test/accuracy": 0.8, "state": "finished", "warnings": ["w"]})]


def test_online_resume_sends_only_what_is_new_even_after_a_rewind(run_folder, fake, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    book = Journal(run_folder / "metrics.jsonl")
    first = Wandb()
    assert first.mode == "online"
    first.start_phase(run_folder, "demo", "student", {})
    book.append(lines([1, 2, 3]))
    first.feed(lines([1, 2, 3]))
    first._wait()  # killed here; the checkpoint is of step 2
    book.rewind("student", 2)
    second = Wandb()
    second.start_phase(run_folder, "demo", "student", {})
    second.feed(lines([3, 4]))
    second.finish_phase({}, [])
    assert [step for step, _ in fake["logged"]] == [1, 2, 3, 4]
    assert fake["inits"][0]["id"] == fake["inits"][1]["id"]


def test_offline_resume_writes_the_whole_phase_anew_and_removes_the_old_file(run_folder, fake):
    book = Journal(run_folder / "metrics.jsonl")
    first = Wandb(mode="offline")
    first.start_phase(run_folder, "demo", "student", {})
    book.append(lines([1, 2]))
    first.feed(lines([1, 2]))
    first._wait()
    old = run_folder / "wandb" / f"offline-run-20260101_000000-{fake['inits'][0]['id']}"
    other = run_folder / "wandb" / "offline-run-20260101_000000-ffff"
    old.mkdir(), other.mkdir()
    fake["logged"].clear()
    second = Wandb(mode="offline")
    second.start_phase(run_folder, "demo", "student", {})
    second.feed(lines([3]))
    second.finish_phase({}, [])
    assert [step for step, _ in fake["logged"]] == [1, 2, 3]
    assert not old.exists()
    assert other.exists()


def test_failing_init_is_one_warning_without_the_key(run_folder, fake, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    fake["fail"] = "always"
    tracker = Wandb(mode="offline")
    with caplog.at_level(logging.WARNING):
        tracker.start_phase(run_folder, "demo", "student", {})
        for step in range(1, 5):
            tracker.feed(lines([step]))
        tracker.finish_phase({"accuracy": 1.0}, [])
        tracker.start_phase(run_folder, "demo", "again", {})
        tracker.attach_report(run_folder / "none.html")
    assert len(caplog.records) == 1
    assert "no route to host" in caplog.text
    assert KEY not in caplog.text
    assert fake["logged"] == []


def test_online_that_fails_goes_on_offline(run_folder, fake, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    fake["fail"] = "online"
    tracker = Wandb()
    tracker.start_phase(run_folder, "demo", "student", {})
    tracker.feed(lines([1]))
    tracker.finish_phase({}, [])
    assert [init["mode"] for init in fake["inits"]] == ["online", "offline"]
    assert len(caplog.records) == 1
    assert fake["logged"] == [(1, {"loss": 1.0})]


def test_a_hanging_wandb_does_not_hold_training(run_folder, fake, monkeypatch):
    monkeypatch.setattr("distill_system.tracking.wandb.INIT_TIMEOUT_S", 0.2)
    monkeypatch.setattr("distill_system.tracking.wandb.FINISH_TIMEOUT_S", 0.2)
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: time.sleep(3))
    tracker = Wandb(mode="offline")
    began = time.monotonic()
    tracker.start_phase(run_folder, "demo", "student", {})
    tracker.feed(lines(range(1, 1000)))
    assert time.monotonic() - began < 0.5
    tracker.finish_phase({}, [])
    assert time.monotonic() - began < 2
    assert tracker.problem is not None


def test_mode_follows_key_and_environment(run_folder, monkeypatch, tmp_path):
    assert [choose_mode(mode) for mode in ("auto", "online", "offline", "disabled")] == [
        "offline",
        "offline",
        "offline",
        "disabled",
    ]
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert choose_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert (choose_mode("auto"), choose_mode("online")) == ("offline", "online")


def test_a_real_offline_run_holds_the_figures_and_no_secret(run_folder, monkeypatch):
    """The real client, a planted key in the environment, in settings, in a summary and on the command line."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(sys, "argv", ["distill", f"hub.token={KEY}"])
    tracker = Wandb(mode="offline")
    tracker.start_phase(
        run_folder, "demo", "student", {"kind": "distill", "hub": {"api_key": KEY, "note": f"log in with {KEY}"}}
    )
    tracker.feed(lines([1, 2, 3]))
    tracker.finish_phase({"accuracy": 0.8125}, [f"could not log in with {KEY}"])
    report = run_folder / "report.html"
    report.write_text("<p>report</p>")
    tracker.attach_report(report)
    assert tracker.problem is None
    found = list((run_folder / "wandb").glob("offline-run-*"))
    assert len(found) == 2
    content = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    assert [path for path, data in content.items() if KEY.encode() in data] == []
    (record,) = [data for path, data in content.items() if path.suffix == ".wandb" and b"student" in data]
    assert b"test/accuracy" in record
    assert b"0.8125" in record


def test_masks():
    assert [
        word
        for word in ("api_key", "hubToken", "SECRET", "password", "wandb.key", "AWS_ACCESS_KEY_ID")
        if not is_secret(word)
    ] == []
    assert [
        word
        for word in ("tokenizer", "tokens_per_s", "monkey", "max_tokens", "author", "keep_last", "secretary")
        if is_secret(word)
    ] == []
    settings = {
        "data": {"path": "https://me:pw@host/x", "token": "t", "keys": ["a"], "use_auth": True, "password": None},
        "list": [{"secret": 5}],
    }
    assert mask(settings) == {
        "data": {"path": f"https://{MASK}@host/x", "token": MASK, "keys": MASK, "use_auth": True, "password": None},
        "list": [{"secret": MASK}],
    }
    assert (
        mask_command("distill run a=1 hub.token=abc x.lr=2 hub.key='a b'")
        == f"distill run a=1 hub.token={MASK} x.lr=2 hub.key={MASK}"
    )


def test_no_tracking_takes_the_same_calls(tmp_path):
    tracker = NoTracking()
    tracker.start_phase(tmp_path, "demo", "student", {})
    tracker.feed(lines([1]))
    tracker.finish_phase({}, [])
    tracker.attach_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_models_go_up_where_it_is_asked_for_and_checkpoints_never(run_folder, fake):
    for phase, form in (("student", "model"), ("student", "packed"), ("cohort/a", "model"), ("other", "packed")):
        folder = run_folder / phase / form
        folder.mkdir(parents=True)
        if phase != "other":  # without a passport it isn't finished
            (folder / "compression.json").write_text(json.dumps({"digest": f"{phase}-{form}", "hub_token": KEY}))
    (run_folder / "student" / "checkpoints").mkdir()
    for models in (False, True):
        tracker = Wandb(mode="offline", models=models)
        for phase in ("student", "cohort.a", "other"):
            tracker.start_phase(run_folder, "de mo", phase, {})
            tracker.finish_phase({}, [])
        assert tracker.problem is None
        assert len(fake["artifacts"]) == 3 * models
    assert [(a.name, a.type, a.metadata["digest"]) for a in fake["artifacts"]] == [
        ("de_mo-student", "model", "student-model"),
        ("de_mo-student-packed", "model", "student-packed"),
        ("de_mo-cohort.a", "model", "cohort/a-model"),
    ]
    assert fake["artifacts"][1].folders == [str(run_folder / "student" / "packed")]
    assert KEY not in str([a.metadata for a in fake["artifacts"]])
