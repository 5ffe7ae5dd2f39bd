"""What only an accelerator can show. Skipped, with the reason, where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.descents import OBJECTIVE, PARAMS, POINTS

import minijaxnet as mjn
from minijaxnet import _loops
from minijaxnet.bench import step_cost

DESCENT = mjn.gradient_descent(OBJECTIVE, 0.02)


@pytest.fixture(autouse=True)
def accelerator():
    if jax.default_backend() == "cpu":
        pytest.skip("there is no accelerator here")


pytestmark = pytest.mark.gpu


def test_a_descent_is_the_cpu_s_to_rounding():
    state, trace = mjn.descend(DESCENT, DESCENT.init(PARAMS), POINTS, steps=500)
    with jax.default_device(jax.devices("cpu")[0]):
        expected, expected_trace = mjn.descend(DESCENT, DESCENT.init(PARAMS), POINTS, steps=500)
    # Matrix products have fewer digits there, but a descent that contracts reduces the differences.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02), state.params, expected.params)
    np.testing.assert_allclose(trace.loss, expected_trace.loss, rtol=0.02)


def test_blocks_have_the_bits_of_the_plain_loop(monkeypatch):
    found = []
    for block in (1, 64):
        monkeypatch.setattr(_loops, "_BLOCK", block)
        found.append(mjn.descend(DESCENT, DESCENT.init(PARAMS), POINTS, steps=333))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), *found)


def test_within_a_descent_nothing_is_moved(tmp_path):
    state, points, key = jax.device_put((DESCENT.init(PARAMS), POINTS, jax.random.key(1)))
    with jax.transfer_guard("disallow"):
        mjn.descend(DESCENT, state, points, steps=200)
        mjn.fit(DESCENT, state, points, steps=200, batch_size=2, key=key, run_dir=tmp_path)


def test_a_right_rule_is_right_and_a_wrong_one_is_not():
    sizes = (8, 16, 4)
    network, x = mjn.mlp(sizes), np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    batch, params = (x, x[:, :4]), network.init(jax.random.key(0))
    loss = mjn.objective(network, mjn.mean_squared_error)
    by_hand = mjn.mlp_gradient(sizes, activation=jax.nn.relu, loss=mjn.mean_squared_error)
    report = mjn.check_grad(loss, by_hand, (params, batch), has_value=True)
    assert report.ok, str(report)
    assert not mjn.check_grad(lambda w: jnp.sum(w**2), lambda w: w, (x,)).ok


def test_arms_that_round_otherwise_are_not_refused():
    draw = np.random.default_rng(0)
    network, x = mjn.mlp((64, 128, 10)), draw.normal(size=(128, 64)).astype(np.float32)
    batch, params = (x, draw.integers(10, size=128)), network.init(jax.random.key(0))
    loss = mjn.objective(network, mjn.softmax_cross_entropy)
    by_hand = mjn.mlp_gradient((64, 128, 10), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)
    arms = {"autodiff": mjn.gradient_descent(loss, 0.1)}
    arms["by hand"] = mjn.gradient_descent(mjn.with_gradient(loss, by_hand), 0.1)
    found = mjn.compare_steps(arms, params, batch, baseline="autodiff", seconds=2.0)
    assert set(found.ratios) == {"by hand"}


def test_a_cost_has_launches_and_the_observed_memory():
    cost = step_cost(DESCENT.step, DESCENT.init(PARAMS), POINTS)
    assert cost.launches and cost.process_peak_bytes
