"""Results in a notebook: verdict, table and picture, and without matplotlib all but the picture."""

import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minijaxnet import check_grad, descend, fit, gradient_descent, sweep
from minijaxnet.bench import ArmTiming, StepComparison
from minijaxnet.report import notebook, style
from minijaxnet.tables import html_of


def objective(w, batch):
    return jnp.mean((w * batch[0] - batch[1]) ** 2)


BATCH = (jnp.ones(2), jnp.full(2, 3.0))


def fitted():
    descent = gradient_descent(objective, 0.1)
    return fit(descent, descent.init(0.0), BATCH, steps=30, measure=lambda w: {"train_loss": w, "test_loss": 2 * w})


def checked():
    return check_grad(lambda w: w["<b>"] ** 3, lambda w: {"<b>": 2 * w["<b>"] ** 2}, ({"<b>": jnp.array(2.0)},))


def compared():
    wobble = 1 + 0.01 * np.sin(np.arange(20))
    arms = {name: ArmTiming(0.5, seconds * wobble) for name, seconds in (("<i>", 1e-4), ("b & c", 2e-4))}
    return StepComparison("<i>", arms, 1e-4 * wobble[::-1], np.ones(20), {"cpu": "one"})


def swept():
    def run(learning_rate, key):
        descent = gradient_descent(objective, learning_rate)
        return descend(descent, descent.init(jax.random.normal(key)), BATCH, steps=50)[1]

    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    return sweep(run, {"learning_rate": np.array([0.01, 0.1, 1e9]), "key": keys})


MAKE = {"fit": fitted, "check": checked, "comparison": compared, "sweep": swept}
VERDICTS = {
    "fit": "Descent: took 30 steps",
    "check": "Gradient by hand: NOT RIGHT: ",
    "comparison": "Steps, against <i>: b & c is slower",
    "sweep": "Sweep: 6 descents, 2 diverged; lowest: ",
}


@pytest.fixture(scope="module", params=MAKE)
def named(request):
    return request.param, MAKE[request.param]()


def parsed(result):
    return ET.fromstring(result._repr_html_())


SVG = "{http://www.w3.org/2000/svg}svg"


def test_a_result_shows_verdict_table_and_picture(named):
    name, result = named
    tree = parsed(result)
    assert (tree.findtext("./p/strong") or "").startswith(VERDICTS[name])
    assert len(tree.findall("./table/thead/tr/th")) >= 3
    assert len(tree.findall("./table/tbody/tr")) >= 1
    assert len(tree.findall(f"./{SVG}")) == 1


def test_the_table_has_the_cells_of_the_printed_one():
    for result in (checked(), compared(), swept()):
        columns, rows = result.cells()
        tree = parsed(result)
        assert [cell.text for cell in tree.findall("./table/thead/tr/th")] == list(columns)
        assert [[cell.text or "" for cell in row] for row in tree.findall("./table/tbody/tr")] == [*map(list, rows)]
        assert all(cell in str(result) for row in rows for cell in row)


def test_without_matplotlib_a_line_says_what_to_install(named, monkeypatch):
    def missing(*_, **__):
        raise style.NoMatplotlib('pictures need matplotlib: pip install "minijaxnet[plot]"')

    monkeypatch.setattr(notebook, "styled", missing)
    tree = parsed(named[1])
    assert not tree.findall(f"./{SVG}") and tree.findall("./table")
    assert [p.text for p in tree.findall("./p")][-1] == 'pictures need matplotlib: pip install "minijaxnet[plot]"'


def test_a_failing_picture_costs_the_picture_only(named, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a < b")

    for draw in ("draw_curves", "draw_trace", "draw_errors", "draw_forest", "draw_sweep"):
        monkeypatch.setattr(notebook, draw, fail)
    tree = parsed(named[1])
    assert not tree.findall(f"./{SVG}") and tree.findall("./table")
    assert [p.text for p in tree.findall("./p")][-1] == "no picture: RuntimeError: a < b"


def test_a_result_shows_the_same_each_time(named):
    assert named[1]._repr_html_() == named[1]._repr_html_()


def test_a_descent_without_measures_shows_its_trace():
    descent = gradient_descent(objective, 0.1)
    tree = parsed(fit(descent, descent.init(0.0), BATCH, steps=30, until_flat=0.5))
    assert (tree.findtext("./p/strong") or "").startswith("Descent: flat after ")
    assert tree.findall(f"./{SVG}")


def test_a_sweep_of_no_descents_has_a_line():
    result = sweep(lambda x: 2 * x, {"x": np.arange(3.0)})
    assert result._repr_html_() == "<p>Sweep over x (3); its output is no descent's</p>"


def test_any_other_result_shows_as_it_prints():
    assert html_of(3) == "<pre>3</pre>"
