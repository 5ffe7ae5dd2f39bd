"""What a page shows of where a run ended, of descents and predictions that are awkward to show."""

import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import slow
from kits.pages import told

import minijaxnet as mjn
from minijaxnet.report.player import OneWeight, TwoWeights, player_data
from minijaxnet.report.shown import predictions, shown, stops
from minijaxnet.report.story import tell
from minijaxnet.report.told import Known


def loss(params, batch):
    return jnp.mean((params["a"] - batch.y) ** 2) + 0 * jnp.sum(params.get("b", 0))


def known(params, predict=None, x=None, y=None, dtype=jnp.float32):
    x, y = (np.ones((4, 1), dtype) if of is None else of for of in (x, y))
    batch = mjn.Batch(x, y)
    experiment = mjn.Experiment("e", lambda key: params, loss, lambda: (batch, batch), predict=predict)
    return Known(experiment, params, batch, batch)


def rows_of(name, values, **rest):
    return [
        {"step": i, "loss": 1.0, "gradient_norm": 1.0, f"params/{name}": float(value)} | rest
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        *slow((jnp.bfloat16, [8, 4, 2]), (jnp.float32, [8, np.nextafter(np.float32(8), 9)])),
        (jnp.float32, [3e7, 3e7 + 2]),
    ],
    ids=["bfloat16", "a step of one unit in the last place", "large"],
)
def test_a_weight_that_has_few_neighbours_in_its_dtype_has_a_player(dtype, values):
    [section, *_] = shown(told(rows_of("a", values)), known({"a": np.asarray(8, dtype)}, dtype=dtype))
    [player] = section.players
    assert isinstance(player, OneWeight)
    assert section.words.strip() == "" and player_data(player)["stops"] == len(values)
    assert [float(stop) for stop in player.stops.weights] == [float(value) for value in values]
    if dtype == jnp.bfloat16:
        curve = np.array(player_data(player)["data"]["curve"], float)
        np.testing.assert_allclose(curve[2], 2 * (curve[0] - 1), atol=1e-3, err_msg="the slope, of a smooth curve")


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(("a", "b"), [(3.3e6, 1e6), *slow((100.0, 0.0), (0.0, 1e9))])
def test_two_weights_that_move_little_for_their_size_have_a_player(a, b):
    params = {"a": np.float32(a), "b": np.float32(b)}
    rows = [row | {"params/b": b} for row in rows_of("a", [a, a + 0.1])]
    [section, *_] = shown(told(rows), known(params))
    assert len(section.players) == 1 and section.words.strip() == ""


@pytest.mark.usefixtures("unrendered")
def test_a_player_that_cannot_be_made_costs_itself_alone():
    narrow = known({"a": np.asarray(8, jnp.bfloat16)}, dtype=jnp.bfloat16)
    page = tell(told([]), shown(told(rows_of("a", [8, 4, 2]), learning_rate=0.0), narrow))
    [section] = [section for section in page.sections if section.title == "Stop by stop"]
    assert not section.players and section.pictures and "learning_rate: got 0.0" in section.words


def test_between_stops_that_are_apart_no_step_is_shown():
    path = np.array([[0, 0], [2, 2], [3, 3], [9, 9.0]])
    axes = (np.linspace(0, 9, 4), np.linspace(0, 9, 4))
    at = np.array([0, 5, 6, 11])
    data = player_data(TwoWeights("two", ("a", "b"), axes, np.ones((4, 4)), path, np.ones(4), 0.1, at))["data"]
    assert data["stops"][3] == data["stops"][4] == ["NaN", 1.0, "NaN", "NaN"]


def test_an_error_of_several_outputs_names_the_point_and_the_output():
    y = np.zeros((4, 3), np.float32)
    y[2, 1] = 5
    seen = predictions(
        told([]), known({"a": np.ones(3, np.float32)}, lambda params, x: np.zeros((4, 3)), np.ones((4, 1)), y)
    )
    assert seen is not None
    [table] = seen.tables
    assert table.columns[:2] == ("point", "output") and tuple(table.rows[0]) == (2, 1, 0.0, 5.0, -5.0)


@pytest.mark.parametrize("outputs", [[0.1, 0.4, 0.6, 0.9], [-3.0, -1.0, 0.2, 0.7]], ids=["probabilities", "logits"])
def test_a_single_output_is_held_against_its_own_threshold(outputs):
    y = np.array([[0.0], [0.0], [1.0], [1.0]])
    seen = predictions(
        told([]), known({"a": np.ones(3, np.float32)}, lambda params, x: np.array(outputs)[:, None], None, y)
    )
    assert seen is not None and [tuple(row) for row in seen.tables[0].rows] == [(0, 2, 0), (1, 0, 2)]


@pytest.mark.usefixtures("unrendered")
def test_a_metric_whose_name_begins_like_a_weights_is_drawn():
    rows = [row | {"params_norm": 1.0, "test_params_norm": 1.0} for row in rows_of("a", [1, 2])]
    [section] = [section for section in tell(told(rows)).sections if section.title == "Descent"]
    titles = [picture.title for picture in section.pictures]
    assert "params_norm" in titles and "params/a" not in titles


def test_losses_are_the_logs_own_and_what_is_left_out_is_said():
    rows = [row | {"train_loss": 0.1234567890123} for row in rows_of("a", np.linspace(8, 1, 1_500))]
    seen = stops(told(rows), known({"a": np.float32(1)}))
    assert seen is not None
    [player] = seen.players
    kept = len(player.at)
    assert seen.words == f"Of 1,500 logged stops {kept} are here, the early ones most closely."
    assert player_data(player)["data"]["stops"][1] == [0.1234567890123] * kept


@pytest.mark.usefixtures("unrendered")
def test_a_network_is_shown_with_its_loss_its_graph_and_its_errors(monkeypatch):
    monkeypatch.setattr("minijaxnet.report.shown._GRID", 7)
    net = mjn.mlp((2, 2, 1), bias=False)
    params = [{"weights": np.float32([[1, -1], [1, 1]])}, {"weights": np.float32([[2], [-1]])}]
    points = mjn.Batch(np.float32([[2, 3], [1, 2]]), np.float32([[13], [8]]))
    objective = mjn.objective(net, mjn.mean_squared_error)
    experiment = mjn.Experiment("net", net.init, objective, lambda: (points, points), predict=net.apply)
    around, predicted = shown(told([]), Known(experiment, params, points, points))
    assert [picture.title for picture in around.pictures] == ["From above", "From the side"]
    assert [picture.title for picture in predicted.pictures] == ["Predictions in the plane", "The network at a point"]
    [table] = predicted.tables
    assert table.caption == "Largest errors on test data" and table.rows[0] == (0, 9.0, 13.0, -4.0)
