"""Sections that need the experiment: the player of a descent, the loss around its end, predictions."""

import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import slow
from kits.pages import record
from kits.pictures import axes_with

import minijaxnet as mjn
from minijaxnet.report import loss_sections
from minijaxnet.report.loss_sections import loss_around, played
from minijaxnet.report.player import OneWeight, player_data
from minijaxnet.report.predictions import predictions
from minijaxnet.report.record import Trained


def loss(params, batch):
    return jnp.mean((params["a"] - batch.y) ** 2) + 0 * jnp.sum(params.get("b", 0))


def trained(params, predict=None, x=None, y=None, dtype=jnp.float32):
    x, y = (np.ones((4, 1), dtype) if of is None else of for of in (x, y))
    batch = mjn.Batch(x, y)
    experiment = mjn.Experiment("e", lambda key: params, loss, lambda: (batch, batch), predict=predict)
    return Trained(experiment, params, batch, batch)


def rows_of(name, values, **rest):
    return [
        {"step": i, "loss": 1.0, "gradient_norm": 1.0, f"params/{name}": float(value)} | rest
        for i, value in enumerate(values)
    ]


def recorded(rows, params, dtype=jnp.float32):
    return record(rows)._replace(trained=trained(params, dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (jnp.bfloat16, [8, 4, 2]),
        (jnp.float32, [3e7, 3e7 + 2]),
        (jnp.float32, [1.0, 2.0**100, np.inf, np.inf, -np.inf]),
        *slow((jnp.float32, [8, np.nextafter(np.float32(8), 9)])),
    ],
    ids=["bfloat16", "large", "diverged", "a step of one unit in the last place"],
)
def test_a_weight_with_few_neighbours_in_its_dtype_or_one_that_diverged_has_a_player(dtype, values):
    [player] = played(recorded(rows_of("a", values), {"a": np.asarray(8, dtype)}, dtype)).players
    data = player_data(player)
    assert isinstance(player, OneWeight) and data["stops"] == len(values)
    assert [float(stop) for stop in player.bowl.stops] == [float(value) for value in values]
    if dtype == jnp.bfloat16:
        curve = np.array(data["data"]["curve"], float)
        np.testing.assert_allclose(curve[2], 2 * (curve[0] - 1), atol=1e-3, err_msg="the gradient of a smooth curve")


@pytest.mark.parametrize(("a", "b"), [(3.3e6, 1e6), *slow((100.0, 0.0), (0.0, 1e9))])
def test_two_weights_that_move_little_for_their_size_have_a_player(a, b, tmp_path):
    rows = [row | {"params/b": b} for row in rows_of("a", [a, a + 0.1])]
    section = played(recorded(rows, {"a": np.float32(a), "b": np.float32(b)}))
    assert player_data(section.players[0])["kind"] == "two"
    assert [picture.title for picture in section.pictures] == ["From above", "From the side"]
    axes_with(section.pictures[0].draw, tmp_path)


def test_the_steps_of_a_player_are_those_of_the_log():
    rows = [rows_of("a", np.linspace(8, 7, 11))[step] for step in (0, 3, 6, 9, 10)]
    [player] = played(recorded(rows, {"a": np.float32(1)})).players
    assert player.at.tolist() == [0, 3, 6, 9, 10]
    assert np.isnan(player.steps).tolist() == [True, True, True, False, True]  # only 9 and 10 are neighbours


def test_losses_are_those_of_the_log_and_a_sentence_says_what_is_left_out():
    rows = [row | {"train_loss": 0.1234567890123} for row in rows_of("a", np.linspace(8, 1, 1_500))]
    section = played(recorded(rows, {"a": np.float32(1)}))
    [player] = section.players
    kept = len(player.at)
    assert section.words == f"Of 1,500 logged stops {kept} are kept, more of the early ones."
    assert player_data(player)["data"]["stops"][1] == [0.1234567890123] * kept


def predicted(outputs, y):
    model = trained({"a": np.ones(3, np.float32)}, lambda params, x: np.array(outputs), np.ones((4, 1)), y)
    return predictions(record([])._replace(trained=model))


def test_an_error_of_several_outputs_names_the_point_and_the_output():
    y = np.zeros((4, 3), np.float32)
    y[2, 1] = 5
    [table] = predicted(np.zeros((4, 3)), y).tables
    assert table.columns[:2] == ("point", "output") and tuple(table.rows[0]) == (2, 1, 0.0, 5.0, -5.0)


@pytest.mark.parametrize("outputs", [[0.1, 0.4, 0.6, 0.9], [-3.0, -1.0, 0.2, 0.7]], ids=["probabilities", "logits"])
def test_a_single_output_has_the_threshold_of_a_probability_or_of_a_logit(outputs):
    section = predicted(np.array(outputs)[:, None], np.array([[0.0], [0.0], [1.0], [1.0]]))
    assert [tuple(row) for row in section.tables[0].rows] == [(0, 2, 0), (1, 0, 2)]


@pytest.mark.parametrize("of_numpy", [False, True])
def test_a_network_is_shown_with_its_loss_its_graph_and_its_errors(monkeypatch, tmp_path, of_numpy):
    monkeypatch.setattr(loss_sections, "_GRID", 7)
    net = mjn.mlp((2, 2, 1), bias=False)
    params = [{"weights": np.float32([[1, -1], [1, 1]])}, {"weights": np.float32([[2], [-1]])}]
    points = mjn.Batch(np.float32([[2, 3], [1, 2]]), np.float32([[13], [8]]))

    def predict(params, x):
        return net.apply(params, np.asarray(x) if of_numpy else x)

    objective = mjn.objective(net, mjn.mean_squared_error)
    experiment = mjn.Experiment("net", net.init, objective, lambda: (points, points), predict=predict)
    found = record([])._replace(trained=Trained(experiment, params, points, points))
    around, section = loss_around(found), predictions(found)
    assert [picture.title for picture in around.pictures] == ["From above", "From the side"]
    assert [picture.title for picture in section.pictures] == ["Predictions in the plane", "The network at a point"]
    [table] = section.tables
    assert table.caption == "Largest errors on test data" and table.rows[0] == (0, 9.0, 13.0, -4.0)
    for picture in (around.pictures[0], section.pictures[1]):
        axes_with(picture.draw, tmp_path)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_predictions_of_a_descent_that_diverged_are_shown(broken, tmp_path):
    net = mjn.mlp((2, 2, 1), bias=False)
    params = [{"weights": np.full((2, 2), broken, np.float32)}, {"weights": np.full((2, 1), 1e38, np.float32)}]
    points = mjn.Batch(np.float32([[2, -3], [1, 2]]), np.float32([[13], [8]]))
    objective = mjn.objective(net, mjn.mean_squared_error)
    experiment = mjn.Experiment("net", net.init, objective, lambda: (points, points), predict=net.apply)
    section = predictions(record([])._replace(trained=Trained(experiment, params, points, points)))
    assert [picture.title for picture in section.pictures] == ["Predictions in the plane"]
    axes_with(section.pictures[0].draw, tmp_path)


def test_images_have_their_confusion_and_their_worst_mistakes():
    x = np.arange(4.0)[:, None] * np.ones(64)
    scores, y = np.array([[5.0, 0], [0, 5], [5, 0], [9, 0]]), np.array([0, 1, 0, 1])
    model = trained({"a": np.ones(3, np.float32)}, lambda params, x: scores, x, y)
    section = predictions(record([])._replace(trained=model))
    assert [picture.title for picture in section.pictures] == ["Confusion on test data", "The worst mistakes"]
    assert section.tables[0].rows == [(0, 2, 0), (1, 1, 1)]
