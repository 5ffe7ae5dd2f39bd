"""Results show themselves in a notebook: a verdict, and the tables that they print."""

import xml.etree.ElementTree as ET

import jax
import numpy as np
import pytest
from kits.pictures import swept
from kits.timings import comparison

from minijaxnet.bench import Interval, StepTiming
from minijaxnet.history import FLAT, Trace
from minijaxnet.run import FitResult
from minijaxnet.verify import GradReport, LeafReport, Verdict


def fitted(rows):
    losses = np.ones(9)
    return FitResult(None, Trace(losses, losses, (), 7, FLAT), rows, 0, 0, ["a < note"], 0.1, 0.1)


def checked():
    leaf = LeafReport("['<b>']", (2,), 4.0, 1e-15, 1e-15, (1,), 8.0, 12.0, share_wrong=1.0)
    return GradReport({"algebra": Verdict("fail", "2 < 3")}, {leaf.path: leaf}, ("a hint",))


def timed():
    once = dict.fromkeys(("trace_s", "lower_s", "compile_s", "first_call_s", "fused_compile_s"), 0.5)
    steady = dict.fromkeys(("latency_s", "pipelined_s", "fused_s"), Interval(2e-6, 1e-6, 3e-6))
    return StepTiming(**once, **steady, rounds=1, compilations=2, folded=None, weak=("<w>",), samples_s={})


def ended(**changes):
    keys = jax.random.wrap_key_data(np.zeros((2, 2), np.uint32))
    rates = np.array([0.01, 0.1, 1e9])
    return swept([[1, 2], [0.1, 0.2], [np.inf, np.inf]], learning_rate=rates, key=keys)._replace(**changes)


ROWS = [{"step": step, "loss": 1 / (step + 2), "test_loss": 1.0} for step in (0, 7)]
VERDICTS = {
    "FitResult: FLAT after 7 steps, loss 0.1111": fitted(ROWS),
    "FitResult: FLAT after 7 steps": fitted([]),
    "gradient by hand against autodiff: NOT RIGHT": checked(),
    "Steps, against <i>: b & c is slower": comparison({"<i>": 1, "b & c": 2}),
    "A step takes 2 us inside a compiled loop": timed(),
    "Sweep: 6 descents, 2 diverged; lowest loss 0.1 at learning_rate 0.1, key #0": ended(),
    "Sweep over x (3), without a Trace in its output": ended(axes={"x": np.arange(3.0)}, output=np.arange(3.0)),
}


@pytest.mark.parametrize(("verdict", "result"), VERDICTS.items())
def test_a_result_shows_its_verdict_and_its_tables_and_remarks(verdict, result):
    tree = ET.fromstring(result._repr_html_())
    assert tree.findtext("./p/strong") == verdict
    cells = [[cell.text or "" for cell in row] for row in tree.findall("./table/tbody/tr")]
    remarks = [p.text for p in tree.findall("./p")][1:]
    if isinstance(result, FitResult):
        assert remarks == ["a < note"]
        assert cells == ([["loss", "0.5", "0.1111"], ["test_loss", "1", "1"]] if result.rows else [])
    elif "without a Trace" in verdict:
        assert not cells and not remarks
    else:
        assert [*map(list, result.cells()[1])] == cells[-len(result.cells()[1]) :]
        assert all(cell in str(result) for row in cells for cell in row), "as in the printed tables"
        assert remarks == list(result.conclusions() if hasattr(result, "conclusions") else getattr(result, "hints", []))
