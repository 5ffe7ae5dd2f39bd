"""A small network as a graph: the lesson's numbers stand where they belong."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minijaxnet.report.graph import draw_network
from minijaxnet.report.style import COLOURS


def params_of(hidden, output):
    """Each node's incoming weights together, as the lesson has them."""
    return ({"weights": np.array(hidden, np.float32).T}, {"weights": np.array([output], np.float32).T})


def drawn_by_lot(*sizes):
    draw = np.random.default_rng(0)
    return [{"weights": draw.normal(size=pair).astype(np.float32)} for pair in itertools.pairwise(sizes)]


def texts(axes):
    return [text.get_text() for text in axes.texts]


LESSON = {
    "baseline": (((1, 1), (-1, 1)), (2, -1), (2, 3), 13, ("5", "1", "9"), "prediction 9\nactual 13\nerror -4"),
    "better": (((1, 1), (-1, 1)), (3, -2), (2, 3), 13, ("5", "1", "13"), "prediction 13\nactual 13\nerror 0"),
    "practice 2": (((2, 1), (1, 2)), (1, 1), (0, 3), 3, ("3", "6", "9"), "prediction 9\nactual 3\nerror 6"),
}


@pytest.mark.parametrize("case", LESSON.values(), ids=LESSON)
def test_the_lessons_networks_show_their_values_and_error(axes, case):
    hidden, output, inputs, actual, values, verdict = case
    draw_network(axes, params_of(hidden, output), inputs, jax.nn.relu, actual=actual)
    weights = [f"{weight:g}" for weight in (*np.ravel(hidden), *output)]
    expected = [*map(str, inputs), *values, *weights, verdict, "inputs\n", "hidden\nrelu", "output\n"]
    assert sorted(texts(axes)) == sorted(expected)


def test_a_weight_stands_on_the_edge_it_belongs_to(axes):
    draw_network(axes, params_of(((1, 2), (3, 4)), (5, 6)), (7, 8), lambda x: x + 100)
    place = {text.get_text(): np.array(text.get_position()) for text in axes.texts}
    first, second = place["7"], place["8"]
    for weight, start, node in (("1", first, "123"), ("2", second, "123"), ("3", first, "153"), ("4", second, "153")):
        (x, y), along = place[weight] - start, place[node] - start
        assert x * along[1] == pytest.approx(y * along[0], abs=1e-6)
        assert 0 < x < along[0]


def test_labels_do_not_lie_on_one_another(axes):
    draw_network(axes, drawn_by_lot(3, 3, 1), (1, 2, 3), jnp.tanh)
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_signs_differ_in_colour_and_in_dash(axes):
    draw_network(axes, [{"weights": np.array([[1.0], [-1.0], [0.0], [np.nan]])}], np.ones(4), jnp.tanh)
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert looks == {(COLOURS["positive"], "-"), (COLOURS["negative"], "--"), (COLOURS["past"], ":")}
    assert "nan" in texts(axes)


def test_biases_and_the_output_activation_count(axes):
    layers = [{"weights": np.float32([[2]]), "bias": np.float32([-1.5])}]
    draw_network(axes, layers, [2.0], jax.nn.relu, jax.nn.sigmoid, actual=[1.0])
    value = 1 / (1 + np.exp(-2.5))
    expected = {"bias -1.5", "output\nsigmoid", f"prediction {value:.3g}\nactual 1\nerror {value - 1:.3g}"}
    assert expected <= set(texts(axes))


def test_where_labels_have_no_room_a_note_explains_the_edges(axes):
    draw_network(axes, drawn_by_lot(7, 7, 1), np.arange(7), jax.nn.relu)
    drawn = texts(axes)
    assert "edges: thicker is larger, dashed is negative" in drawn
    assert len(drawn) == 3 + 15 + 7 + 1 + 1


def test_what_cannot_be_read_is_refused(axes):
    with pytest.raises(ValueError, match=r"got layers of \[9, 1\] nodes with 9 edges; expected at most 8 nodes"):
        draw_network(axes, [{"weights": np.ones((9, 1))}], np.ones(9), jnp.tanh)
    with pytest.raises(ValueError, match=r"got layers of \[8, 8\] nodes with 64 edges"):
        draw_network(axes, [{"weights": np.ones((8, 8))}], np.ones(8), jnp.tanh)
