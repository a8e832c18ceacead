"""Weights & Biases, fed from the journal by a thread of its own: what goes wrong there is one warning and never training's problem.

A group is a run, a W&B run is a phase, and its id is a function of run and phase, so that a resume continues it. Two cases differ:

- online, W&B holds what it was sent: `<run folder>/wandb/position.json` says how far that is, and lines up to there are not sent again;
- offline, a file can't be continued (wandb#2423): a resume writes a new one from the journal's first line and removes the old one, so that
  `wandb sync` always finds each phase once and whole.
"""

import contextlib
import hashlib
import importlib
import json
import logging
import netrc
import os
import queue
import re
import shutil
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from distill_system.artifacts import PASSPORT
from distill_system.files import read_json, write_json
from distill_system.tracking import journal
from distill_system.tracking.secrets import mask, mask_text

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 30.0
NOT_FIGURES = ("phase", "step", "time", "event")


class NoTracking:
    """Tracks nothing (`tracking=none`); metrics.jsonl and the report are written all the same."""

    def start_phase(self, run_folder: Path, run_name: str, phase: str, settings: dict[str, Any]) -> None:
        """Called after the journal was rewound and before the first `feed` of a phase."""

    def feed(self, lines: list[dict[str, Any]]) -> None:
        """Called with lines right after they were appended to the journal."""

    def finish_phase(
        self, summary: dict[str, Any], warnings: list[str], state: Literal["finished", "failed", "gated"] = "finished"
    ) -> None:
        """Called once at a phase's end with its test metrics and sizes."""

    def attach_report(self, path: Path) -> None:
        """Called with the path of report/index.html."""


def has_key() -> bool:
    """Whether W&B would find an API key, in the environment or in ~/.netrc; the key itself is not kept."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def choose_mode(mode: str) -> str:
    """`auto` follows WANDB_MODE, else is online with a key and offline without; online without a key is offline, never a question."""
    if mode == "auto":
        wanted = os.environ.get("WANDB_MODE", "")
        mode = wanted if wanted in ("online", "offline", "disabled") else "online"
    return "offline" if mode == "online" and not has_key() else mode


def run_id(run_name: str, phase: str, created: str) -> str:
    """The same for a run wherever its folder lies, another one when the run was started afresh."""
    return hashlib.sha256(json.dumps([run_name, phase, created]).encode()).hexdigest()[:16]


class Wandb(NoTracking):
    """Sends a run's lines to W&B.

    Args:
        project: W&B project.
        entity: user or team; null: the key's own.
        mode: `auto` is online with a key (WANDB_API_KEY or ~/.netrc), offline without.
        tags: words to find the runs by.
        models: whether the model that a phase leaves goes to W&B too, as an artifact (and its packed form as another); checkpoints never do.
    """

    def __init__(
        self,
        project: str = "distill_system",
        entity: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
        tags: list[str] | None = None,
        models: bool = False,
    ) -> None:
        self.project, self.entity, self.tags = project, entity, list(tags or [])
        self.models = models
        self.mode = choose_mode(mode)
        self.problem: str | None = None  # the one warning, once there is one
        self._tasks: queue.Queue[Callable[[], None]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._run: Any = None
        self._folder, self._run_name = Path(), ""
        self._phase, self._id = "", ""
        self._sent = (-1, -1)  # (step, number of the line at that step) of the last line W&B got
        self._here = (-1, -1)  # the same of the line that the stream stands at

    # -- what the pipeline calls: all of it returns at once, except finish_phase and attach_report, which wait a limited time

    def start_phase(self, run_folder: Path, run_name: str, phase: str, settings: dict[str, Any]) -> None:
        if self._off():
            return
        self._folder, self._run_name = Path(run_folder), run_name
        try:  # read now: what is appended from here on comes through feed
            past = [line for line in journal.read(self._folder / "metrics.jsonl") if line.get("phase") == phase]
        except OSError:
            past = []
        masked = mask(settings)
        self._do(lambda: self._open(phase, masked, resume=bool(past)))
        self._do(lambda: self._send(past))

    def feed(self, lines: list[dict[str, Any]]) -> None:
        if not self._off() and lines:
            copies = [dict(line) for line in lines]
            self._do(lambda: self._send(copies))

    def finish_phase(
        self, summary: dict[str, Any], warnings: list[str], state: Literal["finished", "failed", "gated"] = "finished"
    ) -> None:
        if not self._off():
            values = mask(journal.plain(summary))
            self._do(lambda: self._close(values, [mask_text(w) for w in warnings], state))
            self._wait()

    def attach_report(self, path: Path) -> None:
        if not self._off() and self._run_name:
            self._do(lambda: self._attach(Path(path)))
            self._wait()

    # -- the thread

    def _off(self) -> bool:
        return self.problem is not None or self.mode == "disabled"

    def _do(self, task: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="wandb-feed", daemon=True)
            self._thread.start()
        self._tasks.put(task)

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            if not self._off():
                try:
                    task()
                except BaseException as error:  # wandb raises more than Exception (SystemExit from its own checks)
                    self._give_up(f"{type(error).__name__}: {error}")

    def _wait(self) -> None:
        done = threading.Event()
        self._do(done.set)
        # A task that was given up never sets it: look at both, a few times a second.
        for _ in range(int((INIT_TIMEOUT_S + FINISH_TIMEOUT_S) * 5)):
            if done.wait(0.2) or self._off():
                return
        self._give_up(f"no answer in {INIT_TIMEOUT_S + FINISH_TIMEOUT_S:.0f} s")

    def _give_up(self, reason: str) -> None:
        if self.problem is None:
            short = mask_text(" ".join(reason.split()))[:300]
            self.problem = f"W&B is left out from here on ({short}); metrics.jsonl and the report have everything"
            log.warning(self.problem)

    # -- what the thread does

    def _open(self, phase: str, settings: dict[str, Any], resume: bool) -> None:
        manifest = self._folder / "manifest.json"
        created = str(read_json(manifest).get("created", "")) if manifest.exists() else ""
        self._phase, self._id = phase, run_id(self._run_name, phase, created)
        self._here = self._sent = (-1, -1)
        position = self._positions().get(phase, {})
        if resume and self.mode == "online" and position.get("id") == self._id and position.get("mode") == "online":
            self._sent = (int(position["step"]), int(position["line"]))
        config, job = {"phase": phase, **settings}, str(settings.get("kind") or phase)
        try:
            self._run = self._init(phase, config, job)
        except Exception as error:
            if self.mode != "online":
                raise
            log.warning(
                "W&B does not answer (%s); it is recorded offline below %s/wandb", type(error).__name__, self._folder
            )
            self.mode, self._sent = "offline", (-1, -1)
            self._run = self._init(phase, config, job)

    def _init(self, name: str, config: dict[str, Any], job: str) -> Any:
        wandb = importlib.import_module("wandb")
        (self._folder / "wandb").mkdir(parents=True, exist_ok=True)
        old = list((self._folder / "wandb").glob(f"offline-run-*-{self._id}"))
        # No git state, code or command line: a diff or an override may hold a secret.
        quiet = {"console": "off", "silent": True, "disable_git": True, "disable_code": True, "x_disable_meta": True}
        quiet |= {"init_timeout": INIT_TIMEOUT_S, "finish_timeout": FINISH_TIMEOUT_S, "x_save_requirements": False}
        quiet |= {"program": "distill", "program_relpath": "distill", "program_abspath": "distill"}
        known = getattr(wandb.Settings, "model_fields", quiet)  # older releases know fewer
        run = wandb.init(
            project=self.project, entity=self.entity, group=self._run_name, name=f"{self._run_name}/{name}", id=self._id, job_type=job,
            tags=self.tags, config=config, dir=str(self._folder), mode=self.mode, resume="allow",
            settings=wandb.Settings(**{key: value for key, value in quiet.items() if key in known}),
        )  # fmt: skip
        if self.mode == "offline":
            live = Path(
                getattr(run, "dir", "")
            ).parent.name  # a run that starts within the same second has the same name
            for folder in old:
                if folder.name != live:
                    shutil.rmtree(folder, ignore_errors=True)
        return run

    def _send(self, lines: list[dict[str, Any]]) -> None:
        if self._run is None:
            return
        before = self._sent
        for line in lines:
            figures = {
                key: value for key, value in line.items() if key not in NOT_FIGURES and isinstance(value, int | float)
            }
            if line.get("phase") != self._phase or not figures or "step" not in line:
                continue
            step = int(line["step"])
            self._here = (step, self._here[1] + 1 if step == self._here[0] else 0)
            if self._here > self._sent:
                stamp = {"_timestamp": float(line["time"])} if "time" in line else {}
                self._run.log(figures | stamp, step=step)
                self._sent = self._here
        if self._sent != before:
            place = {"id": self._id, "mode": self.mode, "step": self._sent[0], "line": self._sent[1]}
            write_json(self._position_file, self._positions() | {self._phase: place})

    def _close(self, summary: dict[str, Any], warnings: list[str], state: str) -> None:
        if self._run is not None:
            self._run.summary.update({f"test/{key}": value for key, value in summary.items() if value is not None})
            self._run.summary.update({"state": state, "warnings": warnings})
            if self.models:
                self._hand_in()
            run, self._run = self._run, None
            run.finish(exit_code=0 if state == "finished" else 1)

    def _hand_in(self) -> None:
        """The phase's finished folders; a member's lie below its phase's."""
        wandb = importlib.import_module("wandb")
        for form in ("model", "packed"):
            folder = self._folder.joinpath(*self._phase.split("."), form)
            if not (folder / PASSPORT).is_file():
                continue
            passport = read_json(folder / PASSPORT)
            told = {
                key: passport[key] for key in ("digest", "task", "format", "metrics", "size", "bits") if key in passport
            }
            name = re.sub(r"[^\w.-]", "_", f"{self._run_name}-{self._phase}{'-packed' if form == 'packed' else ''}")
            artifact = wandb.Artifact(name, type="model", metadata=mask(told))
            artifact.add_dir(str(folder))
            self._run.log_artifact(artifact)

    def _attach(self, path: Path) -> None:
        wandb = importlib.import_module("wandb")
        if self._run is not None:
            self._run.log({"report": wandb.Html(path.read_text(encoding="utf-8"), inject=False)})
            return
        phase_id, self._id = self._id, run_id(self._run_name, "report", self._id)
        try:
            run = self._init("report", {}, "report")
            run.log({"report": wandb.Html(path.read_text(encoding="utf-8"), inject=False)})
            run.finish()
        finally:
            self._id = phase_id

    @property
    def _position_file(self) -> Path:
        return self._folder / "wandb" / "position.json"

    def _positions(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found = read_json(self._position_file)
            if isinstance(found, dict):
                return found
        return {}
