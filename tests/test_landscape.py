"""The loss along a direction and over a plane, and where a descent passes on it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.descents import OBJECTIVE, PARAMS, POINTS, as_in, squared_distance
from kits.marks import SLOW

import minijaxnet as mjn
from minijaxnet import landscape
from minijaxnet.landscape import loss_slice, loss_surface, project_path, weight_direction

jitted = jax.jit(OBJECTIVE)
WEIGHTS = "[0]['weights']"

few = settings(max_examples=25, deadline=None)


def tree_like(params, seed, dtype="float32"):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(dtype), params)


ALONG, ACROSS = (tree_like(PARAMS, seed) for seed in (1, 2))


def the_weight(weight, batch):
    return weight


def stepped(params, *moves):
    """params + sum of offset * direction, one leaf at a time in NumPy, rounded to the dtype of the params."""

    def move(leaf, *steps):
        wide = np.promote_types(np.float32, np.asarray(leaf).dtype)
        moved = np.asarray(leaf, wide)
        for (offset, _), step in zip(moves, steps, strict=True):
            moved = moved + np.asarray(offset, wide) * np.asarray(step, wide)
        return moved.astype(leaf.dtype)

    return jax.tree.map(move, params, *[direction for _, direction in moves])


# --- The loss along a direction, and over two -------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), SLOW("bfloat16", 2e-2), SLOW("float64", 1e-12)])
def test_each_point_of_a_slice_is_the_loss_at_the_moved_params(dtype, rtol):
    with jax.enable_x64(dtype == "float64"):
        params, direction = as_in(dtype, (PARAMS, ALONG))
        got = loss_slice(OBJECTIVE, params, POINTS, direction=direction, span=2.0, points=5)
        expected = [jitted(stepped(params, (offset, direction)), POINTS) for offset in np.asarray(got.offsets)]
        assert got.losses.dtype == expected[0].dtype
        assert got.offsets.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
        np.testing.assert_allclose(np.asarray(got.losses, np.float64), np.array(expected, np.float64), rtol=rtol)


def surface_of(params, directions, **options):
    return jax.device_get(loss_surface(OBJECTIVE, params, POINTS, directions=directions, points=5, **options))


def test_each_point_of_a_surface_is_the_loss_at_the_moved_params_first_direction_first():
    got = surface_of(PARAMS, (ALONG, ACROSS), span=0.7)
    chex.assert_shape(got.offsets, (5,))
    chex.assert_shape(got.losses, (5, 5))
    for i, a in enumerate(got.offsets):
        for j, b in enumerate(got.offsets):
            expected = jitted(stepped(PARAMS, (a, ALONG), (b, ACROSS)), POINTS)
            np.testing.assert_allclose(got.losses[i, j], expected, rtol=1e-5)


@few
@given(st.floats(1e-3, 1e3), st.sampled_from([2, 3, 8, 33]))
def test_offsets_are_symmetric_to_the_last_bit_and_end_at_the_span(span, points):
    offsets = np.asarray(loss_slice(the_weight, 0.0, None, direction=1.0, span=span, points=points).offsets)
    np.testing.assert_array_equal(offsets, -offsets[::-1])
    assert offsets[-1] == np.float32(span)
    assert (np.diff(offsets) > 0).all()
    assert points % 2 == 0 or offsets[points // 2] == 0


@pytest.mark.parametrize(("sizes", "points"), [((64, 512, 512, 10), 16), SLOW((64, 256, 10), 4096)])
def test_a_surface_fits_in_memory_be_the_weights_many_or_the_points(sizes, points):
    large = mjn.mlp(sizes)
    f = jax.checkpoint(mjn.objective(large, mjn.mean_squared_error))
    params = jax.eval_shape(large.init, jax.random.key(0))
    data = tuple(jax.ShapeDtypeStruct((points, width), jnp.float32) for width in (sizes[0], sizes[-1]))
    grid = jax.ShapeDtypeStruct((51 * 51, 2), jnp.float32)
    compiled = landscape._losses.trace(f, params, data, (params, params), grid).lower().compile()
    largest_bytes = 4 * max(sizes[1] * sizes[2], points * sizes[1])
    assert compiled.memory_analysis().temp_size_in_bytes < 2**25 < 51 * 51 * largest_bytes / 50


def test_another_span_direction_or_params_traces_nothing_again():
    traces = []

    def counted(params, batch):
        traces.append(1)
        return squared_distance(params, batch)

    loss_slice(counted, np.float32(1), 0.0, direction=1.0, points=6)
    before = len(traces)
    loss_slice(counted, np.float32(2), 0.0, direction=3.0, span=0.3, points=6)
    assert len(traces) == before > 0


def test_a_slice_works_under_vmap_jit_and_grad():
    def losses(start):
        return loss_slice(lambda w, _: w**2, start, None, direction=1.0, points=3).losses

    starts, expected = np.float32([1, 2]), np.float32([[0, 1, 4], [1, 4, 9]])
    np.testing.assert_allclose(jax.vmap(losses)(starts), expected)
    one, gradient = jax.jit(lambda start: (losses(start), jax.grad(lambda start: losses(start).sum())(start)))(2.0)
    np.testing.assert_allclose(one, expected[1])
    np.testing.assert_allclose(gradient, 12.0)


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (TypeError, r"direction: got a tree", {"direction": (1.0, 2.0)}),
        (ValueError, r"direction\['w'\]: got shape \(3,\); expected \(2,\)", {"direction": {"w": np.ones(3)}}),
        (TypeError, r"direction\['w'\]: got dtype complex64", {"direction": {"w": np.ones(2, complex)}}),
        (TypeError, r"direction\['w'\]: got str", {"direction": {"w": "up"}}),
        (TypeError, "points: got 2.5; expected an int", {"points": 2.5}),
        (ValueError, "points: got 1; expected at least 2", {"points": 1}),
        (ValueError, "span: got 0; expected a positive", {"span": 0}),
        (ValueError, "span: got nan", {"span": float("nan")}),
        (TypeError, "span: got True", {"span": True}),
        (TypeError, r"objective: got float32\[2\]; expected the loss", {"objective": lambda p, b: p["w"]}),
        (TypeError, r"params\['w'\]: got dtype int32", {"params": {"w": np.arange(2)}}),
    ],
)
def test_a_slice_says_what_it_cannot_draw(error, text, arguments):
    plain = {"objective": lambda p, b: jnp.sum(p["w"]), "params": {"w": np.ones(2)}, "direction": {"w": np.ones(2)}}
    given = plain | arguments
    with pytest.raises(error, match=text):
        loss_slice(given.pop("objective"), given.pop("params"), None, **given)


@pytest.mark.parametrize("directions", [None, 3 * ({"w": np.ones(2)},)])
def test_a_surface_needs_two_directions(directions):
    with pytest.raises(TypeError, match=r"directions: got .*; expected two trees like params"):
        loss_surface(lambda p, b: jnp.sum(p["w"]), {"w": np.ones(2)}, None, directions=directions)


# --- The direction of one weight --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", SLOW("bfloat16")])
@few
@given(data=st.data())
def test_a_weight_direction_is_one_there_and_zero_elsewhere(dtype, data):
    params = as_in(dtype, PARAMS)
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    path = data.draw(st.sampled_from(list(leaves)))
    index = tuple(data.draw(st.integers(-size, size - 1)) for size in leaves[path].shape)
    direction = weight_direction(params, path, index)
    chex.assert_trees_all_equal_shapes_and_dtypes(direction, params)
    expected = {name: np.zeros(leaf.shape) for name, leaf in leaves.items()}
    expected[path][index] = 1  # in weights by input, then node
    for name, leaf in jax.tree_util.tree_flatten_with_path(direction)[0]:
        np.testing.assert_array_equal(np.asarray(leaf, np.float64), expected[jax.tree_util.keystr(name)])


@pytest.mark.parametrize(
    ("error", "text", "path", "index"),
    [
        (ValueError, r"path: got \"weights\"; expected one of .*\"\[1\]\['bias'\]\"", "weights", (0, 0)),
        (TypeError, r"path: got int; expected text such as \"\[0\]\['bias'\]\"", 0, (0, 0)),
        (ValueError, r"index into \[0\]\['weights'\]: got 0; expected an int for each axis of \(2, 4\)", WEIGHTS, 0),
        (ValueError, r"got \(0, 4\); expected an int", WEIGHTS, (0, 4)),
        (TypeError, r"got \(0, 1.5\); expected an int", WEIGHTS, (0, 1.5)),
        (TypeError, r"got \(slice.*; expected an int", WEIGHTS, (slice(None), 0)),
    ],
)
def test_a_weight_that_is_not_there_is_named_with_those_that_are(error, text, path, index):
    with pytest.raises(error, match=text):
        weight_direction(PARAMS, path, index)


# --- The path of a descent --------------------------------------------------------------------------------------------


def random_tree(rng, *leading):
    return {"a": rng.normal(size=(*leading, 2, 3)), "b": (rng.normal(size=(*leading, 4)), rng.normal(size=leading))}


def combined(coordinates, directions):
    return jax.tree.map(lambda *leaves: np.tensordot(coordinates, np.stack(leaves), axes=1), *directions)


@few
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 6))
def test_coordinates_on_the_plane_are_recovered_whatever_the_angle_of_the_directions(seed, count, stops):
    rng = np.random.default_rng(seed)
    directions, origin = [random_tree(rng) for _ in range(count)], random_tree(rng)
    coordinates = rng.normal(size=(stops, count))
    path = jax.tree.map(np.add, combined(coordinates, directions), origin)
    np.testing.assert_allclose(project_path(path, directions, origin=origin), coordinates, rtol=1e-7, atol=1e-9)


def test_the_path_ends_at_the_origin_unless_told_otherwise():
    path = np.float32([[3, 0], [2, 5], [1, 1]])
    directions = [np.float32([1, 0]), np.float32([0, 2])]
    np.testing.assert_array_equal(project_path(path, directions), [[2, -0.5], [1, 2], [0, 0]])
    np.testing.assert_array_equal(project_path(path, directions, origin=path[0]), [[0, 0], [-1, 2.5], [-2, 0.5]])
    # Stops that were not taken stay NaN and do not move the others.
    path = np.float32([*path, [np.nan, np.nan], [np.nan, 0]])
    np.testing.assert_array_equal(
        project_path(path, directions), [[2, -0.5], [1, 2], [0, 0], [np.nan] * 2, [np.nan] * 2]
    )


@pytest.mark.parametrize("dtype", ["float32", SLOW("bfloat16")])
def test_a_descents_recorded_path_lies_where_its_params_say(dtype):
    def with_params(params, batch):
        return sum(squared_distance(leaf, 1) for leaf in jax.tree.leaves(params)), params

    params = as_in(dtype, PARAMS)
    descent = mjn.gradient_descent(with_params, 0.01, has_aux=True)
    _, trace = mjn.descend(descent, descent.init(params), (), steps=5)
    directions = [weight_direction(params, WEIGHTS, (0, 1)), weight_direction(params, "[1]['bias']", 0)]
    got = project_path(trace.aux, directions, origin=params)
    assert got.dtype == np.float64
    chosen = np.stack([trace.aux[0]["weights"][:, 0, 1], trace.aux[1]["bias"][:, 0]], axis=1).astype(np.float64)
    np.testing.assert_allclose(got, chosen - chosen[0], rtol=1e-12, atol=1e-15)
    assert np.abs(got[-1]).max() > 0


ONE, OTHER = {"w": np.array([1.0, 0.0])}, {"w": np.array([0.0, 1.0])}


@pytest.mark.parametrize(
    ("error", "text", "path", "directions", "origin"),
    [
        (TypeError, "directions: got dict; expected a list", {"w": np.ones((3, 2))}, ONE, None),
        (ValueError, "not independent", {"w": np.ones((3, 2))}, [ONE, ONE], None),
        (ValueError, "not finite", {"w": np.ones((3, 2))}, [{"w": np.array([1.0, np.nan])}], None),
        (TypeError, r"directions\[1\]: got a tree", {"w": np.ones((3, 2))}, [ONE, {"v": np.ones(2)}], None),
        (ValueError, r"directions\[1\]\['w'\]: got shape", {"w": np.ones((3, 2))}, [ONE, {"w": np.ones(1)}], None),
        (TypeError, "path: got a tree", np.ones((3, 2)), [ONE], None),
        (ValueError, r"path\['w'\]: got shape \(2,\); expected \(2, 2\)", {"w": np.ones(2)}, [ONE], None),
        (ValueError, "got 0 stops, none of them finite", {"w": np.ones((0, 2))}, [ONE], None),
        (ValueError, r"origin\['w'\]: got shape \(1,\)", {"w": np.ones((3, 2))}, [ONE], {"w": np.ones(1)}),
    ],
)
def test_a_path_that_cannot_be_projected_is_refused(error, text, path, directions, origin):
    with pytest.raises(error, match=text):
        project_path(path, directions, origin=origin)
