"""The story of a run: whatever its folder tells has its place on the page."""

import numpy as np
import pytest
from kits.marks import slow
from kits.pages import told
from kits.timings import comparison

from minijaxnet._files import read_json
from minijaxnet.report.page import Verdict
from minijaxnet.report.story import tell
from minijaxnet.verify import GradReport, LeafReport
from minijaxnet.verify import Verdict as Found


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": i, "loss": -i, "gradient_norm": 10.0**-i, "a<b>$_": 1, "test_a<b>$_": 2} for i in range(300)],
        *slow(
            [{"step": 0, "loss": np.nan, "gradient_norm": np.inf, "train_loss": -1, "test_loss": -1}],
            [dict(step=i, loss=1, gradient_norm=0, train_loss=1, test_loss=np.nan) for i in range(9)],
        ),
    ],
    ids=["negative, and names with markup", "one that is not finite", "no variance"],
)
def test_whatever_was_logged_is_drawn(rows):
    [section] = [section for section in tell(told(rows)).sections if section.title == "Descent"]
    assert len(section.pictures) >= 2 and "could not" not in section.words
    assert len(section.tables[0].rows) <= 200 + 2


@pytest.mark.parametrize("count", [2_000, *slow(200_000)])
def test_many_rows_are_thinned_and_a_spike_stays(count):
    rows = [{"step": i, "loss": 1.0, "gradient_norm": 1.0} for i in range(count)]
    rows[count // 2 + 345]["loss"] = 77.0
    [section] = [section for section in tell(told(rows)).sections if section.title == "Descent"]
    assert 77.0 in {row[1] for row in section.tables[0].rows} and len(section.tables[0].rows) <= 200
    assert sum(len(picture.image) for picture in section.pictures) < 1_000_000


@pytest.mark.parametrize(
    ("state", "result", "kind", "words"),
    [
        ("done", {"status": "OUT_OF_STEPS", "steps_taken": 1_000}, "ok", "The descent took all 1,000 steps."),
        ("done", {"status": "FLAT", "steps_taken": 7}, "ok", "The descent is flat after 7 steps."),
        ("diverged", {"status": "DIVERGED", "steps_taken": 7}, "bad", "The descent diverged at step 7."),
        ("failed", {"error": "OSError: no more"}, "bad", "The run failed: OSError: no more"),
        ("running", {}, "warning", "The run is under way, at the start."),
        ("interrupted", {}, "warning", "The run was stopped at the start; minijaxnet resume run goes on."),
    ],
)
def test_the_first_verdict_is_how_the_run_ended(state, result, kind, words):
    first, *rest = tell(told([])._replace(state=state, result=result), notes=["a note"]).verdicts
    assert first == (kind, words) and rest == [("neutral", "a note")]


@pytest.mark.usefixtures("unrendered")
def test_a_page_has_a_section_on_the_gradient_check_and_on_the_steps_and_on_a_sweep(tmp_path):
    leaf = LeafReport("['w']", (2,), 0.0, 1e-15, 1e-15, (1,), 1.0, 1.0, precision_ratio=0.5)
    checked = GradReport({"algebra": Found("pass", "so it is")}, {leaf.path: leaf})
    found = comparison({"autodiff": 1, "hand": 0.5})
    found.save(tmp_path / "comparison.json")
    axes = {"axis_learning_rate": np.array([0.1, 1]), "axis_seed": np.arange(2)}
    np.savez(tmp_path / "sweep.npz", loss=np.ones((2, 2)), **axes)
    made = tell(
        told([])._replace(
            folder=tmp_path,
            config=told([]).config | {"verb": "sweep"},
            result={"status": "OUT_OF_STEPS", "best": {"loss": 1.0}, "gradient_check": checked.to_dict()},
            timing={"step_comparison": found.to_dict()},
            comparison=read_json(tmp_path / "comparison.json"),
        )
    )
    assert {section.title: [picture.title for picture in section.pictures] for section in made.sections} == {
        "Descents": ["Where the descents ended"],
        "Gradient check": ["Gradient by hand against autodiff", "Error in the working precision"],
        "Benchmark": ["Which step is faster", "Compile and steady", "Samples in the order of time"],
        "What was run": [],
    }
    sweep, right, faster = made.verdicts
    assert sweep == Verdict("ok", "All descents of the sweep were carried out.")
    assert right == Verdict("ok", "The gradient by hand is right.")
    ratio = "0.500 times the time, 95 % between 0.500 and "
    assert faster.words.startswith(f"A step of hand is faster than one of autodiff: {ratio}")
    wrong = told([])._replace(result={"gradient_check": checked.to_dict() | {"ok": False}})
    assert Verdict("bad", "The gradient by hand is WRONG.") in tell(wrong).verdicts
