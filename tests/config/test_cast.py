"""Who takes part: cohorts, students, teachers, hints and chains that can't be, each refused in a sentence with its key before anything is started."""

import shlex

import pytest

from distill_system import cli
from distill_system.config.recipes import members_of, outputs, phase_of, recipe_of
from distill_system.config.steps import Shape
from tests.config.files import make_all, model_folder

TEACHER = "models@phases.teacher.model=hub phases.teacher.model.name={files}/model phases.student.model.num_layers=1"
SIZES = "{hidden_size:8,num_hidden_layers:%d,num_attention_heads:2,intermediate_size:8,tokenizer_phase:teacher}"
MACROS = {  # what stands for many words below
    "{cohort}": "+phases@phases.cohort=mutual "
    + " ".join(f"+models@phases.cohort.members.{m}=from_config phases.cohort.members.{m}={{small1}}" for m in "ab"),
    "{students}": "phases.student.model=null +models@phases.student.students.small=from_layers "
    "phases.student.students.small={phase:teacher,num_layers:1}",
    "{chain}": "{large} {empty} +models@phases.chain.model=from_config phases.chain.model={small2}",
    "{layers}": "{empty} +models@phases.chain.model=from_layers phases.chain.model.phase=teacher",
    "{empty}": "+phases@phases.chain=assistants phases.chain.teachers.main.phase=teacher",
    "{mid}": "+models@phases.chain.assistants.mid=from_config phases.chain.assistants.mid=",
    "{large}": "phases.teacher.model.name={files}/large",
    "{hint}": "+losses@phases.student.losses.hint=hint phases.student.losses.hint.layers=",
    **{f"{{small{layers}}}": SIZES % layers for layers in (1, 2, 3)},
}

CASES = [
    # cohorts
    ("{cohort} ~phases.cohort.members.b", "phases.cohort.members: has 1 entry; a cohort needs two members at least: add"),
    ("+phases@phases.cohort=mutual", "phases.cohort.members: is not chosen; add +models@phases.cohort.members.a=hub"),
    ("{cohort} phases.cohort.seeds={a:3,b:3}", "phases.cohort.seeds.b: is 3, as that of a, which has the same recipe"),
    ("{cohort} phases.cohort.seeds={c:3}", "phases.cohort.seeds.c: names no member (a, b)"),
    (
        "{cohort} phases.cohort.cohort.placement=spread training.devices=3 training.batch_size=36",
        "phases.cohort.cohort.placement: is spread, but 3 ranks can't be dealt to 2 members; nearest: training.devices=2 or 4",
    ),
    (
        "{cohort} phases.cohort.cohort.placement=spread training.devices=1",
        "can't be dealt to 2 members; nearest: training.devices=2, or placement=together",
    ),
    (
        "{cohort} phases.cohort.cohort.placement=spread losses@phases.cohort.peer_losses.peer=hint",
        "phases.cohort.peer_losses.peer: reads hidden of peers, but spread members send each other logits only; set phas",
    ),
    (
        "{cohort} losses@phases.cohort.peer_losses.peer=hard_label",
        "phases.cohort.peer_losses.peer: is HardLabel, which doesn't listen to anybody; put it under phases.cohort.losses",
    ),
    ("{cohort} ~phases.cohort.peer_losses.peer", "phases.cohort.peer_losses: is empty, a phase needs at least one loss"),
    ("{cohort} losses@phases.cohort.losses.hard=soft_target", "phases.cohort.losses.hard: is SoftTarget, which needs a t"),
    # students
    ("+models@phases.student.students.small=from_layers phases.student.students.small.phase=teacher", "phases.student.model: is set beside students; keep"),
    ("{students} +models@phases.student.students.model=from_layers", "phases.student.students.model: must be a plain name"),
    ("{students} +models@phases.student.students._a=from_layers", "phases.student.students._a: must be a plain nam"),
    ("{students} phases.student.students.small.num_layers=9", "phases.student.students.small.num_layers: is 9, the sour"),
    # teachers
    ("phases.student.teachers.main.weight=0", "phases.student.teachers: all have weight 0: nobody would teach; set phases"),
    ("phases.student.teachers.main.weight=-1", "phases.student.teachers.main.weight: is -1, must be >= 0"),
    ("+phases.student.teachers.two={phase:techer}", "phases.student.teachers.two.phase: is 'techer', which no phase of"),
    ("+phases.student.teachers.two={weight:1}", "phases.student.teachers.two.phase: is not set: name an earlier phase, or"),
    ("phases.student.teachers.main.phase=teacher.a", "is 'teacher.a', which no phase of this run produces"),
    # hints
    ("{hint}[[0,2]]", "phases.student.losses.hint.layers[0]: names layer 2 of the teacher, which has layers 0 to 1; nearest: 1"),
    ("{hint}[[0,1],[1,1]]", "phases.student.losses.hint.layers[1]: names layer 1 of the student, which has layers 0 to 0"),
    ("{hint}[[0,1,2]]", "phases.student.losses.hint.layers[0]: is [0, 1, 2], must be a pair [student layer, teacher layer]"),
    (
        "{chain} {mid}{small2} +losses@phases.chain.losses.hint=hint phases.chain.losses.hint.layers=[[0,5]]",
        "phases.chain.losses.hint.layers[0]: names layer 5 of the teacher, which has layers 0 to 1",
    ),
    # labels
    (
        "~phases.student.losses.soft data.labelled=0",
        "phases.student.losses: learn from labels alone, but no training row has one; add a loss that hears a teacher",
    ),
    (
        "losses@phases.student.losses.soft=corrected_label data.labelled=0",
        "phases.student.losses: learn from labels alone, but no training row has one; add a loss that hears a teacher",
    ),
    # chains
    ("{chain} phases.chain.count=0", "phases.chain.count: is 0 and phases.chain.assistants is empty: a chain without"),
    ("{chain} phases.chain.count=-1", "phases.chain.count: is -1, must be >= 0"),
    ("{chain} phases.chain.born_again.generations=0", "phases.chain.born_again.generations: is 0, must be >= 1"),
    ("{chain} phases.chain.born_again.ensemble=true", "phases.chain.born_again.ensemble: is true, but there are no gener"),
    ("{chain} phases.chain.born_again.generation=2", "phases.chain.born_again.generation: is not a setting here (did you"),
    (
        "{chain} {mid}{small2} phases.chain.born_again.generations=2",
        "phases.chain.born_again.generations: is 2, but phases.chain.assistants are given too",
    ),
    ("{chain} +phases.chain.teachers.two={phase:teacher}", "phases.chain.teachers: has 2 entries, but a chain starts fro"),
    ("{chain} ~phases.chain.teachers.main", "phases.chain.teachers: is empty, and a phase of kind assistants needs at"),
    ("{chain} phases.chain.teachers.main.phase=chain.student", "teachers.main.phase: is 'chain.student': a phase can't tak"),
    (
        "{chain} '+phases.chain.teachers={assistant_1:{phase:teacher}}' ~phases.chain.teachers.main",
        "phases.chain.teachers.assistant_1: is the name of a step too",
    ),
    (
        "{chain} +models@phases.chain.assistants.direct=from_config phases.chain.assistants.direct={small2}",
        "phases.chain.assistants.direct: must be a plain name (letters, digits, '_', '-') and none of checkpoints, direct,",
    ),
    (
        "+phases@phases.chain=assistants phases.chain.teachers.main.phase=teacher {mid}{small2}",
        "phases.chain.model: is not chosen; add +models@phases.chain.model=hub",
    ),
    ("+phases@phases.chain=assistants phases.chain.teachers.main.phase=teacher", "phases.chain.model: is not chosen; add"),
    (
        "{chain} models@phases.chain.model=hub phases.chain.model.name={files}/model",
        "phases.chain.count: can be planned for models from_config and from_layers only, whose depth can be set; name",
    ),
    # sizes
    (
        "{chain} {mid}{hidden_size:16,num_hidden_layers:4,num_attention_heads:2,intermediate_size:16,tokenizer_phase:teacher}",
        "phases.chain.assistants.mid: has 4 layers of width 16 (16 inside), more than the teacher main, which comes before it",
    ),
    (
        "{chain} {mid}{small1}",
        "phases.chain.model: has 2 layers of width 8 (8 inside), more than mid, which comes before it and has 1 layer of wid",
    ),
    (
        "{chain} {mid}{small2} +models@phases.chain.assistants.low=from_config phases.chain.assistants.low={small3}",
        "phases.chain.assistants.low: has 3 layers of width 8 (8 inside), more than mid, which comes before it",
    ),
    ("{layers} phases.chain.model.num_layers=1", "phases.chain.count: is 1, but between the student's 1 and the teacher's 2 "),
    (
        "{large} {layers} phases.chain.model.num_layers=1 phases.chain.count=2",
        "layers there is 1 other depth; nearest: 1",
    ),
    ("{layers} phases.chain.model.num_layers=1 +models@phases.chain.assistants.mid=from_layers phases.chain.assistants.mid={phase:teacher,num_layers:5}", "assistants.mid.num_layers: is 5, the source has 2 layers"),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = make_all(tmp_path_factory.mktemp("files"))
    model_folder(root / "large", num_hidden_layers=3, hidden_size=12, intermediate_size=12)
    return root


def words_of(typed, files):
    typed = f"{TEACHER} {typed}"
    for name, words in MACROS.items():
        typed = typed.replace(name, words)
    return shlex.split(typed.replace("{files}", str(files)))


def refused(typed, files, tmp_path, capsys):
    folder = tmp_path / "runs"
    words = words_of(typed, files)
    status = cli.main(["run", "experiment=demo_quick", "tracking=none", f"run.dir={folder}", *words])
    out, err = capsys.readouterr()
    assert status == 2, err
    assert "Traceback" not in err
    assert not folder.exists()
    assert out == ""
    return err


@pytest.mark.parametrize(("typed", "said"), CASES, ids=[case[0][:60] for case in CASES])
def test_is_refused_in_a_sentence(typed, said, files, tmp_path, capsys):
    assert said in refused(typed, files, tmp_path, capsys)


@pytest.mark.parametrize(
    "typed",
    [
        "{cohort}",
        "{cohort} phases.cohort.seeds={a:3,b:4}",
        "{cohort} phases.cohort.cohort.placement=spread",
        "{students}",
        "+phases.student.teachers.two={phase:teacher,weight:0}",
        "{hint}[[0,1]]",
        "{chain}",
        "{chain} {mid}{small2}",
        "{chain} phases.chain.born_again={generations:2,ensemble:true}",
        "{large} {layers} phases.chain.model.num_layers=1",
        "{chain} +phases@phases.after=distill +models@phases.after.model=from_layers "
        "phases.after.model={phase:chain.student,num_layers:1} phases.after.teachers.main.phase=chain.assistant_1",
    ],
)
def test_is_let_through(typed, files, capsys):
    """The neighbours of what is refused: the rules above don't forbid what is right."""
    status = cli.main(["show", "experiment=demo_quick", "tracking=none", *words_of(typed, files)])
    assert status == 0, capsys.readouterr().err


def test_all_come_out_together(files, tmp_path, capsys):
    typed = (
        "{cohort} {chain} phases.cohort.seeds={a:1,b:1} phases.cohort.cohort.placement=spread phases.chain.count=0 "
        "training.devices=3 training.batch_size=36 phases.student.teachers.main.weight=0 {hint}[[0,7]]"
    )
    keys = [
        "cohort.seeds.b",
        "cohort.cohort.placement",
        "chain.count",
        "student.teachers",
        "student.losses.hint.layers[0]",
    ]
    err = refused(typed, files, tmp_path, capsys)
    assert err.startswith(f"distill: {len(keys)} problems, nothing was started:\n")
    assert sorted(line.split(": ")[0].strip() for line in err.splitlines()[1:]) == sorted(
        f"phases.{key}" for key in keys
    )


RECIPE = {"_target_": "distill_system.models.from_config.FromConfig", "tokenizer": "bytes", "num_hidden_layers": 2}
CHAIN_NODE = {
    "assistants": {},
    "count": 2,
    "model": RECIPE,
    "born_again": {"generations": None},
    "compare_direct": False,
}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["assistant_1", "assistant_2", "student"]),
        ({"compare_direct": True}, ["assistant_1", "assistant_2", "student", "direct"]),
        ({"assistants": {"big": RECIPE}}, ["big", "student"]),
        ({"born_again": {"generations": 2}, "compare_direct": True}, ["generation_1", "generation_2", "direct"]),
        ({"born_again": None, "count": 1}, ["assistant_1", "student"]),
    ],
)
def test_steps_have_names_before_they_are_run(settings, names):
    node = CHAIN_NODE | settings
    config = {"phases": {"teacher": {"model": RECIPE}, "chain": node}}
    assert members_of(node) == names
    assert outputs(config) == ["teacher", "chain", *(f"chain.{name}" for name in names)]
    assert phase_of(config, f"chain.{names[0]}") == "chain"
    assert phase_of(config, "chain.assistant_9") is None
    assert recipe_of(config, "chain") == RECIPE
    assert recipe_of(config, f"chain.{names[-1]}") == RECIPE
    planned = names[0] == "assistant_1"
    assert recipe_of(config, f"chain.{names[0]}") == (None if planned else RECIPE)


def test_only_what_is_certain_is_larger():
    shape = Shape("bert", 2, 8, 16)
    assert Shape("bert", 3, 8, 16).is_larger(shape)
    assert not shape.is_larger(shape)
    assert not Shape("bert", 3, 4, 16).is_larger(shape), "deeper, but thinner"
    assert not Shape("gpt2", 3, 8, 16).is_larger(shape), "another architecture"
    assert not Shape("bert", 3, 8, None).is_larger(shape), "not all is known"
