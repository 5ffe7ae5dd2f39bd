"""Results in a notebook: verdict, table and picture, and without matplotlib all but the picture."""

import xml.etree.ElementTree as ET

import jax
import numpy as np
import pytest
from kits.pictures import swept
from kits.timings import comparison

from minijaxnet._tables import html_of
from minijaxnet.bench import Interval, StepTiming
from minijaxnet.history import FLAT, OUT_OF_STEPS, Trace
from minijaxnet.report import notebook, style
from minijaxnet.run import FitResult
from minijaxnet.verify import GradReport, LeafReport, Verdict


def fitted(taken=30, status=OUT_OF_STEPS, names=("train_loss", "test_loss")):
    losses = 0.9 ** np.arange(30.0)
    rows = [{"step": i, "loss": losses[i]} | dict.fromkeys(names, float(losses[i])) for i in range(0, 30, 10)]
    return FitResult(None, Trace(losses, losses, (), taken, status), rows, 0, 0, [], 0.1, 0.1)


def checked():
    leaf = LeafReport("['<b>']", (2,), 4.0, 1e-15, 1e-15, (1,), 8.0, 12.0, share_wrong=1.0)
    return GradReport({"algebra": Verdict("fail", "2 < 3")}, {leaf.path: leaf}, ("a hint",))


def compared():
    return comparison({"<i>": 1, "b & c": 2})


def ended():
    keys = jax.random.wrap_key_data(np.zeros((2, 2), np.uint32))
    return swept([[1, 2], [0.1, 0.2], [np.inf, np.inf]], learning_rate=np.array([0.01, 0.1, 1e9]), key=keys)


RESULTS = {
    fitted: "Descent: took 30 steps",
    checked: "Gradient by hand: NOT RIGHT: ",
    compared: "Steps, against <i>: b & c is slower",
    ended: "Sweep: 6 descents, 2 diverged; lowest: ",
}


@pytest.fixture(scope="module", params=RESULTS, ids=lambda make: make.__name__)
def told(request):
    """What a result is to say, the result, and its page."""
    result = request.param()
    return RESULTS[request.param], result, result._repr_html_()


SVG = "{http://www.w3.org/2000/svg}svg"


def test_a_result_shows_verdict_table_and_picture(told):
    verdict, result, page = told
    tree = ET.fromstring(page)
    assert (tree.findtext("./p/strong") or "").startswith(verdict)
    assert len(tree.findall(f"./{SVG}")) == 1
    heads = [cell.text for cell in tree.findall("./table/thead/tr/th")]
    rows = [[cell.text or "" for cell in row] for row in tree.findall("./table/tbody/tr")]
    assert len(heads) >= 3 and rows
    if not isinstance(result, FitResult):
        columns, cells = result.cells()
        assert (heads, rows) == (list(columns), [*map(list, cells)])
        assert all(cell in str(result) for row in cells for cell in row), "as in the printed one"


@pytest.mark.slow
def test_a_result_shows_the_same_each_time(told):
    assert told[1]._repr_html_() == told[2]


def fails(error):
    def draw(*_, **__):
        raise error

    return draw


def test_without_matplotlib_a_line_says_what_to_install(told, monkeypatch):
    words = 'pictures need matplotlib: pip install "minijaxnet[plot]"'
    monkeypatch.setattr(notebook, "styled", fails(style.NoMatplotlib(words)))
    tree = ET.fromstring(told[1]._repr_html_())
    assert not tree.findall(f"./{SVG}") and tree.findall("./table")
    assert [p.text for p in tree.findall("./p")][-1] == words


def test_a_failing_picture_costs_the_picture_only(told, monkeypatch):
    for draw in ("draw_curves", "draw_trace", "draw_errors", "draw_forest", "draw_sweep"):
        monkeypatch.setattr(notebook, draw, fails(RuntimeError("a < b")))
    tree = ET.fromstring(told[1]._repr_html_())
    assert not tree.findall(f"./{SVG}") and tree.findall("./table")
    assert [p.text for p in tree.findall("./p")][-1] == "no picture: RuntimeError: a < b"


def test_a_descent_without_measures_shows_its_trace():
    tree = ET.fromstring(fitted(7, FLAT, ())._repr_html_())
    assert tree.findtext("./p/strong") == "Descent: flat after 7 steps"
    assert tree.findall(f"./{SVG}")


def test_a_sweep_of_no_descents_has_a_line():
    result = ended()._replace(axes={"x": np.arange(3.0)}, output=np.arange(3.0))
    assert result._repr_html_() == "<p>Sweep over x (3); its output is no descent's</p>"


def test_a_timing_shows_both_its_tables_and_what_to_know_of_them():
    interval = Interval(2e-6, 1e-6, 3e-6)
    once = dict.fromkeys(("trace_s", "lower_s", "compile_s", "first_call_s", "fused_compile_s"), 0.5)
    steady = dict.fromkeys(("latency_s", "pipelined_s", "fused_s"), interval)
    result = StepTiming(**once, **steady, rounds=1, compilations=2, folded=None, weak=("<w>",), samples_s={})
    tree = ET.fromstring(result._repr_html_())
    assert tree.findtext("./p/strong") == "A step takes 2 us inside a compiled loop"
    rows = [[cell.text for cell in row] for row in tree.findall("./table/tbody/tr")]
    assert rows == [*map(list, (*result.once(), *result.cells()[1]))] and len(rows) == 8
    assert [p.text for p in tree.findall("./p")][1:] == result.conclusions() == str(result).splitlines()[-3:]


def test_any_other_result_shows_as_it_prints():
    assert html_of(3) == "<pre>3</pre>"
