"""The page of phases with several models: cohorts, students of one teacher, chains of assistants, several teachers, and what was chosen on the way."""

import json

from distill_system.tracking.report import write_report

METRICS = {"accuracy": 0.8, "nll": 0.6, "samples": 500}


def entry(kind, accuracy=0.8, parameters=1000, **more):
    return {
        "state": "finished", "kind": kind, "settings": {}, "inputs": {}, "digest": "d" * 64, "metrics": METRICS | {"accuracy": accuracy},
        "size_bytes": 4 * parameters, "parameters": parameters, "nonzeros": parameters, "seconds": 1.0, "warnings": [], "steps": 20, **more,
    }  # fmt: skip


def member(accuracy, parameters, **more):
    return {
        "digest": "e" * 64,
        "metrics": METRICS | {"accuracy": accuracy},
        "size_bytes": 4 * parameters,
        "parameters": parameters,
        "nonzeros": parameters,
        **more,
    }


def page(folder, phases, lines=()):
    folder.mkdir(exist_ok=True)
    manifest = {
        "version": 1,
        "run": "r",
        "command": "distill run",
        "created": "2026-01-01T00:00:00+00:00",
        "phases": phases,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = write_report(folder)
    return path.read_text(), json.loads((folder / "report" / "report.json").read_text())


TEACHER = {"teachers.main.phase": {"phase": "teacher", "digest": "d"}}


def test_students_have_a_table_a_curve_and_a_knee(tmp_path):
    members = {"small": member(0.5, 1000), "medium": member(0.75, 3000), "large": member(0.8, 20000)}
    phases = {
        "teacher": entry("finetune", 0.85, 40000),
        "students": entry("distill", inputs=TEACHER, members=members, best_member="large"),
    }
    html, report = page(tmp_path, phases)
    assert "Students of one teacher" in html
    assert "The knee is medium" in html
    assert "accuracy against size" in html
    assert report["phases"]["students"]["members"]["small"]["parameters"] == 1000
    assert (tmp_path / "report" / "sizes_students.png").is_file()


def test_a_cohort_tells_its_best_and_the_mean_of_all(tmp_path):
    members = {"a": member(0.7, 1000), "b": member(0.72, 1000)}
    lines = [
        {"phase": "cohort", "step": step, "time": 0.0, "loss": 2.0, "loss/a": 1.0, "loss/a/hard": 0.9, "loss/a/peer/b": 0.1, "loss/b": 1.0,
         "loss/b/hard": 0.9, "loss/b/peer/a": 0.1, "lr": 0.1, "grad_norm": 1.0, "grad_norm/a": 0.7, "grad_norm/b": 0.7}
        for step in range(1, 6)
    ]  # fmt: skip
    lines += [
        {
            "phase": "cohort",
            "step": 5,
            "time": 0.0,
            "valid/a/accuracy": 0.7,
            "valid/b/accuracy": 0.72,
            "valid/a/nll": 1.0,
            "valid/b/nll": 1.0,
        }
    ]
    ensemble = METRICS | {"accuracy": 0.75}
    html, _ = page(
        tmp_path, {"cohort": entry("mutual", 0.72, members=members, best_member="b", ensemble=ensemble)}, lines
    )
    assert (
        "b is handed on, the best of 2 on the validation rows: accuracy 0.7200; all lie within 2.0 points of accuracy."
        in html
    )
    assert "The mean of all has 3.0 points of accuracy more than b alone." in html
    assert "all together" in html
    assert "Validation of cohort: accuracy" in html
    assert "Loss of cohort: peer" in html
    assert ">total<" not in html  # the sum over members says nothing


def test_the_mean_may_be_worse(tmp_path):
    members = {"a": member(0.5, 1000), "b": member(0.72, 1000)}
    html, _ = page(
        tmp_path, {"cohort": entry("mutual", members=members, best_member="b", ensemble=METRICS | {"accuracy": 0.7})}
    )
    assert "The mean of all is worse by 2.0 points of accuracy than b alone." in html


def test_a_chain_is_drawn_as_paths_with_the_verdict(tmp_path):
    members = {
        "assistant_1": member(0.8, 5000, steps=10),
        "student": member(0.7, 1000, steps=10),
        "direct": member(0.68, 1000, steps=20),
    }
    phases = {
        "teacher": entry("finetune", 0.85, 40000),
        "chain": entry(
            "assistants",
            inputs=TEACHER,
            members=members,
            best_member="student",
            stop_rule={"paid": True, "words": "The assistant paid."},
        ),
    }
    html, report = page(tmp_path, phases)
    assert "The assistant paid." in html
    assert html.count('<ol class="path">') == 2
    assert "5.00k parameters" in html
    assert report["phases"]["chain"]["stop_rule"]["paid"] is True


def test_several_teachers_stand_beside_each_other(tmp_path):
    settings = {
        "teachers": {"main": {"phase": "one", "weight": 1.0}, "second": {"phase": "two", "weight": 3.0}},
        "ensemble": {"combine": "logits", "weighting": "fixed"},
    }
    inputs = {
        "teachers.main.phase": {"phase": "one", "digest": "d"},
        "teachers.second.phase": {"phase": "two", "digest": "d"},
    }
    phases = {
        "one": entry("finetune", 0.9),
        "two": entry("finetune", 0.6),
        "student": entry("distill", settings=settings, inputs=inputs),
    }
    html, _ = page(tmp_path, phases)
    assert "Teachers of student" in html
    assert "weight 0.25" in html
    assert "weight 0.75" in html
    assert "combined by logits" in html


def test_what_was_chosen_is_told_once(tmp_path):
    mapping = {"hint": {"pairs": [[0, 2], [1, 5]], "projectors": 2}}
    html, _ = page(tmp_path, {"p": entry("finetune", mapping=mapping, notes=["cohort.placement is together: <b>"])})
    assert "What was chosen, and why" in html
    assert "0 ← 2, 1 ← 5" in html
    assert "together: &lt;b&gt;" in html
