"""The lesson that the framework grew from, number by number.

Every number is a small dyadic fraction unless a rate of 0.01 is in play, so almost every assertion here is an equality.
Where 0.01 enters, the bound is one rounding of the numbers that the equation adds.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minijaxnet as mjn

RELU_EVERYWHERE = mjn.mlp((2, 2, 1), activation=jax.nn.relu, output_activation=jax.nn.relu, bias=False)
RELU_HIDDEN = mjn.mlp((2, 2, 1), activation=jax.nn.relu, bias=False)
LINEAR = mjn.mlp((2, 2, 1), activation=lambda x: x, bias=False)
RELU_OBJECTIVE = mjn.objective(RELU_EVERYWHERE, mjn.mean_squared_error)
NETWORKS = pytest.mark.parametrize(
    "network", [RELU_EVERYWHERE, RELU_HIDDEN, LINEAR], ids=["relu", "relu hidden", "linear"]
)

jitted = functools.cache(jax.jit)
ACTUAL = np.array([[1.0], [3.0], [5.0], [7.0]], np.float32)
WEIGHTS_A = ((2, 1), (1, 2), (1, 1))
WEIGHTS_B = ((2, 1), (1, 1.5), (1, 1.5))


def weights(node_0, node_1, output):
    """The lesson names the weights that flow into each node; a column of a weight matrix holds those."""
    hidden = np.float32([node_0, node_1]).T
    return ({"weights": hidden}, {"weights": np.float32(output)[:, None]})


def predict(network, params, *point):
    return jitted(network.apply)(params, np.float32([point]))


def error(network, params, point, actual):
    return float(mjn.prediction_errors(predict(network, params, *point), np.float32([[actual]]))[0, 0])


@NETWORKS
@pytest.mark.parametrize(("output", "prediction", "expected_error"), [((2, -1), 9.0, -4.0), ((3, -2), 13.0, 0.0)])
def test_the_baseline_network_predicts_9_and_after_a_change_of_weights_13(network, output, prediction, expected_error):
    params = weights((1, 1), (-1, 1), output)
    hidden = mjn.dense(2, 2, bias=False).apply(params[0], np.float32([[2, 3]]))
    chex.assert_trees_all_equal(hidden, np.float32([[5, 1]]))
    assert predict(network, params, 2, 3) == prediction
    assert error(network, params, (2, 3), 13) == expected_error


@pytest.mark.parametrize("network", [RELU_EVERYWHERE, RELU_HIDDEN], ids=["relu", "relu hidden"])
@pytest.mark.parametrize(
    ("point", "params", "actual", "prediction", "expected_error"),
    [
        ((3, 2), ((2, 1), (0, 0), (2, 2)), 5, 16.0, 11.0),
        ((0, 3), ((2, 1), (1, 2), (1, 1)), 3, 9.0, 6.0),
        ((0, 3), ((2, 1), (1, 0), (1, 1)), 3, 3.0, 0.0),
    ],
)
def test_the_practice_networks_predict_what_the_lesson_says(network, point, params, actual, prediction, expected_error):
    assert predict(network, weights(*params), *point) == prediction
    assert error(network, weights(*params), point, actual) == expected_error


def test_the_lesson_points_are_the_four_of_the_lesson():
    x, y = mjn.lesson_points()
    chex.assert_trees_all_equal(x, np.float32([(0, 3), (1, 2), (-1, -2), (4, 0)]))
    chex.assert_trees_all_equal(y, ACTUAL)


@pytest.mark.parametrize(
    ("params", "predictions", "mean_squared_error"),
    [(WEIGHTS_A, [9.0, 9.0, 0.0, 12.0], 37.5), (WEIGHTS_B, [9.75, 10.0, 0.0, 14.0], 49.890625)],
    ids=["A", "B"],
)
def test_many_points_make_as_many_errors_and_one_loss(params, predictions, mean_squared_error):
    points = mjn.lesson_points()
    got = np.asarray(jitted(RELU_EVERYWHERE.apply)(weights(*params), points.x))
    errors = mjn.prediction_errors(got, points.y)
    chex.assert_trees_all_equal(got[:, 0], np.float32(predictions))
    chex.assert_trees_all_equal(errors, got - ACTUAL)
    assert mjn.mean_squared_error(got, points.y) == mean_squared_error
    assert jitted(RELU_OBJECTIVE)(weights(*params), points) == mean_squared_error
    assert np.mean(np.square(np.array(predictions) - ACTUAL[:, 0])) == mean_squared_error


def test_the_loss_aggregates_squared_errors_100_25_25_to_a_mean_of_50():
    predicted, actual = np.float32([10, 8, 6]), np.float32([20, 3, 1])
    errors = np.asarray(mjn.prediction_errors(predicted, actual))
    chex.assert_trees_all_equal(errors, np.float32([-10, 5, 5]))
    chex.assert_trees_all_equal(errors**2, np.float32([100, 25, 25]))
    assert np.sum(errors**2) == 150
    assert mjn.mean_squared_error(predicted, actual) == 50


def test_a_lower_loss_means_a_better_model():
    points, loss = mjn.lesson_points(), jitted(RELU_OBJECTIVE)
    assert loss(weights(*WEIGHTS_A), points) < loss(weights(*WEIGHTS_B), points)


def test_the_loss_surface_over_two_weights_has_a_valley_and_descent_goes_down_into_it():
    # Only the two output weights move: predictions are linear in them, so the surface is a bowl, and with a rate below
    # 1 / (largest curvature) each step of gradient descent lowers the loss.
    points, (hidden, output) = mjn.lesson_points(), weights(*WEIGHTS_A)

    def loss(output, batch):
        return mjn.mean_squared_error(RELU_HIDDEN.apply((hidden, output), batch.x), batch.y)

    features = np.maximum(np.asarray(points.x) @ hidden["weights"], 0)
    largest_curvature = np.linalg.eigvalsh(2 * features.T @ features / len(features)).max()
    valley = np.linalg.lstsq(features, ACTUAL, rcond=None)[0]
    descent = mjn.gradient_descent(loss, 1 / largest_curvature)
    state, trace = mjn.descend(descent, descent.init(output), points, steps=1_000)

    taken = trace.loss[: trace.steps_taken]
    assert taken[0] == 37.5
    assert (np.diff(taken[:20]) < 0).all(), "the path goes downhill"
    # Near the bottom a difference of losses drowns in their rounding; it may never rise by more than that.
    assert np.diff(taken).max() <= 8 * np.finfo(np.float32).eps * taken.min()
    chex.assert_trees_all_close(state.params["weights"], valley, rtol=1e-5)
    assert jitted(loss)(state.params, points) <= jitted(loss)({"weights": valley + np.float32(0.01)}, points)


def squared_error(weight, batch):
    x, actual = batch
    return (x * weight - actual) ** 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_single_weight_of_2_has_slope_minus_24_and_moves_to_2_24(dtype):
    with jax.enable_x64(dtype is np.float64):
        descent = mjn.gradient_descent(squared_error, learning_rate=0.01)
        state, info = jitted(descent.step)(descent.init(2.0), (3.0, 10.0))
        assert jitted(jax.grad(squared_error))(2.0, (3.0, 10.0)) == -24
        assert (info.loss, info.gradient_norm) == (16, 24)
        assert state.params.dtype == dtype
        assert abs(float(state.params) - float(dtype(2.24))) <= (np.spacing(2.24) if dtype is np.float64 else 0)


def linear_unit_error(weights, batch):
    inputs, actual = batch
    return mjn.prediction_errors((inputs @ weights)[None], jnp.asarray(actual)[None])[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_slope_by_hand_is_30_40_and_the_step_leads_to_an_error_of_2_5(dtype):
    def loss(weights, batch):
        error = linear_unit_error(weights, batch)
        return error**2, error

    with jax.enable_x64(dtype is np.float64):
        start, batch = np.array([1, 2], dtype), (np.array([3, 4], dtype), dtype(6))
        see = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, error), slope = see(start, batch)
        slope_by_hand = 2 * batch[0] * error
        assert error == 5
        chex.assert_trees_all_equal(slope_by_hand, slope, jnp.array([30, 40], dtype))
        descent = mjn.gradient_descent(loss, learning_rate=0.01, has_aux=True)
        one_step, info = jax.jit(descent.step)(descent.init(start), batch)
        looped, trace = mjn.descend(descent, descent.init(start), batch, steps=1)
        assert (info.loss, info.gradient_norm) == (trace.loss[0], trace.gradient_norm[0]) == (25, 50)
        for state in (one_step, looped):
            got = np.asarray(state.params)
            # 0.01 is not a float and 1 - 0.3 rounds once more: half an ulp of 1 (of 2) each.
            np.testing.assert_array_less(np.abs(got - np.array([0.7, 1.6])), np.spacing(np.array([1, 2], dtype)))
            # The error adds 2.1, 6.4 and -6, which rounds at 8.
            assert abs(float(see(got, batch)[0][1]) - 2.5) <= 2 * float(np.spacing(dtype(8)))


def test_each_step_in_a_bowl_goes_against_the_slope_and_is_smaller_until_it_rests_at_the_minimum():
    def bowl(weight, batch):
        return (weight - 3) ** 2, weight

    descent = mjn.gradient_descent(bowl, learning_rate=0.25, has_aux=True)  # halves the distance: exact in binary
    for start in (-1.0, 7.0):
        state, trace = mjn.descend(descent, descent.init(start), (), steps=100)
        path = np.append(trace.aux[: trace.steps_taken], state.params)
        slopes, moves = 2 * (path[:-1] - 3), np.diff(path)
        assert (np.sign(moves) == -np.sign(slopes)).all()
        assert (np.diff(np.abs(moves))[:-1] < 0).all()  # the last move is an ulp of 3, the smallest there is
        assert (state.params, trace.status) == (3, mjn.FLAT)
