"""Batches that are any tree of arrays with a common first axis, through everything that takes a batch."""

import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.command import call

import minijaxnet as mjn

draw = np.random.default_rng(0)
IMAGES, MASKS = draw.normal(size=(12, 3)).astype(np.float32), (draw.random((12, 3)) < 0.8).astype(np.float32)
TREES = {
    "a dict": {"image": IMAGES, "mask": MASKS},
    "with weights": (IMAGES, MASKS, np.ones(12, np.float32)),
    "an array": IMAGES,
    "nested": {"all": [IMAGES, {"mask": MASKS}]},
}


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
    step = mjn.time_step(DESCENT, jnp.zeros(3), data, seconds=0.02)
    assert step.sound


def test_what_is_wrong_with_a_tree_is_said_with_its_place():
    bad = {"image": IMAGES.copy(), "mask": MASKS[:5]}
    with pytest.raises(ValueError, match=r"data\['mask'\]: got 5 points; expected 12"):
        mjn.fit(DESCENT, DESCENT.init(jnp.zeros(3)), bad, steps=1)
    bad["mask"], bad["image"][3, 1] = MASKS, np.nan
    with pytest.raises(ValueError, match=r"data\['image'\]\[3, ?1\]: got nan"):
        mjn.fit(DESCENT, DESCENT.init(jnp.zeros(3)), bad, steps=1)


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


def test_an_experiment_of_dicts_is_run_checked_swept_and_has_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masked.py").write_text(textwrap.dedent(TEXT))
    called = call("run", "masked.py", "--bench-seconds", "0.02")
    assert called.code == 0, called.err
    assert "page: " in called.out
    assert call("sweep", "masked.py", "--learning-rate", "0.1,0.2").code == 0
    assert call("check", "masked.py", "--quick").code == 0
