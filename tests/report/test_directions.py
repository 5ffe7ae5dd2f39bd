"""Directions for pictures of large networks: as long as the filters, or along the path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minijaxnet as mjn
from minijaxnet.report.directions import principal_directions, random_directions

NETWORK = mjn.mlp((3, 5, 2))
PARAMS = NETWORK.init(jax.random.key(1))


def path_in_a_plane(dtype="float32"):
    """Moments on a plane spanned by two orthonormal trees, and their coordinates on it."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(12, 2)))[0].T
    angles = np.linspace(0, 2, 9)
    coordinates = np.stack([3 * np.cos(angles), np.sin(angles)], axis=1)
    rows = coordinates @ basis + rng.normal(size=12)
    path = {"weights": jnp.asarray(rows[:, :8].reshape(9, 4, 2), dtype), "bias": jnp.asarray(rows[:, 8:], dtype)}
    return path, coordinates - coordinates[-1]


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


def test_a_path_in_a_plane_is_explained_and_reproduced():
    path, coordinates = path_in_a_plane()
    first, second, explained = principal_directions(path)
    assert sum(explained) == pytest.approx(1, abs=1e-6)
    assert explained[0] > explained[1] > 0
    along = mjn.project_path(path, (first, second))
    np.testing.assert_allclose(np.linalg.norm(along, axis=1), np.linalg.norm(coordinates, axis=1), atol=1e-5)
    last = jax.tree.map(lambda leaf: leaf[-1], path)
    for place, moment in zip(along, zip(*jax.tree.leaves(path), strict=True), strict=True):
        back = jax.tree.map(lambda w, a, b, place=place: w + place[0] * a + place[1] * b, last, first, second)
        np.testing.assert_allclose(flat(back), flat(moment), atol=1e-5)


def test_the_directions_are_orthonormal_and_agree_with_an_svd():
    with jax.enable_x64(True):
        path, _ = path_in_a_plane("float64")
        found = principal_directions(path)
        rows = np.concatenate([np.reshape(leaf, (9, -1)) for leaf in jax.tree.leaves(path)], axis=1)
        first, second = flat(found.first), flat(found.second)
    _, singular, right = np.linalg.svd(rows - rows[-1])
    np.testing.assert_allclose([first @ first, second @ second, first @ second], [1, 1, 0], atol=1e-12)
    np.testing.assert_allclose([abs(first @ right[0]), abs(second @ right[1])], [1, 1], atol=1e-12)
    np.testing.assert_allclose(found.explained, singular[:2] ** 2 / (singular**2).sum(), atol=1e-12)
    assert (rows[0] - rows[-1]) @ first > 0


def test_the_surface_over_the_principal_directions_has_the_paths_losses():
    batch = mjn.lesson_points()
    network = mjn.mlp((2, 4, 1))
    objective = mjn.objective(network, mjn.mean_squared_error)
    descent = mjn.gradient_descent(lambda params, batch: (objective(params, batch), params), 0.01, has_aux=True)
    _, trace = mjn.descend(descent, descent.init(network.init(jax.random.key(0))), batch, steps=50)
    found = principal_directions(trace.aux)
    places = mjn.project_path(trace.aux, found[:2])
    span = float(abs(places[0, 0]))
    last = jax.tree.map(lambda leaf: leaf[-1], trace.aux)
    surface = mjn.loss_surface(objective, last, batch, directions=found[:2], span=span, points=3)
    assert surface.losses[1, 1] == pytest.approx(trace.loss[-1], rel=1e-5)
    assert sum(found.explained) > 0.9


def test_moments_that_were_not_reached_are_left_out():
    path, _ = path_in_a_plane()
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.full_like(leaf[:2], jnp.nan)]), path)
    np.testing.assert_array_equal(flat(principal_directions(padded).first), flat(principal_directions(path).first))


def test_a_path_that_spans_no_plane_is_refused():
    line = {"w": jnp.linspace(0, 1, 5)[:, None] * jnp.ones(3)}
    with pytest.raises(ValueError, match="path: got 5 moments on a line"):
        principal_directions(line)
    with pytest.raises(ValueError, match="path: got 5 moments on a line"):
        principal_directions({"w": jnp.ones((5, 3))})
    with pytest.raises(ValueError, match="path: got 2 finite moments; expected at least 3"):
        principal_directions({"w": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="expected one axis of moments"):
        principal_directions({"w": jnp.ones((2, 3)), "b": jnp.ones(3)})
