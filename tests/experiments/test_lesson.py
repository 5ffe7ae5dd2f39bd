"""The lesson "The need for optimization": each of its numbers, and what its experiments claim beyond them.

Every number is a small dyadic fraction unless a rate of 0.01 is in play, so almost every assertion here is an equality.
Where 0.01 enters, the bound is a few roundings of the numbers that the equation adds.
"""

import functools
from pathlib import Path

import baseline_network
import chex
import jax
import jax.numpy as jnp
import loss_surface
import numpy as np
import prediction_errors
import pytest
import single_weight
from kits.marks import slow

import minijaxnet as mjn
from minijaxnet.experiment import load_experiment, number_options

FILES = {module.__name__: module for module in (baseline_network, prediction_errors, single_weight, loss_surface)}
OTHERS = slow(*(name for name in FILES if name != "single_weight"))

descend_on_choices = functools.cache(prediction_errors.descend_on_choices)


@functools.cache
def descents(all_weights=False):
    return loss_surface.descend_from(loss_surface.random_starts(), all_weights=all_weights)


# --- What holds for each of the experiments ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["single_weight", *OTHERS])
def test_an_experiments_defaults_take_its_loss_downhill(name):
    experiment = load_experiment(Path(FILES[name].__file__))
    assert experiment.name == name
    defaults, (train, _) = experiment.defaults, experiment.data()
    params = experiment.init(jax.random.key(defaults.seed), **number_options(experiment.init))
    descent = mjn.gradient_descent(experiment.objective, defaults.learning_rate)
    state, trace = mjn.descend(
        descent, descent.init(params), train, steps=defaults.steps, until_flat=defaults.until_flat
    )
    assert trace.status == mjn.FLAT
    assert experiment.objective(state.params, train) < 0.8 * experiment.objective(params, train)


@pytest.mark.parametrize("name", ["single_weight", *OTHERS])
def test_what_an_experiment_prints_fits_a_terminal_and_holds_no_nan(name, capsys):
    FILES[name].main()
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "nan" not in printed
    assert "-0.0000" not in printed


# --- The baseline network ---------------------------------------------------------------------------------------------

LESSON = [((5, 1), 9, -4), ((5, 1), 13, 0), ((8, 0), 16, 11), ((3, 6), 9, 6), ((3, 0), 3, 0)]


def test_node_by_node_and_as_matrices_the_forward_pass_is_the_lessons():
    for case, lesson in zip(baseline_network.CASES, LESSON, strict=True):
        assert baseline_network.node_by_node(case) == lesson
        assert baseline_network.forward(baseline_network.params_of(case), baseline_network.batch_of(case)) == lesson


@pytest.mark.parametrize("options", [{"output_activation": jax.nn.relu}, {"activation": lambda x: x}])
def test_with_relu_on_the_output_and_without_relu_the_baseline_predicts_the_same(options):
    network = mjn.mlp((2, 2, 1), bias=False, **options)
    for case, (_, prediction, _) in list(zip(baseline_network.CASES, LESSON, strict=True))[:2]:
        x, _ = baseline_network.batch_of(case)
        assert network.apply(baseline_network.params_of(case), x) == prediction


def test_a_descent_finds_weights_with_an_error_of_0():
    found = baseline_network.descend_from_baseline()
    assert found.status == mjn.FLAT
    assert (found.forward_at_start.error, found.forward_at_start.prediction) == (-4, 9)
    assert abs(found.forward_at_end.error) < 1e-3
    assert 0 < found.steps < 1_000


def test_after_too_long_a_step_both_hidden_nodes_are_0():
    found = baseline_network.descend_from_baseline(0.02)
    assert found.status == mjn.FLAT
    assert found.forward_at_end == ((0, 0), 0, -13)


@pytest.mark.slow
def test_each_random_start_ends_with_an_error_of_0_or_with_hidden_nodes_at_0():
    ends = baseline_network.descend_from_many()
    right, zero = np.abs(ends.errors) < 1e-3, np.all(ends.hidden == 0, axis=1)
    assert (ends.statuses == mjn.FLAT).all()
    np.testing.assert_array_equal(right, ~zero)
    assert (ends.errors[zero] == -13).all()
    assert 200 < zero.sum() < 500


# --- Prediction errors ------------------------------------------------------------------------------------------------


def test_the_lessons_points_and_weights_have_its_errors_and_losses():
    x, y = mjn.lesson_points()
    chex.assert_trees_all_equal(x, np.float32([(0, 3), (1, 2), (-1, -2), (4, 0)]))
    chex.assert_trees_all_equal(y, np.float32([[1], [3], [5], [7]]))
    a, b = (prediction_errors.errors_at(prediction_errors.WEIGHTS[name]) for name in "AB")
    assert a.predictions.tolist() == [9, 9, 0, 12]
    assert a.errors.tolist() == [8, 6, -5, 5]
    assert b.errors.tolist() == [8.75, 7, -5, 7]
    assert (a.loss, b.loss) == (37.5, 49.890625)


def test_the_squared_error_table_adds_up_to_the_lessons():
    predicted, actual = np.float32(prediction_errors.PREDICTED_AND_ACTUAL).T[:, :, None]
    table = prediction_errors.errors_of(predicted, actual)
    assert table.errors.tolist() == [-10, 5, 5]
    assert table.squared.tolist() == [100, 25, 25]
    assert (table.squared.sum(), table.loss) == (150, 50)


@pytest.mark.slow
def test_more_points_are_harder_to_predict_at_once():
    found = descend_on_choices()
    sizes = found.choices.sum(axis=1)
    assert sorted(sizes.tolist()) == 4 * [1] + 6 * [2] + 4 * [3] + [4]
    shares = [np.mean(found.losses[sizes == size] < prediction_errors.RIGHT) for size in (1, 2, 3, 4)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1] == 0
    hardest = [found.losses[sizes == size].min(axis=1).max() for size in (1, 2, 3, 4)]
    assert max(hardest[:3]) < prediction_errors.RIGHT < hardest[3]


@pytest.mark.slow
def test_the_best_weights_for_all_points_are_least_squares():
    best = prediction_errors.errors_at(prediction_errors.best_for_all(descend_on_choices()))
    # One hidden node can serve the one point on its side of the origin exactly. The other is linear on the three points
    # of the other side, so their least squares are the best there is.
    x, y = (np.asarray(side, np.float64)[[0, 1, 3]] for side in prediction_errors.points)
    residual = np.linalg.lstsq(x, y, rcond=None)[1].item()
    assert abs(best.loss - residual / 4) < 1e-3


# --- A single weight --------------------------------------------------------------------------------------------------


def test_every_stop_is_on_the_bowl_and_a_step_from_the_last():
    stops = single_weight.stops_of()
    assert (stops.weights[0], stops.losses[0], stops.slopes[0]) == (2, 16, -24)
    np.testing.assert_allclose(stops.weights[1], 2.24, rtol=1e-6)
    weights = stops.weights.astype(np.float64)
    np.testing.assert_allclose(stops.losses, (3 * weights - 10) ** 2, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(stops.slopes, 6 * (3 * weights - 10), rtol=1e-3)
    np.testing.assert_allclose(np.diff(weights), stops.steps[:-1], rtol=1e-3)
    assert (np.diff(np.abs(stops.steps)) < 0).all()
    assert stops.status == mjn.FLAT
    assert abs(stops.slopes[-1]) <= 0.1 < abs(stops.slopes[-2])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_single_weight_of_2_moves_to_2_24_in_both_precisions(dtype):
    with jax.enable_x64(dtype is np.float64):
        descent = mjn.gradient_descent(single_weight.loss, learning_rate=0.01)
        state, info = jax.jit(descent.step)(descent.init(2.0), (dtype([3]), dtype([10])))
        assert (info.loss, info.gradient_norm) == (16, 24)
        assert state.params.dtype == dtype
        assert abs(float(state.params) - float(dtype(2.24))) <= (np.spacing(2.24) if dtype is np.float64 else 0)


def test_a_step_multiplies_the_distance_as_theory_says():
    assert single_weight.curvature() == 18
    rates = [0.001, 0.002, 0.005, 0.01, 0.03, 1 / 18, 0.08, 0.1, 0.11, 0.12, 0.15, 0.2]  # as many as ``main`` has
    found = single_weight.descend_at(rates)
    np.testing.assert_allclose(found.factors, found.factors_by_theory, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.statuses, 9 * [mjn.FLAT] + 3 * [mjn.DIVERGED])
    assert found.steps_taken[5] == 1
    np.testing.assert_allclose(single_weight.largest_rate(), 2 / 18, rtol=1.5e-3)


def test_the_drawn_stops_are_on_the_drawn_bowl():
    bowl, stops = single_weight.bowl(), single_weight.stops_of()
    lines = single_weight.picture(bowl, stops).splitlines()
    canvas = np.array([list(line.ljust(72)[9:]) for line in lines[:18]])
    assert (np.sum(canvas != " ", axis=0) == 1).all()  # in each column the bowl, or a stop on it
    row, column = np.argwhere(canvas == "o")[0]
    np.testing.assert_allclose(bowl.offsets[column] + 10 / 3, 2, atol=2 / 31)
    np.testing.assert_allclose(36 * (1 - row / 17), 16, atol=36 / 17)
    assert canvas[17, 31] == "o"


def test_the_two_weights_take_the_lessons_step():
    two = single_weight.two_weights()
    assert (two.error, two.slope.tolist()) == (5, [30, 40])
    np.testing.assert_allclose(two.new_weights, [0.7, 1.6], rtol=1e-6)
    np.testing.assert_allclose(two.new_error, 2.5, rtol=1e-6)


# --- The loss surface -------------------------------------------------------------------------------------------------


def test_each_descent_stays_on_the_plane_and_ends_flat_in_a_valley():
    chex.assert_trees_all_equal(loss_surface.at(jnp.array([1.0, 1.0])), loss_surface.baseline)
    found, lowest = descents(), np.min(loss_surface.surface().losses)
    see = jax.jit(jax.value_and_grad(loss_surface.loss_on_plane))
    assert (found.statuses == mjn.FLAT).all()
    np.testing.assert_allclose(found.off_plane, 0, atol=1e-6)
    for path, start, end_loss in zip(found.paths, loss_surface.random_starts(), found.losses, strict=True):
        np.testing.assert_allclose(path[0], start, rtol=1e-6)
        losses = np.array([see(stop, loss_surface.points)[0] for stop in path[:: len(path) // 5]])
        assert (np.diff(losses) < 0).all()
        assert np.linalg.norm(see(path[-1], loss_surface.points)[1]) < 5e-3
        assert end_loss > lowest - 0.1
    assert len({round(float(loss), 1) for loss in found.losses}) == 3  # three valleys, by where a descent starts
    slopes = np.array([see(stop, loss_surface.points)[1] for stop in found.paths[0][:3]])
    np.testing.assert_allclose(np.diff(found.paths[0][:4], axis=0), -loss_surface.RATE * slopes, rtol=1e-3)


def test_all_weights_free_lead_off_the_plane_to_a_lower_or_a_higher_loss():
    found, free = descents(), descents(all_weights=True)
    assert (free.off_plane > 0.05).all()
    verdicts = {loss_surface.compared(*losses) for losses in zip(free.losses, found.losses, strict=True)}
    assert verdicts == {"lower", "higher", "the same"}


def test_the_picture_shows_each_start_end_and_shade():
    lines = loss_surface.picture(loss_surface.surface(), descents()).splitlines()
    body = [line[6:].ljust(73) for line in lines[1:38]]
    assert [line[:5].strip() for line in lines[1:38:18]] == ["4.0", "0.0", "-4.0"]
    text = "".join(body)
    assert all(text.count(letter) == 1 for letter in "ABCDEF")
    assert all(mark in text for mark in " .:-=+*#%@O")
    for start, letter in zip(loss_surface.random_starts().tolist(), "ABCDEF", strict=True):
        row = next(i for i, line in enumerate(body) if letter in line)
        drawn = -4 + body[row].index(letter) / 9, 4 - row * 2 / 9
        np.testing.assert_allclose(drawn, start, atol=0.25)
