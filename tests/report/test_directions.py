"""Directions for pictures of large networks: as long as the filters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minijaxnet.report.directions import random_directions

# The first filter is dead.
WEIGHTS = np.random.default_rng(1).normal(size=(3, 9)).astype(np.float32) * (np.arange(9) > 0)
PARAMS = {"weights": WEIGHTS, "bias": np.ones(9, np.float32)}


@pytest.fixture(scope="module")
def directions():
    return random_directions(jax.random.key(0), PARAMS)


def test_each_filter_is_as_long_as_that_of_the_params_and_a_dead_one_stays_dead(directions):
    for direction in directions:
        np.testing.assert_allclose(
            np.linalg.norm(direction["weights"], axis=0), np.linalg.norm(WEIGHTS, axis=0), rtol=1e-5
        )
        assert direction["weights"][:, 1:].all() and not direction["bias"].any()
        for name, leaf in PARAMS.items():
            assert (direction[name].shape, direction[name].dtype) == (leaf.shape, leaf.dtype)


def test_the_two_random_directions_differ_and_come_again_with_the_key(directions):
    first, second = (np.ravel(direction["weights"]) for direction in directions)
    again, _ = random_directions(jax.random.key(0), PARAMS)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.9
    np.testing.assert_array_equal(first, np.ravel(again["weights"]))


@pytest.mark.slow
def test_dtypes_stay():
    direction, _ = random_directions(jax.random.key(0), {"weights": WEIGHTS.astype(jnp.bfloat16)})
    assert direction["weights"].dtype == jnp.bfloat16 and not direction["weights"][:, 0].any()


def test_random_directions_need_a_matrix():
    with pytest.raises(ValueError, match=r"params: got leaves of shapes \[\(3,\)\]"):
        random_directions(jax.random.key(0), np.ones(3, np.float32))
