"""Errors of what is passed to the library name the argument, what it got and what is expected, in every function."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import minijaxnet as mjn

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = np.arange(12, dtype=np.int32) % 3
ONE_HOT = np.eye(3, dtype=np.float32)[Y]
NETWORK = mjn.mlp((4, 3))
OBJECTIVE = mjn.objective(NETWORK, mjn.softmax_cross_entropy)
DESCENT = mjn.gradient_descent(OBJECTIVE, 0.1)
ADAM = mjn.optax_descent(OBJECTIVE, optax.adam(0.1))
PARAMS = NETWORK.init(jax.random.key(0))
YES_OR_NO = mjn.gradient_descent(mjn.objective(NETWORK, mjn.binary_cross_entropy), 0.1)

VERBS = {
    "descend": lambda descent, batch: mjn.descend(descent, descent.init(PARAMS), batch, steps=2),
    "fit": lambda descent, batch: mjn.fit(descent, descent.init(PARAMS), batch, steps=2),
    "time_step": lambda descent, batch: mjn.time_step(descent, PARAMS, batch, seconds=0.01),
    "compare_steps": lambda descent, batch: mjn.compare_steps(
        {"a": descent, "b": descent}, PARAMS, batch, baseline="a", seconds=0.01
    ),
    "sweep": lambda descent, batch: mjn.sweep(
        lambda rate: mjn.descend(
            mjn.gradient_descent(descent.step.objective, rate), descent.init(PARAMS), batch, steps=2
        ),
        {"rate": [0.1, 0.2]},
    ),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("descent", "y", "message"),
    [
        (DESCENT, np.roll(ONE_HOT, 1, axis=1) * (Y != 2)[:, None], r"labels\[2\]: got .*sums to 0"),
        (DESCENT, jnp.asarray(ONE_HOT + np.roll(ONE_HOT, 1, axis=1)), r"labels\[0\]: got .*sums to 2"),
        (YES_OR_NO, 2 * ONE_HOT, r"labels\[0, 0\]: got 2.0; expected a probability"),
    ],
    ids=["sum 0", "sum 2", "yes or no"],
)
def test_labels_that_are_no_probabilities(verb, descent, y, message):
    with pytest.raises(ValueError, match=message):
        VERBS[verb](descent, (X, y))


@pytest.mark.parametrize("verb", ["descend", "fit", "time_step", "compare_steps"])
def test_labels_that_are_no_classes(verb):
    with pytest.raises(ValueError, match=r"labels\[2\]: got 3; expected a class of 3"):
        VERBS[verb](DESCENT, (X, Y + 1))


def test_labels_of_jax_are_looked_at_once(monkeypatch):
    labels = jnp.asarray(ONE_HOT)
    VERBS["descend"](DESCENT, (X, labels))
    monkeypatch.setattr("minijaxnet.losses._check_sums", lambda labels: pytest.fail("looked at again"))
    VERBS["descend"](DESCENT, (X, labels))
    with pytest.raises(pytest.fail.Exception):
        VERBS["descend"](DESCENT, (X, ONE_HOT))  # NumPy's may have changed


@pytest.mark.parametrize("verb", ["descend", "fit", "time_step", "compare_steps"])
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([(X, Y), (X, Y)], "got a list of 2 batches"),
        ([[X, Y], [X, Y], [X, Y]], "got a list of 3 batches"),
        ([{"x": X, "y": Y}] * 2, "got a list of 2 batches"),
        ((X, None), r"\.y: got None"),
        (X, r"got float32\[12,4\]; expected a pair"),
        ((X[:0], Y[:0]), "got (no points|an empty data set)|expected at least one point"),
    ],
    ids=["pairs", "lists", "dicts", "no y", "x alone", "no points"],
)
def test_what_is_no_batch(verb, batch, message):
    with pytest.raises((TypeError, ValueError), match=message):
        VERBS[verb](DESCENT, batch)


def test_a_pair_of_trees_is_one_batch():
    descent = mjn.gradient_descent(lambda weights, batch: jnp.sum(weights * batch[0]["a"]) - batch[1]["b"][0], 0.1)
    mjn.descend(descent, descent.init(jnp.ones(3)), [{"a": np.ones(3)}, {"b": np.ones(3)}], steps=2)


@pytest.mark.parametrize(
    ("descent", "state"), [(DESCENT, ADAM), (ADAM, DESCENT), (mjn.optax_descent(OBJECTIVE, optax.sgd(0.1)), ADAM)]
)
@pytest.mark.parametrize("take", [mjn.descend, mjn.fit])
def test_the_state_of_another_descent(descent, state, take):
    with pytest.raises(TypeError, match=r"state.optimizer, compared with that from the descent's init: got"):
        take(descent, state.init(PARAMS), (X, Y), steps=2)


@pytest.mark.parametrize("key", [None, 0, np.array([0, 1]), jax.random.split(jax.random.key(0), 2)])
def test_what_is_no_key(key):
    with pytest.raises(TypeError, match=r"key: got .*; expected a jax.random.key"):
        mjn.descend_epochs(DESCENT, DESCENT.init(PARAMS), (X, Y), key, batch_size=4, epochs=1)


def test_auxiliary_text():
    descent = mjn.gradient_descent(lambda weight, batch: (weight**2, {"name": "a"}), 0.1, has_aux=True)
    with pytest.raises(TypeError, match=r"objective: aux\['name'\]: got a str"):
        mjn.descend(descent, descent.init(1.0), 0.0, steps=1)


@pytest.mark.parametrize("number", [10**30, -(10**400)])
def test_integers_beyond_64_bits(number):
    descent = mjn.gradient_descent(lambda weight, batch: (weight - batch) ** 2, 0.1)
    with pytest.raises(ValueError, match=r"batch: got an integer of (31|401) digits"):
        mjn.descend(descent, descent.init(1.0), number, steps=1)


@pytest.mark.parametrize("value", [10**400, np.datetime64("2020"), np.ones(2), None])
def test_measured_values_that_are_no_numbers(value):
    with pytest.raises(TypeError, match=r"measure: a: got .*; expected a number"):
        mjn.fit(DESCENT, DESCENT.init(PARAMS), (X, Y), steps=1, measure=lambda params: {"a": value})


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (None, "axes: got a NoneType"),
        ([("rate", [0.1])], "axes: got a list"),
        ({"rate": (0.1 * k for k in range(3))}, r"axes\['rate'\]: got a generator"),
        ({"rates": [0.1]}, "axes: got rates; expected the arguments of run"),
        ({"rate": [0.1], "seed": [1]}, "axes: got rate, seed; expected the arguments of run"),
    ],
)
def test_what_is_no_axis(axes, message):
    with pytest.raises(TypeError, match=message):
        mjn.sweep(lambda rate: rate, axes)


def test_steps_that_are_not_compiled_are_not_timed():
    with jax.disable_jit(), pytest.raises(ValueError, match="JAX_DISABLE_JIT: got true"):
        VERBS["time_step"](DESCENT, (X, Y))
