"""Directions for pictures of large networks: as long as the filters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minijaxnet as mjn
from minijaxnet.report.directions import random_directions

NETWORK = mjn.mlp((3, 5, 2))
PARAMS = NETWORK.init(jax.random.key(1))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_each_filter_is_as_long_as_that_of_the_params():
    for direction in random_directions(jax.random.key(0), PARAMS):
        for drawn, layer in zip(direction, PARAMS, strict=True):
            np.testing.assert_allclose(
                np.linalg.norm(drawn["weights"], axis=0), np.linalg.norm(layer["weights"], axis=0), rtol=1e-5
            )
            assert drawn["weights"].shape == layer["weights"].shape
            assert not drawn["bias"].any()


def test_the_two_random_directions_differ_and_come_again_with_the_key():
    first, second = random_directions(jax.random.key(0), PARAMS)
    again, _ = random_directions(jax.random.key(0), PARAMS)
    assert abs(np.corrcoef(flat(first), flat(second))[0, 1]) < 0.9
    np.testing.assert_array_equal(flat(first), flat(again))


def test_a_dead_filter_stays_dead_and_dtypes_stay():
    params = {"weights": jnp.array([[1.0, 0.0], [1.0, 0.0]], jnp.bfloat16)}
    direction, _ = random_directions(jax.random.key(0), params)
    assert direction["weights"].dtype == jnp.bfloat16
    assert not direction["weights"][:, 1].any()


def test_random_directions_need_a_matrix():
    with pytest.raises(ValueError, match=r"params: got leaves of shapes \[\(3,\)\]"):
        random_directions(jax.random.key(0), jnp.ones(3))
