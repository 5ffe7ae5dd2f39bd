"""The experiment on learning rates: its eigenvalue is the Hessian's, and a bowl's limit is where theory says."""

import jax
import jax.numpy as jnp
import learning_rates
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import minijaxnet as mjn

EIGENVALUES = np.array([0.1, 0.5, 1.0, 4.0, 10.0])
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]


def bowl(params, batch):
    return 0.5 * jnp.sum(EIGENVALUES * (TURN @ params["w"]) ** 2)


def test_the_largest_eigenvalue_is_the_hessians():
    assert learning_rates.largest_eigenvalue(bowl, {"w": np.ones(5, np.float32)}, None) == pytest.approx(10, rel=1e-5)
    network = mjn.mlp((2, 4, 1), activation=jnp.tanh)
    objective, points = mjn.objective(network, mjn.mean_squared_error), mjn.lesson_points()
    params = network.init(jax.random.key(0))
    flat, unravel = ravel_pytree(params)
    exact = jnp.linalg.eigvalsh(jax.hessian(lambda flat: objective(unravel(flat), points))(flat))[-1]
    assert learning_rates.largest_eigenvalue(objective, params, points) == pytest.approx(float(exact), rel=1e-3)


def test_in_a_bowl_descents_fail_beyond_2_over_the_largest_eigenvalue():
    network = mjn.Network(
        lambda key: {"w": jnp.cos(jnp.arange(5.0) + jax.random.key_data(key)[-1])}, lambda params, x: x
    )
    work = learning_rates.Workload(network, bowl, np.zeros(1, np.float32), 400)
    rates = 0.2 * np.array([0.5, 0.98, 1.02, 2.0])
    has_failed = learning_rates.failed(learning_rates.sweep_rates(work, rates, 6))
    np.testing.assert_array_equal(has_failed, np.repeat([[False], [False], [True], [True]], 6, axis=1))
    assert learning_rates.first_failing_rate(rates, has_failed) == rates[2]
    assert learning_rates.first_failing_rate(rates, np.zeros((4, 6), bool)) == np.inf


@pytest.mark.slow
def test_the_report_holds_the_measured_limit_beside_theorys():
    network = mjn.dense(10, 1)
    work = learning_rates.workload(network, mjn.mean_squared_error, mjn.diabetes()[0], 500)
    text = learning_rates.report("a unit", work, 12, 3)
    assert "a unit: 36 descents of 500 steps" in text
    measured = float(text.split("fail from ")[1].split()[0])
    theory = float(text.split("eigenvalue at the start: ")[1].split()[0])
    assert 0.99 * theory <= measured <= 3 * theory  # the rates are a factor of 2.3 apart
