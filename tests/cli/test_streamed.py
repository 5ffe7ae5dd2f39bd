"""An experiment whose training data is read as it is needed: run, killed, resumed, checked and timed."""

import textwrap
from pathlib import Path

import pytest
from kits.command import QUICK, call, rows_in

TEXT = """
    import itertools, jax, jax.numpy as jnp, numpy as np, minijaxnet as mjn

    x = np.random.default_rng(0).normal(size=(64, 3))
    points = mjn.Batch(x, x @ np.ones((3, 1)))

    def batches(first_step):
        for step in itertools.count(first_step):
            rows = np.random.default_rng(step).integers(64, size=8)
            yield mjn.Batch(points.x[rows], points.y[rows])

    def objective(params, batch):
        return jnp.mean((batch.x @ params - batch.y) ** 2)

    def by_hand(params, batch):
        return objective(params, batch), 2 * batch.x.T @ (batch.x @ params - batch.y) / len(batch.y)

    experiment = mjn.Experiment(
        "streamed", lambda key: jax.random.normal(key, (3, 1)), objective, lambda: (batches, points, points),
        value_and_gradient=by_hand, metrics={"error": objective}, predict=lambda params, x: x @ params,
        defaults=mjn.Settings(steps=60, learning_rate=0.05),
    )
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "streamed.py").write_text(textwrap.dedent(TEXT))


def run(*flags, name="runs"):
    called = call("run", "streamed.py", *QUICK, "--checkpoint-every", "20", "--log-every", "5", "--runs", name, *flags)
    assert called.code == 0, called.err
    [folder] = Path(name).iterdir()
    return called, folder


def test_it_is_run_with_its_page_and_goes_on_to_the_same_bits(unrendered):
    called, folder = run("--report")
    assert "gradient by hand against autodiff: right" in called.out and "page: " in called.out
    head = called.out[called.out.index("at the end") :].splitlines()[0]
    assert head.split() == ["at", "the", "end", "validation", "test"]
    rows = rows_in(folder)
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"] and "train_loss" not in rows[0]
    whole = (folder / "params.safetensors").read_bytes()
    for path in (*(folder / "checkpoints").glob("*60*"), folder / "result.json", folder / "params.safetensors"):
        path.unlink()  # as if it had been killed
    assert "went on from step 40" in call("resume", folder).out
    assert rows_in(folder) == rows and (folder / "params.safetensors").read_bytes() == whole
    refused = call("resume", folder, "--batch-size", "4")
    assert refused.code == 2 and "data: got a function that reads batches, and batch_size, too" in refused.err
    assert call("resume", folder, "--steps", "70").code == 0


def test_it_is_checked_and_timed_on_its_first_batch_and_a_sweep_says_that_it_cannot():
    assert call("check", "streamed.py", "--quick").code == 0
    assert "a step of gradient descent on 8 points" in call("bench", "streamed.py", "--seconds", "0.01").out
    refused = call("sweep", "streamed.py", "--learning-rate", "0.1,0.2")
    assert refused.code == 2 and "data: got a function that reads batches; expected arrays" in refused.err
    refused = call("run", "streamed.py", "--batch-size", "4")
    assert refused.code == 2 and "data: got a function that reads batches, and batch_size, too" in refused.err
