"""The page of a run: all that its record holds has its place, and what fails is left out with the reason."""

import numpy as np
import pytest
from kits.marks import slow
from kits.pages import record
from kits.pictures import axes_with
from kits.timings import comparison

from minijaxnet.report.page import Verdict
from minijaxnet.report.record import command_of, read_record
from minijaxnet.report.run_page import run_page
from minijaxnet.report.runs_page import runs_page
from minijaxnet.run.folder import write_json
from minijaxnet.verify import GradReport, LeafReport
from minijaxnet.verify import Verdict as Found


def section_of(page, title):
    return next(section for section in page.sections if section.title == title)


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": i, "loss": -i, "gradient_norm": 10.0**-i, "a<b>$_": 1, "test_a<b>$_": 2} for i in range(300)],
        [{"step": 0, "loss": 1, "gradient_norm": 1, "params/a": 1, "params_norm": 2, "test_params_norm": 3}],
        *slow(
            [{"step": 0, "loss": np.nan, "gradient_norm": np.inf, "train_loss": -1, "test_loss": -1}],
            [dict(step=i, loss=1, gradient_norm=0, train_loss=1, test_loss=np.nan) for i in range(9)],
        ),
    ],
)
def test_whatever_was_logged_is_drawn(rows, tmp_path):
    section = section_of(run_page(record(rows)), "Descent")
    metrics = [name for name in rows[0] if f"test_{name}" in rows[0] and name != "loss"]
    assert [picture.title for picture in section.pictures] == ["Loss", "Gradient norm", *metrics]
    for picture in section.pictures:
        axes_with(picture.draw, tmp_path)
    assert len(section.tables[0].rows) <= 200


def test_a_long_table_is_thinned_and_a_spike_stays():
    rows = [{"step": i, "loss": 77.0 if i == 1_345 else 1.0, "gradient_norm": 1.0} for i in range(2_000)]
    section = section_of(run_page(record(rows)), "Descent")
    assert 77.0 in {row[1] for row in section.tables[0].rows} and len(section.tables[0].rows) <= 200
    assert "of 2,000 rows" in section.words


@pytest.mark.parametrize(
    ("state", "result", "kind", "words"),
    [
        ("done", {"status": "OUT_OF_STEPS", "steps_taken": 1_000}, "ok", "The descent took all 1,000 steps."),
        ("done", {"status": "FLAT", "steps_taken": 7}, "ok", "The descent is flat after 7 steps."),
        ("diverged", {"status": "DIVERGED", "steps_taken": 7}, "bad", "The descent diverged at step 7."),
        ("failed", {"error": "OSError: no more"}, "bad", "The run failed: OSError: no more"),
        ("running", {}, "warning", "The run is under way, at the start."),
        ("interrupted", {}, "warning", "The run was stopped at the start; minijaxnet resume run continues it."),
    ],
)
def test_the_first_verdict_is_how_the_run_ended(state, result, kind, words):
    first, *rest = run_page(record([])._replace(state=state, result=result, notes=["a note"])).verdicts
    assert first == (kind, words) and rest == [("neutral", "a note")]


def test_a_page_has_the_gradient_check_the_benchmark_and_the_sweep_of_a_folder(tmp_path):
    leaf = LeafReport("['w']", (2,), 0.0, 1e-15, 1e-15, (1,), 1.0, 1.0, precision_ratio=0.5)
    checked = GradReport({"algebra": Found("pass", "the reason")}, {leaf.path: leaf}).to_dict()
    write_json(tmp_path / "config.json", {"verb": "sweep", "file": "e.py", "flags": {}, "init": {}, "data": {}})
    write_json(tmp_path / "result.json", {"best": {"loss": 1.0}, "gradient_check": checked})
    comparison({"autodiff": 1, "hand": 0.5}).save(tmp_path / "comparison.json")
    axes = {"axis_learning_rate": np.array([0.1, 1]), "axis_seed": np.arange(2)}
    np.savez(tmp_path / "sweep.npz", loss=np.ones((2, 2)), **axes)
    page = run_page(read_record(tmp_path))
    assert {section.title: [picture.title for picture in section.pictures] for section in page.sections} == {
        "Descents": ["Where the descents ended"],
        "Gradient check": ["Gradient by hand against autodiff", "Error in the working precision"],
        "Benchmark": ["Which step is faster", "Samples in the order of time"],
        "What was run": [],
    }
    for section in page.sections:
        for picture in section.pictures:
            axes_with(picture.draw, tmp_path)
    sweep, right, faster = page.verdicts
    assert sweep == Verdict("ok", "The sweep has run all its descents.")
    assert right == Verdict("ok", "The gradient by hand is right.")
    ratio = "0.500 times the time, 95 % between 0.500 and "
    assert faster.words.startswith(f"A step of hand is faster than one of autodiff: {ratio}")
    wrong = record([])._replace(result={"gradient_check": checked | {"ok": False}})
    assert Verdict("bad", "The gradient by hand is WRONG.") in run_page(wrong).verdicts


def test_a_folder_with_other_content_than_a_run_writes_has_a_page_with_the_reasons():
    odd = record([])._replace(result={"gradient_check": {"ok": True, "leaves": 3}}, comparison={"found": {}})
    page = run_page(odd)
    assert "This summary is not complete: KeyError" in page.verdicts[-1].words
    for title in ("Gradient check", "Benchmark"):
        assert section_of(page, title).words.startswith("This cannot be shown: ")


def test_a_command_lists_what_differs_from_the_defaults_and_all_where_these_are_not_known():
    config = {"verb": "run", "file": "a b.py", "flags": {"batch_size": None, "runs": "", "seed": 0}, "data": {"n": 2}}
    assert command_of(config) == "minijaxnet run 'a b.py' --seed 0 --data-n 2"
    defaults = {"flags": {"batch_size": 8, "runs": "runs", "seed": 0}, "data": {"n": 3}}
    repeated = "minijaxnet run 'a b.py' --batch-size None --runs '' --data-n 2"
    assert command_of(config | {"defaults": defaults}) == repeated


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([0.5, 0.5], ["All runs have the same test loss at the end, 0.5."]),
        ([0.5, 0.5, 0.7], ["The lowest test loss at the end, 0.5, is that of a and of b."]),
        ([0.7, 0.5, 0.6], ["The lowest test loss at the end, 0.5, is that of b."]),
        ([0.5, 0.5 + 1e-9], ["All runs have the same test loss at the end, 0.5."]),
        ([np.nan, np.nan], []),
    ],
)
def test_of_several_runs_the_lowest_test_loss_is_named_unless_all_are_equal(tmp_path, losses, words):
    runs = [
        record([{"step": 1, "test_loss": loss}])._replace(folder=tmp_path / name)
        for name, loss in zip("abc", losses, strict=False)
    ]
    assert [verdict.words for verdict in runs_page(runs).verdicts] == words
