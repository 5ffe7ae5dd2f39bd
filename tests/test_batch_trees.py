"""Batches that are any tree of arrays with a common first axis, through everything that takes a batch."""

import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.command import QUICK, call

import minijaxnet as mjn

draw = np.random.default_rng(0)
IMAGES, MASKS = draw.normal(size=(12, 3)).astype(np.float32), (draw.random((12, 3)) < 0.8).astype(np.float32)
TREES = {"an array": IMAGES, "nested": {"all": [IMAGES, {"mask": MASKS}]}}


def objective(params, batch):
    first, *rest = jax.tree.leaves(batch)
    masked = (first * params - 1) ** 2 * (rest[0] if rest else 1.0)
    return jnp.mean(masked)


DESCENT = mjn.gradient_descent(objective, 0.1)
KEY = jax.random.key(0)


@pytest.mark.parametrize("name", TREES)
def test_minibatches_of_a_tree_are_rows_of_each_array(name):
    data = TREES[name]
    state, _ = mjn.descend_epochs(DESCENT, DESCENT.init(jnp.zeros(3)), data, KEY, batch_size=4, epochs=2)
    fitted = mjn.fit(DESCENT, DESCENT.init(jnp.zeros(3)), data, steps=6, batch_size=4, key=KEY)
    chex.assert_trees_all_equal(fitted.state.params, state.params)
    whole = mjn.fit(DESCENT, DESCENT.init(jnp.zeros(3)), data, steps=6)
    assert whole.rows[-1]["loss"] < whole.rows[0]["loss"]
    assert mjn.time_step(DESCENT, jnp.zeros(3), data, seconds=0.02).sound


TEXT = """
    import jax, jax.numpy as jnp, numpy as np, minijaxnet as mjn

    def data():
        x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
        mask = np.ones((16, 3), np.float32)
        return {"image": x[:12], "mask": mask[:12]}, {"image": x[12:], "mask": mask[12:]}

    def objective(params, batch):
        return jnp.mean(batch["mask"] * (batch["image"] @ params - 1) ** 2)

    experiment = mjn.Experiment(
        "masked", lambda key: jax.random.normal(key, (3, 3)), objective, data,
        value_and_gradient=jax.value_and_grad(objective), predict=lambda params, x: x @ params,
        metrics={"largest": lambda params, batch: jnp.max(jnp.abs(batch["image"] @ params))},
        defaults=mjn.Settings(steps=20, learning_rate=0.1, batch_size=4),
    )
"""


def test_an_experiment_of_dicts_is_run_checked_swept_and_has_a_page(tmp_path, monkeypatch, unrendered):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masked.py").write_text(textwrap.dedent(TEXT))
    called = call("run", "masked.py", *QUICK, "--report")
    assert called.code == 0 and "page: " in called.out, called.err
    for verb, *flags in (("sweep", "--learning-rate", "0.1,0.2"), ("check", "--quick")):
        assert call(verb, "masked.py", *flags).code == 0
