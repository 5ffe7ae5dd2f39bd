"""Optimizers by their names."""

import jax.numpy as jnp
import pytest

from minijaxnet.cli.optimizers import Optimizer


def squared(weight, batch):
    return (weight - batch) ** 2


@pytest.mark.parametrize(
    ("name", "options", "after"),
    [
        ("gd", {}, 0.8),
        ("sgd", {}, 0.8),
        ("polyak_sgd", {}, 0.8),  # it would go half as far as the bottom, 0.5, were 0.1 not the largest rate
        ("polyak_sgd", {"scaling": 0.2}, 0.96),
    ],
)
def test_a_name_stands_for_optaxs_optimizer_at_that_rate(name, options, after):
    descent = Optimizer(name, options).descent(squared, 0.1)
    assert float(descent.step(descent.init(1.0), 0.0)[0].params) == pytest.approx(after)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sdg", {}, "got 'sdg'; expected gd or the name of an optimizer of optax \\(did you mean "),
        ("polyak", {}, "did you mean polyak_sgd"),
        ("scale_by_zoom_linesearch", {}, "expected gd or the name"),  # it has a largest rate, but needs more than that
        ("sgd", {"learning_rate": 1.0}, "sgd takes no 'learning_rate'; expected some of momentum, nesterov"),
        ("polyak_sgd", {"max_learning_rate": 1.0}, "polyak_sgd takes no 'max_learning_rate'; expected some of scaling"),
        ("gd", {"momentum": 0.9}, "gd takes no momentum"),
    ],
)
def test_other_names_and_options_are_refused(name, options, words):
    with pytest.raises(ValueError, match=f"^optimizer: .*{words}"):
        Optimizer(name, options).descent(squared, jnp.float32(0.1))
