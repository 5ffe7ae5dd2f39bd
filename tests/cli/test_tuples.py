"""An experiment whose data are plain tuples of NumPy arrays: all verbs take them."""

import pytest
from kits.command import call
from kits.marks import SLOW

TUPLES = """
import jax, jax.numpy as jnp, numpy as np
import minijaxnet as mjn

network = mjn.mlp((2, 3, 2))

def data():
    x = np.random.default_rng(0).normal(size=(20, 2))
    y = (x.sum(axis=1) > 0).astype(int)
    return (x[:16], y[:16]), (x[16:], y[16:])

experiment = mjn.Experiment(
    "tuples", network.init, mjn.objective(network, mjn.softmax_cross_entropy), data, predict=network.apply,
    value_and_gradient=mjn.mlp_gradient((2, 3, 2), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy),
    metrics={"first": lambda params, batch: jnp.mean(batch[0][:, 0])}, defaults=mjn.Settings(steps=20),
)
"""


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        SLOW("run", "--batch-size 4 --bench-seconds 0 --no-report --learning-rate 1e30 --diagnose --unchecked"),
        ("sweep", "--seeds 2 --batch-size all"),
        SLOW("run", "--bench-seconds 0.1"),
        SLOW("bench", "--seconds 0.2"),
        SLOW("check", "--quick"),
        SLOW("sweep", "--seeds 2 --batch-size 2,4"),
    ],
)
def test_a_verb_takes_plain_tuples(verb, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it.py").write_text(TUPLES, encoding="utf-8")
    called = call(verb, "it.py", *flags.split())
    assert called.err == "" and called.code == (1 if "1e30" in flags else 0), called.out
    assert "not diagnosed" not in called.out and "not timed" not in called.out and "no report" not in called.out
    for folder in tmp_path.glob("runs/tuples-*") if verb == "run" and "--no-report" not in flags else ():
        assert call("report", folder).code == 0
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "Predictions in the plane" in page and "could not be" not in page and "Only what" not in page
