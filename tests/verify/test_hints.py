"""What a report says of slips that only a change of autodiff's own program explains."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

from minijaxnet import check_grad, check_vjp

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
MATRIX = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
WEIGHTS = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)


def centred(x, axis=0, fixed=lambda x: x):
    """Sum of weighted standardised columns, with statistics that may be taken as fixed."""
    mean = fixed(jnp.mean(x, axis, keepdims=True))
    scale = fixed(jnp.sqrt(jnp.mean((x - mean) ** 2, axis, keepdims=True) + 1))
    return jnp.sum(WEIGHTS * (x - mean) / scale)


def recurrent(w, x, fixed=lambda x: x):
    """The last state of a recurrence, with the way back through the state's own factor cut or not."""
    return jnp.sum(jax.lax.scan(lambda h, r: (jnp.tanh(fixed(w * h) + w * r), None), 0 * x[0], x)[0])


def quadratic(x, a):
    return x @ a @ x


def regression(w, x):
    return jnp.sum(jnp.tanh(x @ w) ** 2)


def without_first_point(w, x):
    return jax.grad(regression)(w, x[1:])


def along_the_other_axis(x):
    return jax.grad(lambda x: centred(x, axis=1))(x)


@functools.cache
def report_on(loss, gradient, *args):
    return check_grad(loss, gradient, tuple(ARGS[name] for name in args))


ARGS = {"x": X, "row": X[0], "matrix": MATRIX, "column": MATRIX[0], "rate": 0.7}


@pytest.mark.parametrize(
    ("loss", "gradient", "args", "words"),
    [
        (centred, jax.grad(lambda x: centred(x, fixed=stop_gradient)), ["x"], "sums and means: .* taken as fixed"),
        (centred, along_the_other_axis, ["x"], "wrong axis: .* axis 1 where .* over axis 0"),
        (recurrent, jax.grad(lambda w, x: recurrent(w, x, stop_gradient)), ["rate", "x"], "a term is missing"),
        (quadratic, lambda x, a: 2 * a @ x, ["row", "matrix"], "a term is missing.*as if they were equal"),
        (regression, without_first_point, ["column", "x"], "a term is missing: the first of those summed over axis 0"),
    ],
)
def test_the_change_that_makes_autodiff_the_rule_is_named(loss, gradient, args, words):
    report = report_on(loss, gradient, *args)
    assert not report.ok
    assert any(re.search(words, hint) for hint in report.hints), report.hints


def test_the_line_of_the_loss_is_named():
    report = report_on(centred, along_the_other_axis, "x")
    assert "test_verify_hints.py:" in report.hints[0] and "centred" in report.hints[0]


def test_a_cotangent_that_is_ignored_is_named_by_its_output():
    @jax.custom_vjp
    def both(x):
        return jnp.sin(x), jnp.sum(jnp.exp(x))

    both.defvjp(lambda x: (both(x), x), lambda x, c: (c[0] * jnp.cos(x),))
    assert check_vjp(both, (X[0],)).hints == ("[0]: the cotangent of output 1 is ignored",)


def test_a_row_of_an_embedding_that_is_set_twice_is_not_taken_for_any_slice():
    index = np.array([0, 1, 2, 2])

    def loss(table):
        return jnp.sum(WEIGHTS[:4] * jnp.sin(table[index]))

    def set_for_add(table):
        return jnp.zeros_like(table).at[index].set(WEIGHTS[:4] * jnp.cos(table[index]))

    @jax.custom_vjp
    def looked_up(table, index):
        return table[index]

    looked_up.defvjp(
        lambda table, index: (table[index], (table, index)),
        lambda kept, c: (jnp.zeros_like(kept[0]).at[kept[1]].set(c), None),
    )
    assert "one slice" in check_grad(loss, set_for_add, (X,)).hints[0]  # it can't see an index that is no argument
    assert "repeated in args[1]: set where add is meant" in check_vjp(looked_up, (X, jnp.asarray(index))).hints[0]


def test_a_rule_that_is_wrong_everywhere_and_in_no_usual_way_has_no_hint():
    assert check_grad(regression, lambda w, x: jnp.cos(17 * w) - x[0] ** 3, (X[0], X)).hints == ()


def test_the_second_order_names_the_leaf():
    @jax.custom_jvp
    def cube(x):
        return x**3

    cube.defjvp(lambda primals, tangents: (cube(primals[0]), 3 * stop_gradient(primals[0]) ** 2 * tangents[0]))
    report = check_vjp(lambda tree: cube(tree["a"]) + tree["b"] ** 2, ({"a": X[0], "b": X[1]},), order=2)
    assert report.verdicts["second order"].state == "fail"
    assert "in [0]['a']" in report.verdicts["second order"].reason
