"""The experiment on learning rates: its eigenvalues are the Hessian's, and a bowl's edge is where theory says."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minijaxnet as mjn

learning_rates = importlib.import_module("learning_rates")

EIGENVALUES = np.array([0.1, 0.5, 1.0, 4.0, 10.0])
PARAMS = {"w": np.ones(5, np.float32)}
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]


def bowl(params, batch):
    return 0.5 * jnp.sum(EIGENVALUES * (TURN @ params["w"]) ** 2)


@pytest.mark.parametrize("way", [pytest.param("hessian_eigenvalue", marks=pytest.mark.slow), "lanczos_eigenvalue"])
def test_both_ways_find_the_largest_eigenvalue(way):
    assert getattr(learning_rates, way)(bowl, PARAMS, None) == pytest.approx(10.0, rel=1e-5)


def test_one_iteration_of_lanczos_is_not_enough():
    assert learning_rates.lanczos_eigenvalue(bowl, PARAMS, None, iterations=1) < 10.0


@pytest.mark.slow
def test_lanczos_agrees_with_the_whole_hessian_of_a_network():
    network = mjn.mlp((2, 4, 1), activation=jnp.tanh)
    objective = mjn.objective(network, mjn.mean_squared_error)
    arguments = objective, network.init(jax.random.key(0)), mjn.lesson_points()
    exact = learning_rates.hessian_eigenvalue(*arguments)
    assert learning_rates.lanczos_eigenvalue(*arguments) == pytest.approx(exact, rel=1e-4)


def test_in_a_bowl_descents_go_astray_beyond_2_over_the_largest_eigenvalue():
    network = mjn.Network(
        lambda key: {"w": jnp.cos(jnp.arange(5.0) + jax.random.key_data(key)[-1])}, lambda params, x: x
    )
    work = learning_rates.Workload(network, bowl, np.zeros(1, np.float32), 400)
    rates = 0.2 * np.array([0.5, 0.98, 1.02, 2.0])
    result = learning_rates.sweep_rates(work, rates, 6)
    gone = learning_rates.astray(result)
    np.testing.assert_array_equal(gone, np.repeat([[False], [False], [True], [True]], 6, axis=1))
    assert learning_rates.edge(rates, gone) == (rates[1], rates[2])


def test_where_none_or_all_go_astray_the_edge_is_open():
    rates = np.array([0.1, 0.2])
    assert learning_rates.edge(rates, np.zeros((2, 3), bool)) == (0.2, np.inf)
    assert learning_rates.edge(rates, np.ones((2, 3), bool)) == (0.0, 0.1)


@pytest.mark.slow
def test_the_report_holds_the_measured_edge_against_theorys():
    text = learning_rates.report("a unit", learning_rates.linear_unit(), 12, 3)
    assert "a unit: 36 descents of 500 steps" in text and "(the whole Hessian)" in text
    low, high = (float(text.split("half go astray between ")[1].split()[i]) for i in (0, 2))
    theory = float(text.split("eigenvalue at the start: ")[1].split()[0])
    assert low <= theory * 1.01 and theory * 0.99 <= high
