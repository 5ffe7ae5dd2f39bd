"""Data to choose by, apart from the data to test on: in a run and its page, and in a sweep."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from kits.command import call, rows_in

import minijaxnet as mjn

TEXT = """
    import jax, jax.numpy as jnp, numpy as np, minijaxnet as mjn

    def data():
        draw = np.random.default_rng(0)
        def points(count, noise):
            x = draw.normal(size=(count, 8)).astype(np.float32)
            return mjn.Batch(x, x[:, :1] + noise * draw.normal(size=(count, 1)).astype(np.float32))
        return points(12, 1.0), points(20, 0.1), points(24, 0.1)

    def objective(params, batch):
        return jnp.mean((batch.x @ params - batch.y) ** 2)

    experiment = mjn.Experiment(
        "noisy", lambda key: jax.random.normal(key, (8, 1)), objective, data, predict=lambda params, x: x @ params,
        metrics={"score": lambda params, batch: -objective(params, batch)},
        defaults=mjn.Settings(steps=200, learning_rate=0.1),
    )
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noisy.py").write_text(textwrap.dedent(TEXT))


def only(pattern="*"):
    [found] = Path("runs").glob(pattern)
    return found


def test_a_run_stops_by_validation_data_and_the_page_shows_all_three(home, unrendered):
    called = call("run", "noisy.py", "--keep-best", "validation_loss", "--patience", "5", "--bench-seconds", "0")
    assert called.code == 0 and "stopped early after" in called.out
    table = called.out[called.out.index("at the end") :].splitlines()
    assert table[0].split() == ["at", "the", "end", "train", "validation", "test"]
    rows = rows_in(only())
    best = min(rows, key=lambda row: row["validation_loss"])
    assert rows[-1]["step"] == rows[rows.index(best) + 5]["step"]
    result = json.loads((only() / "result.json").read_text())
    assert result["status"] == "STOPPED_EARLY"
    assert result["kept_best"] == {"value": pytest.approx(best["validation_loss"]), **best}
    assert "at the best" in called.out and f"at step {best['step']:,}, kept in best.safetensors" in called.out
    experiment = mjn.load_experiment("noisy.py")
    value = experiment.objective(mjn.load_params(only()), experiment.data()[1])
    assert float(value) == pytest.approx(best["validation_loss"], rel=1e-5)
    page = (only() / "report.html").read_text()
    assert "stopped early" in page
    assert f"at step {best['step']:,}: these weights are kept" in page


def test_a_sweep_chooses_by_it_and_shows_the_metrics(home):
    called = call("sweep", "noisy.py", "--learning-rate", "0.001,0.1,0.3", "--by", "validation_score")
    assert called.code == 0, called.err
    assert "validation_score" in called.out.splitlines()[2]
    with np.load(only("*sweep*") / "sweep.npz") as found:
        scores, losses = found["validation_score"], found["loss"]
    assert np.argmax(scores) != np.argmin(losses)  # the lowest training loss is not the best
    rate = [0.001, 0.1, 0.3][int(np.argmax(scores))]
    assert f"--learning-rate {rate:g}" in called.out or rate == 0.1
    result = json.loads((only("*sweep*") / "result.json").read_text())
    assert result["best"]["learning_rate"] == rate and result["by"] == "highest validation_score"
    refused = call("sweep", "noisy.py", "--by", "accuracy")
    assert refused.code == 2 and "by: got 'accuracy'; expected one of loss, validation_loss" in refused.err
