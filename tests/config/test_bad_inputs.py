"""Bad inputs of every sort: status 2, one sentence for each with its key, no traceback, nothing written; in seconds, and without torch."""

import shlex
import subprocess
import sys
import time

import pytest

from distill_system import cli
from tests.config.files import make_all

LOCAL = "models@phases.teacher.model=hub phases.teacher.model.name={files}/model phases.student.model.num_layers=1 "
OUTSIDE = LOCAL + "phases.student.teachers.main.phase=null phases.student.teachers.main.model="
TABLE = LOCAL + "data=table data.path={files}/"

# What is typed after `distill run experiment=demo_quick`, and what must stand in the message.
CASES = [
    # keys misspelt, at each level
    ("trainin.max_steps=8", "trainin: is not a setting here (did you mean 'training'?)"),
    ("training.batch_siz=8", "training.batch_siz: is not a setting here (did you mean 'batch_size'?)"),
    ("phases.teacher.training.lrr=1", "phases.teacher.training.lrr: is not a setting here (did you mean 'lr'?)"),
    ("phases.student.losses.soft.temprature=4", "phases.student.losses.soft.temprature: is not a setting"),
    ("phases.student.losses.sof.temperature=4", "phases.student.losses.sof: is no loss (did you mean 'soft'?)"),
    ("phases.student.teachers.main.phas=teacher", "phases.student.teachers.main.phas: is not a setting"),
    ("phases.student.model.num_layer=2", "phases.student.model.num_layer: is not a setting here (did you mean 'num_l"),
    ("phases.studnt.training.lr=1", "phases.studnt: is no phase (did you mean 'student'?)"),
    ("phases.student.gat.metric=accuracy", "phases.student.gat: is not a setting here (did you mean 'gate'?)"),
    ("data.limt=3", "data.limt: is not a setting here (did you mean 'limit'?)"),
    ("run.nam=x", "run.nam: is not a setting here (did you mean 'name'?)"),
    ("seeds=1", "seeds: is not a setting here (did you mean 'seed'?)"),
    # wrong types
    ("training.lr=fast", "training.lr: is 'fast', must be a number"),
    ("training.batch_size=3.5", "training.batch_size: is 3.5, must be a whole number"),
    ("training.max_steps=true", "training.max_steps: is true, must be a whole number"),
    ("seed=abc", "seed: is 'abc', must be a whole number >= 0"),
    ("seed=true", "seed: is true, must be"),
    ("run=3", "run: is 3, must be a group of settings (name, dir"),
    ("config=null", "config: is null, must be a group"),
    ("phases.student=3", "phases.student: is no phase"),
    ("phases.student.gate=3", "phases.student.gate: is 3, must be a group of settings (metric"),
    ("phases.student.losses=3", "phases.student.losses: is 3, must be a group"),
    ("phases.student.teachers=3", "phases.student.teachers: is 3, must be a group"),
    ("phases.student.teachers.main=teacher", "phases.student.teachers.main: is 'teacher', must be a group of settings"),
    ("phases.student.model=3", "phases.student.model: is 3, must be a group"),
    ('phases.student.model.frozen="*embeddings*"', "phases.student.model.frozen: is '*embeddings*', must be a list"),
    # out of range
    ("training.batch_size=0", "training.batch_size: is 0, must be >= 1"),
    ("training.warmup=1", "training.warmup: is 1, must be >= 0 and < 1"),
    ("phases.student.losses.soft.temperature=0", "phases.student.losses.soft.temperature: is 0, must be > 0"),
    ("phases.student.losses.soft.weight=nan", "phases.student.losses.soft.weight: is nan, must be >= 0"),
    ("training.precision=fp8", "training.precision: is 'fp8', must be one of fp32, bf16, fp16"),
    ("training.strategy=zero4", "training.strategy: is 'zero4' (did you mean 'zero"),
    # choices of groups
    ("experiment=demo_quik", "experiment: is 'demo_quik', which is no choice of group experiment (did you mean 'demo_qui"),
    ("training=zero22", "training: is 'zero22', which is no choice of group training (did you mean 'zero2'?)"),
    ("data=movie_review", "data: is 'movie_review', which is no choice of group data (did you mean 'movie_reviews'?)"),
    ("losses@phases.student.losses.soft=logit_regresion", "(did you mean 'logit_regression'?)"),
    ("losses@phases.student.losses.sft=hard_label", "(did you mean 'losses@phases.student.losses.soft'?)"),
    ("data=null", "data: is null, must be the name of a choice (known: fashion_mnist, hub"),
    ("phases=3", "phases: is 3, must be the name of a choice"),
    ("~phases.studnt", "phases.studnt: isn't there, so it can't be removed (did you mean 'student'?)"),
    # what can't be read
    ("training.lr=[1", "training.lr: is [1, which can't be read"),
    ("training", "training: has no value; write KEY=VALUE"),
    ("=3", "=3: can't be read; write KEY=VALUE"),
    ("training.lr=1,2", "training.lr: is 1,2: several values are a sweep (distill run -m)"),
    ("seed=${oops}", "seed: can't be resolved"),
    ("--overwrite", "--overwrite: is no option here"),
    ("training.lr=???", "training.lr: must be given and has no default"),
    ("data.limit=???", "data.limit: must be given and has no default"),
    # the graph
    ("phases.student.teachers.main.phase=techer", "main.phase: is 'techer', which no phase of this run produces (did you"),
    ("phases.student.teachers.main.phase=student", "phases.student.teachers.main.phase: is 'student': a phase can't take"),
    ("phases.student.model.phase=student", "phases.student.model.phase: is 'student': a phase can't take its own result"),
    ("phases.student.teachers.main.phase=null", "phases.student.teachers.main.phase: is not set: name an earlier phase"),
    ("phases.student.teachers.main.model=a/b", "phases.student.teachers.main: has both phase 'teacher' and model 'a/b'"),
    ("phases.student.teachers.main.weight=0", "phases.student.teachers: all have weight 0: nobody would teach; set phas"),
    ("~phases.student.teachers.main", "phases.student.teachers: is empty, and a phase of kind distill needs at least one"),
    ("~phases.teacher", "phases.student.model.phase: is 'teacher', which no phase of this run produces"),
    ("+phases.teacher.teachers={main:{phase:student}}", "phases.teacher.teachers: is not a setting here"),
    ("losses@phases.teacher.losses.hard=soft_target", "phases.teacher.losses.hard: is SoftTarget, which needs a teacher"),
    ("phases.teacher.losses.hard.weight=0", "phases.teacher.losses: all have weight 0"),
    ("+phases@phases.more=finetune", "phases.more.model: is not chosen; add +models@phases.more.model=hub"),
    ("+phases@phases.report=finetune +models@phases.report.model=minilm", "phases.report: is a folder of the run"),
    # gates, the monitored metric, batches, ranks
    ("phases.student.gate.metric=acuracy", "phases.student.gate.metric: is 'acuracy', which a classification task does"),
    ("phases.student.gate.metric=accuracy", "phases.student.gate.at_least: is null: the gate on accuracy has no bound"),
    ("phases.student.gate.at_least=0.5", "phases.student.gate.metric: is null, but phases.student.gate.at_least is set"),
    ("phases.student.gate={metric:nll,at_least:2,at_most:1}", "phases.student.gate.at_least: is 2, above at_most 1"),
    ("training.monitor=perplexity", "training.monitor: is 'perplexity', which a classification task doesn't have"),
    ("phases.student.training.monitor=f1", "phases.student.training.monitor: is 'f1', which"),
    ("training.batch_size=7", "training.batch_size: is 7, must divide by ranks x accumulation = 2 x 1; nearest: 6 or 8"),
    ("training.accumulation=64", "training.batch_size: is 32, must divide by ranks x accumulation = 2 x 64; nearest: 128"),
    ("phases.student.training.batch_size=7", "phases.student.training.batch_size: is 7, must divide"),
    ("training=single", "training.strategy: is single, which runs on one rank, with 2 ranks"),
    ("phases.student.training.devices=1", "phases.student.training.devices: is 1, but all phases of a run share their"),
    ("training.max_epochs=null", "training.max_steps: and max_epochs are both null"),
    ("training.nodes=2", "training.nodes: is 2: several nodes are started by srun or torchrun"),
    ("training.accelerator=cpu training.precision=fp16", "training.precision: is fp16, which needs a GPU"),
    # lengths, also of the model that another phase makes
    ("{local} data.max_length=65", "data.max_length: is 65, but the model of phase teacher has 64 positions"),
    ("models@phases.student.model=hub phases.student.model.name={files}/short", "model of phase student has 16 positions"),
    ("experiment=lm_quick data.block_size=600", "data.block_size: is 600, but the model of phase teacher has 512"),
    # tables
    ("{table}nothing.csv", "data.path: is '{files}/nothing.csv', which doesn't exist"),
    ("{table}god.csv", "(did you mean 'good.csv'?)"),
    ("{table}empty.csv", "data.path: is '{files}/empty.csv', which is empty"),
    ("{table}header.csv", "data.path: is '{files}/header.csv', which has a header but no rows"),
    ("{table}one_label.csv", "data.label_column: has one label only ('positive')"),
    ("{table}latin.csv", "data.path: line 42 of latin.csv is not UTF-8"),
    ("{table}good.csv data.text_column=txt", "data.text_column: is 'txt', which is no column of good.csv (did you mean"),
    ("{table}good.csv data.test_path={files}/unseen.csv", "data.label_column: has labels in test that no training row"),
    ("{table}doubled.csv", "data.path: doubled.csv has 2 columns named 'label'"),
    ("{table}broken.jsonl", "data.path: line 2 of broken.jsonl is not JSON"),
    ("{table}no.parquet", "data.path: no.parquet is not a parquet file"),
    ("{table}table.xlsx", "data.format: is auto, but 'table.xlsx' doesn't end in"),
    ("{table}good.csv data.validation_fraction=0.6 data.test_fraction=0.6", "data.validation_fraction: is 0.6 and"),
    ("{local} data=table", "data.path: is not set; add data.path=FILE"),
    ("{local} data=hub", "data.name: is not set"),
    ("experiment=lm_quick data=text data.path={files}/nothing", "data.path: is '{files}/nothing', which doesn't exist"),
    # models
    ("phases.teacher.model.name={files}/truncated", "phases.teacher.model.name: is '{files}/truncated', whose model.sa"),
    ("phases.teacher.model.name={files}/garbage", "is no sound safetensors file"),
    ("phases.teacher.model.name={files}/no_config", "whose config.json can't be read"),
    ("phases.teacher.model.name={files}/bad_config", "whose config.json is no JSON"),
    ("phases.teacher.model.name={files}/pickled", "phases.teacher.model.allow_pickle: is false, and"),
    ("phases.teacher.model.name={files}/no_tokenizer", "phases.teacher.model.tokenizer: is null, and"),
    ("phases.teacher.model.name={files}/modle", "phases.teacher.model.name: is '{files}/modle': there is no such folder"),
    ("phases.teacher.model.name=nobody/nothing", "phases.teacher.model.name: is 'nobody/nothing', which is no local fo"),
    ("models@phases.student.model=hub", "phases.student.model.name: is not set"),
    ("{local} phases.student.model.num_layers=3", "phases.student.model.num_layers: is 3, the source has 2 layers"),
    ("{local} phases.student.model={layers:[0,2],num_layers:null}", "phases.student.model.layers[1]: is 2, the sour"),
    ('{local} phases.teacher.model.frozen=["*embedings*"]', "model.frozen[0]: is '*embedings*', but no parameter's na"),
    ('{local} phases.student.model.frozen=["*"]', "phases.student.model.frozen[0]: is '*', which freezes every"),
    # teachers from outside
    ("{outside}{files}/cats", "phases.student.teachers.main.model: has no label 'negative' (known: cat, dog)"),
    ("{outside}{files}/three", "phases.student.teachers.main.model: has 3 labels (a, b, c), the data has 2"),
    ("{outside}{files}/words", "phases.student.teachers.main.model: has another vocabulary than the student: token 4"),
    ("{outside}{files}/truncated", "phases.student.teachers.main.model: is '{files}/truncated', whose model.safetensors"),
    ("{outside}{files}/pickled", "phases.student.teachers.main.model: is '{files}/pickled', which holds a pickle only"),
    ("{outside}nobody/nothing", "phases.student.teachers.main.model: is 'nobody/nothing', which is no local folder"),
    ("{local} models@phases.student.model=from_config phases.student.model.tokenizer=bytes", "main.phase: has another v"),
    # the run folder
    ("run.name=../x", "run.name: is '../x', must be a plain name"),
    ('run.name="a b"', "run.name: is 'a b', must be a plain name"),
    ("run.dir={files}/good.csv", "run.dir: is '{files}/good.csv', but {files}/good.csv is a file"),
    ("run.dir={files} run.name=model", "run.name: is 'model', but {files}/model holds something else than a run"),
    ("run.dir={files} run.name=model run.overwrite=true", "run.name: is 'model', but {files}/model holds something el"),
    ("run.shutdown_timeout_s=0", "run.shutdown_timeout_s: is 0, must be > 0"),
    # code from elsewhere
    ("phases.student.losses.soft._target_=os.system", "phases.student.losses.soft._target_: is 'os.system', which lie"),
    ("data._target_=distill_system.data.tabel.Table", "data._target_: is 'distill_system.data.tabel.Table', but there"),
    ("config.allowed_targets=os", "config.allowed_targets: is 'os', must be a list"),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_all(tmp_path_factory.mktemp("files"))


def refused(typed, files, tmp_path, capsys):
    if "phases.teacher.model.name=" in typed and "models@phases.teacher" not in typed:
        typed = "models@phases.teacher.model=hub " + typed
    typed = typed.replace("{local}", LOCAL).replace("{table}", TABLE).replace("{outside}", OUTSIDE)
    words = shlex.split(typed.replace("{files}", str(files)))
    folder = tmp_path / "runs"
    before = sorted(files.rglob("*"))
    base = [f"run.dir={folder}"] if "run.dir=" not in typed else []
    experiment = [] if "experiment=" in typed else ["experiment=demo_quick"]
    status = cli.main(["run", *experiment, "tracking=none", *base, *words])
    out, err = capsys.readouterr()
    assert status == 2, err
    assert "Traceback" not in err
    assert not folder.exists()
    assert sorted(files.rglob("*")) == before
    assert out == ""
    return err


@pytest.mark.parametrize(("typed", "said"), CASES, ids=[case[0][:60] for case in CASES])
def test_is_refused_in_a_sentence(typed, said, files, tmp_path, capsys):
    err = refused(typed, files, tmp_path, capsys)
    assert said.replace("{files}", str(files)) in err


def test_all_problems_come_out_together(files, tmp_path, capsys):
    """Wrong names and values, and what spans several fields, in one message."""
    wrong = "training.batch_siz=3 training.lr=-1 data.limt=4 phases.student.losses.soft.temperature=0 seed=-1"
    across = (
        "training.batch_size=7 phases.student.gate.metric=x phases.student.teachers.main.phase=z data.max_length=999"
    )
    keys = [word.partition("=")[0] for word in f"{wrong} {across}".split()]
    err = refused(f"{{local}} {wrong} {across}", files, tmp_path, capsys)
    assert err.startswith(f"distill: {len(keys)} problems, nothing was started:\n")
    assert sorted(line.split(":")[0].strip() for line in err.splitlines()[1:]) == sorted(keys)


def test_a_wrong_part_is_not_told_twice(files, tmp_path, capsys):
    assert "1 problem," in refused("phases.student.teachers=3", files, tmp_path, capsys)
    assert "1 problem," in refused("training.lr=???", files, tmp_path, capsys)
    assert "1 problem," in refused("training.monitor=acc", files, tmp_path, capsys)
    assert "1 problem," in refused("experiment=nothing", files, tmp_path, capsys)


def test_a_later_phase_and_a_cycle(files, tmp_path, capsys):
    more = "+phases@phases.third=distill +models@phases.third.model=minilm phases.third.teachers.main.phase=student "
    later = more + "phases.student.teachers.main.phase=third phases.third.teachers.main.phase=teacher"
    assert "main.phase: is 'third', which comes later; put it first" in refused(later, files, tmp_path, capsys)
    cycle = more + "phases.student.teachers.main.phase=third"
    assert "main.phase: is 'third', and the two wait for each other (a cycle)" in refused(
        cycle, files, tmp_path, capsys
    )


@pytest.mark.parametrize(
    "place",
    [
        "models@phases.student.model=from_config phases.student.model.tokenizer=bytes +phases.student.model.x=[{node}]",
        "phases.student.model={_target_:no.such,source:{node}}",
        "+phases.student.losses.soft.part={node}",
        "+data.part={node}",
    ],
)
def test_nothing_outside_the_allow_list_is_ever_called(place, files, tmp_path, capsys):
    """Wherever the node hides; a check that builds objects must not reach it."""
    mark = tmp_path / "called"
    node = f'{{_target_:os.system,command:"touch {mark}"}}'
    words = [word.replace("{node}", node) for word in place.split()]
    assert cli.main(["run", "experiment=demo_quick", f"run.dir={tmp_path / 'runs'}", *words]) == 2
    assert "_target_: is " in capsys.readouterr().err
    assert not mark.exists()


def test_a_refusal_takes_seconds_and_no_torch(files, tmp_path):
    """In a fresh process: all the checks ran, and the heavy libraries were never imported."""
    words = ["run", "experiment=demo_quick", f"run.dir={tmp_path}/runs", *shlex.split(OUTSIDE.format(files=files))]
    words[-1] += f"{files}/cats"
    code = (
        "import sys; from distill_system import cli; status = cli.main(sys.argv[1:]);"
        "print(status, sorted({'torch', 'lightning', 'deepspeed', 'transformers', 'datasets', 'wandb'} & set(sys.modules)))"
    )
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert result.stdout == "2 []\n", result.stderr
    assert "has no label 'negative'" in result.stderr
    assert time.monotonic() - began < 5
