"""Where a loss or its gradient stopped being finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minijaxnet as mjn
from minijaxnet.run.diagnose import diagnose

BATCH = mjn.Batch(np.ones((4, 3), np.float32), np.zeros((4, 1), np.float32))
ONES = np.ones(2, np.float32)


def plain(weights, batch):
    return jnp.sum(jnp.exp(weights * 100.0))


@jax.custom_vjp
def root(x):
    return jnp.sqrt(x)


root.defvjp(lambda x: (jnp.sqrt(x), x), lambda x, g: (g / (2 * jnp.sqrt(x)),))


@pytest.mark.parametrize(
    ("objective", "params", "operation", "line"),
    [
        (plain, [0.0, 2.0], "exp", "jnp.exp(weights * 100.0)"),
        (lambda w, b: jax.jit(plain)(w, b) ** 2, [2.0, 0.0], "exp", "jnp.exp(weights * 100.0)"),
        (lambda w, b: jnp.sum(root(w)), [1.0, -1.0], "sqrt", "jnp.sqrt(x)"),
        (lambda w, b: jnp.sum(root(w)), [1.0, 0.0], "div", "g / (2 * jnp.sqrt(x))"),
        pytest.param(
            lambda w, b: jax.lax.scan(lambda c, _: (c * w[0], None), w[0], None, length=9)[0],
            [1e10, 1.0],
            "scan",
            "scan",
            marks=pytest.mark.slow,
        ),
        (lambda w, b: jnp.linalg.norm(w), [0.0, 0.0], "div", ""),
    ],
    ids=["plain", "in a jit", "by hand, forward", "by hand, backward", "in a loop", "where autodiff is NaN"],
)
def test_the_first_operation_is_named_with_its_line(objective, params, operation, line):
    message = diagnose(objective, np.float32(params), BATCH)
    assert message.startswith(f"the first operation whose result is not finite is {operation}"), message
    assert line in message


def test_it_tells_how_much_is_not_finite_and_what_went_in():
    for params, count in (([0, 2], "1 of 2 elements is infinite"), ([2, 3], "2 of 2 elements are infinite")):
        message = diagnose(plain, np.float32(params), BATCH)
        assert message.endswith(f"{count}; its inputs have elements up to {100 * params[1]}")
    assert "1 of 1 elements is NaN" in diagnose(lambda w, b: jnp.log(w), -1.0, BATCH)


def test_a_gradient_by_hand_that_is_not_finite_is_found():
    objective = mjn.with_gradient(lambda w, b: jnp.sum(w**2), lambda w, b: (jnp.sum(w**2), w / 0.0))
    message = diagnose(objective, ONES, BATCH)
    assert message.startswith("the first operation whose result is not finite is div, test_diagnose.py:")


def test_where_only_the_norm_overflows_the_largest_leaf_is_named():
    params = {"small": ONES, "large": ONES}
    message = diagnose(lambda p, b: jnp.sum(p["small"]) + 1e25 * jnp.sum(p["large"]), params, BATCH)
    assert message == "each operation is finite, but the gradient's norm is not: ['large'] has elements up to 1e+25"


def test_what_was_not_finite_before_is_said():
    message = diagnose(plain, ONES, BATCH._replace(x=np.full((4, 3), np.nan, np.float32)))
    assert message == "the input of the step is not finite: [1].x"


def test_where_loss_and_gradient_are_finite_it_is_the_optimizers_step():
    assert diagnose(lambda w, b: jnp.sum(w**2), ONES, BATCH) == (
        "loss and gradient are finite, but the optimizer's step is not"
    )
