"""The lesson's experiments: the numbers of the lesson, and what each file claims beyond it, on the data they return."""

import functools
import importlib.util
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import slow

import minijaxnet as mjn
from minijaxnet.experiment import Experiment, load_experiment, number_options

FOLDER = Path(__file__).parents[2] / "experiments"
NAMES = ("baseline_network", "prediction_errors", "single_weight", "loss_surface")


@functools.cache
def load(name):
    """An experiment's module; what takes long in it is computed once for all tests, ``main`` included."""
    spec = importlib.util.spec_from_file_location(f"lesson_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for long in {"descend_from_many", "please"} & vars(module).keys():
        setattr(module, long, functools.cache(getattr(module, long)))
    if name == "loss_surface":
        descend_from, starts = module.descend_from, module.random_starts()
        once = functools.cache(lambda **options: descend_from(starts, **options))
        module.random_starts, module.descend_from = lambda: starts, lambda starts, **options: once(**options)
    return module


class Module:
    """The same, loaded where it is used: collecting tests need not compute anything."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, attribute):
        if attribute.startswith("_"):  # what pytest looks for
            raise AttributeError(attribute)
        return getattr(load(self.name), attribute)


baseline_network, prediction_errors, single_weight, loss_surface = map(Module, NAMES)


# --- What holds for each of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_loads_and_names_itself_like_its_file(name):
    experiment = load_experiment(FOLDER / f"{name}.py")
    assert isinstance(experiment, Experiment)
    assert experiment.name == name
    assert load(name).__doc__.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", ["single_weight", *slow(*(name for name in NAMES if name != "single_weight"))])
def test_an_experiments_defaults_take_its_loss_downhill(name):
    experiment = load(name).experiment
    defaults, (train, _) = experiment.defaults, experiment.data()
    params = experiment.init(jax.random.key(defaults.seed), **number_options(experiment.init))
    descent = mjn.gradient_descent(experiment.objective, defaults.learning_rate)
    state, trace = mjn.descend(
        descent, descent.init(params), train, steps=defaults.steps, until_flat=defaults.until_flat
    )
    assert trace.status == mjn.FLAT
    seen = jax.jit(lambda params: [f(params, train) for f in (experiment.objective, *experiment.metrics.values())])
    assert seen(state.params)[0] < 0.8 * seen(params)[0]
    assert np.isfinite(seen(state.params)).all()


@pytest.mark.parametrize("name", ["loss_surface", *slow(*(name for name in NAMES if name != "loss_surface"))])
def test_what_an_experiment_prints_fits_a_terminal_and_holds_no_nan(name, capsys):
    load(name).main()
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "nan" not in printed
    assert "-0.0000" not in printed


# --- The baseline network ------------------------------------------------------------------------------------------


LESSON = [((5, 1), 9, -4), ((5, 1), 13, 0), ((8, 0), 16, 11), ((3, 6), 9, 6), ((3, 0), 3, 0)]


def test_node_by_node_and_as_matrices_the_forward_pass_is_the_lessons():
    for case, lesson in zip(baseline_network.CASES, LESSON, strict=True):
        assert baseline_network.node_by_node(case) == lesson
        assert baseline_network.forward(baseline_network.params_of(case), baseline_network.batch_of(case)) == lesson


def test_a_descent_finds_weights_without_an_error():
    found = baseline_network.descend_by_itself()
    assert found.status == mjn.FLAT
    assert (found.forward_at_start.error, found.forward_at_start.prediction) == (-4, 9)
    assert abs(found.forward_at_end.error) < 1e-3
    assert 0 < found.steps < 1_000
    chex.assert_trees_all_equal(found.start, baseline_network.params_of(baseline_network.BASELINE))


def test_a_step_that_is_too_long_silences_both_hidden_nodes():
    found = baseline_network.descend_by_itself(0.02)
    assert found.status == mjn.FLAT
    assert found.forward_at_end == ((0, 0), 0, -13)


@pytest.mark.slow
def test_each_random_start_ends_right_or_silent():
    ends = baseline_network.descend_from_many()
    right, silent = np.abs(ends.errors) < 1e-3, np.all(ends.hidden == 0, axis=1)
    assert (ends.statuses == mjn.FLAT).all()
    np.testing.assert_array_equal(right, ~silent)
    assert (ends.errors[silent] == -13).all()
    assert 200 < silent.sum() < 500


def test_the_baselines_spread_moves_its_start():
    key = jax.random.key(0)
    start = baseline_network.params_of(baseline_network.BASELINE)
    chex.assert_trees_all_equal(baseline_network.init(key), start)
    moved = jax.tree.map(jnp.subtract, baseline_network.init(key, spread=0.5), start)
    noise = jax.tree.map(lambda leaf: 0.5 * leaf, baseline_network.network.init(key))
    chex.assert_trees_all_close(moved, noise, rtol=1e-5, atol=1e-6)


# --- Prediction errors ---------------------------------------------------------------------------------------------


def test_the_lessons_weights_have_its_errors_and_losses():
    a, b = (prediction_errors.errors_at(prediction_errors.WEIGHTS[name]) for name in "AB")
    assert a.predictions.tolist() == [9, 9, 0, 12]
    assert a.errors.tolist() == [8, 6, -5, 5]
    assert b.errors.tolist() == [8.75, 7, -5, 7]
    assert (a.loss, b.loss) == (37.5, 49.890625)
    assert a.loss < b.loss


def test_no_prediction_is_below_zero():
    negated = jax.tree.map(jnp.negative, prediction_errors.WEIGHTS["A"])
    chex.assert_trees_all_equal(
        prediction_errors.network.apply((prediction_errors.WEIGHTS["A"][0], negated[1]), prediction_errors.points.x),
        jnp.zeros((4, 1)),
    )


def test_the_squared_error_table_adds_up_to_the_lessons():
    predicted, actual = (
        np.array(side, float)[:, None] for side in zip(*prediction_errors.PREDICTED_AND_ACTUAL, strict=True)
    )
    table = prediction_errors.errors_of(predicted, actual)
    assert table.errors.tolist() == [-10, 5, 5]
    assert table.squared.tolist() == [100, 25, 25]
    assert (table.squared.sum(), table.loss) == (150, 50)


@pytest.mark.slow
def test_more_points_are_harder_to_please_at_once():
    pleased = prediction_errors.please()
    chex.assert_shape(pleased.losses, (15, 100))
    assert sorted(pleased.choices.sum(axis=1).tolist()) == 4 * [1] + 6 * [2] + 4 * [3] + [4]
    sizes = pleased.choices.sum(axis=1)
    shares = [np.mean(pleased.losses[sizes == size] < prediction_errors.RIGHT) for size in (1, 2, 3, 4)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1] == 0
    hardest = [pleased.losses[sizes == size].min(axis=1).max() for size in (1, 2, 3, 4)]
    assert max(hardest[:3]) < prediction_errors.RIGHT < hardest[3]


def test_the_best_weights_for_all_points_have_the_lowest_loss_found():
    pleased = prediction_errors.please()
    best = prediction_errors.errors_at(prediction_errors.best_for_all(pleased))
    np.testing.assert_allclose(best.loss, pleased.losses[-1].min(), rtol=1e-5)
    # One hidden node can serve the one point on its side of the origin exactly. The other is linear on the three points
    # of the other side, so their least squares are the best there is.
    x, y = (np.asarray(side, np.float64)[[0, 1, 3]] for side in prediction_errors.points)
    residual = np.linalg.lstsq(x, y, rcond=None)[1].item()
    assert abs(best.loss - residual / 4) < 1e-3


# --- A single weight -----------------------------------------------------------------------------------------------


def test_the_first_stops_are_the_lessons():
    stops = single_weight.stops_of()
    assert (stops.weights[0], stops.losses[0], stops.slopes[0]) == (2, 16, -24)
    np.testing.assert_allclose(stops.weights[1], 2.24, rtol=1e-6)
    np.testing.assert_allclose(stops.steps[0], 0.24, rtol=1e-6)


def test_every_stop_is_on_the_bowl_and_a_step_from_the_last():
    stops = single_weight.stops_of()
    weights = stops.weights.astype(np.float64)
    np.testing.assert_allclose(stops.losses, (3 * weights - 10) ** 2, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(stops.slopes, 6 * (3 * weights - 10), rtol=1e-3)
    np.testing.assert_allclose(np.diff(weights), stops.steps[:-1], rtol=1e-3)
    assert (np.diff(np.abs(stops.steps)) < 0).all()
    assert stops.status == mjn.FLAT
    assert abs(stops.slopes[-1]) <= 0.1 < abs(stops.slopes[-2])


def test_the_bowl_is_lowest_at_its_middle():
    bowl = single_weight.bowl()
    assert bowl.losses.argmin() == 31
    np.testing.assert_allclose(bowl.losses, 9 * np.asarray(bowl.offsets) ** 2, atol=1e-3)


def test_a_step_multiplies_the_way_left_as_theory_says():
    assert single_weight.curvature() == 18
    rates = [0.001, 0.002, 0.005, 0.01, 0.03, 1 / 18, 0.08, 0.1, 0.11, 0.12, 0.15, 0.2]  # as many as ``main`` has
    found = single_weight.descend_at(rates)
    np.testing.assert_allclose(found.factors, found.factors_by_theory, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.statuses, 9 * [mjn.FLAT] + 3 * [mjn.DIVERGED])
    assert found.steps_taken[5] == 1


def test_the_longest_rate_is_two_over_the_curvature():
    np.testing.assert_allclose(single_weight.longest_rate(), 2 / 18, rtol=1.5e-3)


@pytest.mark.parametrize(
    ("factor", "status", "words"),
    [
        (0.999, mjn.OUT_OF_STEPS, "crawls"),
        (0.5, mjn.FLAT, "nearer from one side"),
        (0.0, mjn.FLAT, "in one step"),
        (-0.5, mjn.FLAT, "overshoots, less"),
        (-1.0, mjn.OUT_OF_STEPS, "as far off as before"),
        (-1.01, mjn.OUT_OF_STEPS, "ever further"),
        (-2.0, mjn.DIVERGED, "ever further"),
    ],
)
def test_each_kind_of_rate_has_its_own_words(factor, status, words):
    assert words in single_weight.in_words(factor, status)


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


# --- The loss surface ----------------------------------------------------------------------------------------------


def test_the_plane_holds_the_baseline_network():
    chex.assert_trees_all_equal(loss_surface.at(jnp.array([1.0, 1.0])), loss_surface.baseline)


def test_each_descent_stays_on_the_plane_and_ends_flat_in_a_valley():
    starts = loss_surface.random_starts()
    found, lowest = loss_surface.descend_from(starts), np.min(loss_surface.surface().losses)
    seen = jax.jit(jax.value_and_grad(loss_surface.loss_on_plane))
    assert (found.statuses == mjn.FLAT).all()
    np.testing.assert_allclose(found.off_plane, 0, atol=1e-6)
    for path, start, end_loss in zip(found.paths, starts, found.losses, strict=True):
        np.testing.assert_allclose(path[0], start, rtol=1e-6)
        losses = np.array([seen(stop, loss_surface.points)[0] for stop in path[:: len(path) // 5]])
        assert (np.diff(losses) < 0).all()
        assert np.linalg.norm(seen(path[-1], loss_surface.points)[1]) < 5e-3
        assert end_loss > lowest - 0.1
    assert len({round(float(loss), 1) for loss in found.losses}) == 3  # three valleys, by where a descent starts
    # They take the steps of gradient descent.
    path = found.paths[0]
    slopes = np.array([seen(stop, loss_surface.points)[1] for stop in path[:3]])
    np.testing.assert_allclose(np.diff(path[:4], axis=0), -loss_surface.RATE * slopes, rtol=1e-3)


def test_all_weights_free_lead_off_the_plane_for_better_or_worse():
    starts = loss_surface.random_starts()
    found, free = loss_surface.descend_from(starts), loss_surface.descend_from(starts, all_weights=True)
    assert (free.off_plane > 0.05).all()
    verdicts = {loss_surface.compared(*losses) for losses in zip(free.losses, found.losses, strict=True)}
    assert verdicts == {"lower", "higher", "the same"}


def test_the_picture_shows_each_start_end_and_shade():
    starts = loss_surface.random_starts()
    found = loss_surface.descend_from(starts)
    lines = loss_surface.picture(loss_surface.surface(), found).splitlines()
    body = [line[6:].ljust(73) for line in lines[1:38]]
    assert [line[:5].strip() for line in lines[1:38:18]] == ["4.0", "0.0", "-4.0"]
    text = "".join(body)
    assert all(text.count(letter) == 1 for letter in "ABCDEF")
    assert all(mark in text for mark in " .:-=+*#%@O")
    for start, letter in zip(starts.tolist(), "ABCDEF", strict=True):
        row = next(i for i, line in enumerate(body) if letter in line)
        drawn = -4 + body[row].index(letter) / 9, 4 - row * 2 / 9
        np.testing.assert_allclose(drawn, start, atol=0.25)
