"""An experiment whose training data is read as it is needed: run, killed, resumed, checked, timed, with its page."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from kits.command import call, rows_in

import minijaxnet as mjn

TEXT = """
    import itertools, jax, jax.numpy as jnp, numpy as np, minijaxnet as mjn

    x = np.random.default_rng(0).normal(size=(64, 3))
    points = mjn.Batch(x, x @ np.ones((3, 1)))

    def batches(first_step):
        for step in itertools.count(first_step):
            rows = np.random.default_rng(step).integers(64, size=8)
            yield mjn.Batch(points.x[rows], points.y[rows])

    network = mjn.mlp((3, 4, 1))
    experiment = mjn.Experiment(
        "streamed", network.init, mjn.objective(network, mjn.mean_squared_error),
        lambda: (batches, points, points), predict=network.apply,
        value_and_gradient=mjn.mlp_gradient((3, 4, 1), activation=jax.nn.relu, loss=mjn.mean_squared_error),
        metrics={"error": mjn.objective(network, mjn.mean_squared_error)},
        defaults=mjn.Settings(steps=60, learning_rate=0.05),
    )
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "streamed.py").write_text(textwrap.dedent(TEXT))


def run(*flags):
    called = call("run", "streamed.py", "--checkpoint-every", "20", "--log-every", "5", *flags)
    assert called.code == 0, called.err
    [folder] = Path(flags[flags.index("--runs") + 1] if "--runs" in flags else "runs").glob("streamed-2*")
    return called, folder


def test_it_is_run_with_its_page_and_goes_on_to_the_same_bits(tmp_path):
    called, folder = run("--bench-seconds", "0.02")
    assert "gradient by hand against autodiff: right" in called.out and "page: " in called.out
    head = called.out[called.out.index("at the end") :].splitlines()[0]
    assert head.split() == ["at", "the", "end", "validation", "test"]
    rows = rows_in(folder)
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"] and "train_loss" not in rows[0]
    whole = mjn.load_params(folder)
    _, broken = run("--bench-seconds", "0", "--no-report", "--runs", "broken")
    for path in (broken / "checkpoints").glob("*60*"):
        path.unlink()
    (broken / "result.json").unlink()
    assert "went on from step 40" in call("resume", broken).out
    for layer, same in zip(whole, mjn.load_params(broken), strict=True):
        for name in layer:
            np.testing.assert_array_equal(layer[name], same[name])
    assert rows_in(broken) == rows


def test_it_is_checked_and_timed_on_its_first_batch_and_a_sweep_says_that_it_cannot():
    assert call("check", "streamed.py", "--quick").code == 0
    assert "a step of gradient descent on 8 points" in call("bench", "streamed.py", "--seconds", "0.05").out
    refused = call("sweep", "streamed.py", "--learning-rate", "0.1,0.2")
    assert refused.code == 2 and "data: got a function that reads batches; expected arrays" in refused.err
    refused = call("run", "streamed.py", "--batch-size", "4")
    assert refused.code == 2 and "data: got a function that reads batches, and batch_size, too" in refused.err


def test_it_stops_early_by_validation_data():
    _, folder = run("--keep-best", "validation_loss", "--patience", "2", "--steps", "4000", "--bench-seconds", "0")
    assert json.loads((folder / "result.json").read_text())["status"] == "STOPPED_EARLY"


def test_another_batch_size_is_refused_and_changes_nothing():
    _, folder = run("--bench-seconds", "0", "--no-report")
    before = (folder / "config.json").read_text()
    refused = call("resume", folder, "--batch-size", "4")
    assert refused.code == 2 and "data: got a function that reads batches, and batch_size, too" in refused.err
    assert (folder / "config.json").read_text() == before
    assert call("resume", folder, "--steps", "70").code == 0
