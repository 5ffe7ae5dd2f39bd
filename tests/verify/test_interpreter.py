"""Programs carried out our own way: with the same results, without custom rules, with roundings made larger."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minijaxnet.verify.interpreter import interpret
from minijaxnet.verify.perturbation import Perturbation


@functools.cache
def way_of(function, shape, dtype, moved):
    """One compiled program serves all moves; it was traced in a dtype."""
    closed = jax.make_jaxpr(function)(np.ones(shape, dtype))
    return jax.jit(lambda x, settings: interpret(closed.jaxpr, closed.consts, [x], settings if moved else None))


def carried_out(function, x, dtype=np.float64, **moves):
    """The function of a float64 argument by ``interpret``."""
    with jax.enable_x64(True):
        settings = Perturbation(**moves)._asdict().items()
        settings = Perturbation(**{k: np.asarray(v, np.uint32 if k == "seed" else np.float64) for k, v in settings})
        run = way_of(function, np.shape(x), np.dtype(dtype), bool(moves))
        return [np.asarray(x) for x in run(np.float64(x), settings)]


@functools.cache
def by_jax(function, *numbers):
    with jax.enable_x64(True):
        return [np.asarray(x) for x in jax.tree.leaves(jax.jit(function)(np.float64(numbers)))]


def newton(x):
    """Roots, in as many rounds as it takes."""
    return jax.lax.while_loop(lambda s: jnp.max(jnp.abs(s * s - x)) > 1e-9, lambda s: (s + x / s) / 2, jnp.ones_like(x))


MATRIX = np.random.default_rng(6).normal(size=(3, 3)) + 3 * np.eye(3)
VECTOR = np.array([0.3, 1.2, 2.0])
PROGRAMS = {
    "sums and products": lambda x: jnp.sum(jnp.tanh(jnp.asarray(MATRIX, x.dtype) @ x) / 3),
    "scan": lambda x: jax.lax.scan(lambda c, r: (c * r + 1, jnp.sin(c)), x, x),
    "reversed scan": lambda x: jax.lax.scan(lambda c, r: (c * r + 1, jnp.sin(c)), 0 * x[0], x, reverse=True),
    "fori_loop": lambda x: jax.lax.fori_loop(0, 4, lambda i, c: jnp.cos(c) + i, x),
    "while": newton,
    "cond": lambda x: jax.lax.cond(x[0] > 1, jnp.sin, jnp.cos, x),
    "switch": lambda x: jax.lax.switch(2, [jnp.sin, jnp.cos, jnp.exp], x),
    "jit": jax.jit(lambda x: jax.jit(jnp.exp)(x) + 1),
    "vmap": lambda x: jax.vmap(lambda r: jax.lax.cond(r > 1, jnp.sin, jnp.cos, r))(x),
    "checkpoint": jax.checkpoint(jnp.exp),
    "gradient": jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) ** 2)),
    "linear solve": lambda x: jnp.linalg.solve(jnp.asarray(MATRIX, x.dtype), x),
    "sort and index": lambda x: jnp.sort(-x)[jnp.argmax(x)] + jnp.cumsum(x)[::-1],
}


def usual(x):
    return [PROGRAMS[name](x) for name in ("scan", "while", "cond", "checkpoint", "jit")]


def everything(x):
    return [run(x) for run in PROGRAMS.values()]


def of_few_digits(x):
    return [PROGRAMS[name](x) for name in ("scan", "while", "jit", "sort and index")]


EACH = pytest.mark.parametrize("programs", [usual, pytest.param(everything, marks=pytest.mark.slow)])


@EACH
def test_programs_carried_out_our_own_way_have_the_same_results(programs):
    """Perturbation of size 0 change nothing, whatever else they say."""
    still = carried_out(programs, VECTOR, size=0.0, shift=1.0, ramp=1.0, turn=1.0)
    chex.assert_trees_all_close(still, by_jax(programs, *VECTOR), rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_programs_traced_with_few_digits_are_carried_out_with_all_of_them(dtype):
    found = carried_out(of_few_digits, VECTOR, dtype=jnp.dtype(dtype))
    chex.assert_trees_all_close(found, by_jax(of_few_digits, *VECTOR), rtol=1e-9)


KINDS = [("custom_vjp", "jit"), ("custom_jvp", "vmap")]
MORE = [("custom_vjp", "bare"), ("custom_vjp", "vmap"), ("custom_jvp", "bare"), ("custom_jvp", "jit")]


@pytest.mark.parametrize(("kind", "wrap"), [*KINDS, *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE)])
def test_custom_rules_are_taken_out(kind, wrap):
    if kind == "custom_vjp":
        lying = jax.custom_vjp(lambda x: jnp.sin(x))
        lying.defvjp(lambda x: (x, None), lambda _, c: (100 * c,))
    else:
        lying = jax.custom_jvp(lambda x: jnp.sin(x))
        lying.defjvp(lambda x, t: (jnp.sin(x[0]), 100 * t[0]))
    wrapped = {"bare": lying, "jit": jax.jit(lying), "vmap": jax.vmap(lying)}[wrap]
    x = np.float32(VECTOR)
    closed = jax.make_jaxpr(wrapped)(x)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(interpret(closed.jaxpr, closed.consts, [x], wide=False)[0])))(x)
    chex.assert_trees_all_close(gradient, np.cos(x), rtol=1e-6)
    assert gradient.dtype == jnp.float32


@EACH
def test_how_far_the_end_moves_is_in_proportion_to_the_moves(programs):
    still = carried_out(programs, VECTOR, size=0.0)
    small, large = (carried_out(programs, VECTOR, size=2.0**-k, random=0.0, shift=1.0) for k in (30, 20))
    for before, a, b in zip(still, small, large, strict=True):
        assert np.any(a != before)
        chex.assert_trees_all_close((b - before) * 2.0**-10, a - before, rtol=1e-3, atol=1e-14)


def test_random_moves_are_of_their_size_and_hang_on_the_seed_alone():
    many = np.linspace(0.1, 3, 1000)
    moved = [carried_out(jnp.exp, many, size=2.0**-30, seed=seed)[0] for seed in (1, 1, 2)]
    chex.assert_trees_all_equal(moved[0], moved[1])
    moves = [(x / np.exp(many) - 1) * 2.0**30 for x in moved]
    for move in moves:
        assert np.max(np.abs(move)) <= 1.0001 and abs(np.mean(move)) < 0.1
        assert abs(np.mean(np.abs(move)) - 0.5) < 0.05
    assert abs(np.mean(moves[0] * moves[2])) < 0.1


def test_operations_that_round_nothing_are_not_moved():
    def exact(x):
        return jnp.maximum(-x, jnp.abs(x)).reshape(3, 1).T, jnp.argsort(x), jnp.where(x > 1, x, -x)

    chex.assert_trees_all_equal(carried_out(exact, VECTOR, size=2.0**-10, lift=1.0), by_jax(exact, *VECTOR))


def test_zeros_are_lifted_off_their_kink_only_where_that_is_asked_for():
    def difference(x):
        return x - x

    assert not carried_out(difference, VECTOR, size=2.0**-10)[0].any()
    (lifted,) = carried_out(difference, VECTOR, size=2.0**-10, lift=1e-100, random=0.0, shift=1.0)
    chex.assert_trees_all_equal(lifted, np.full(3, 1e-100))


def test_a_moved_loop_makes_the_rounds_of_the_still_one():
    def rounds(x):
        return jax.lax.while_loop(lambda s: jnp.sum(s[1]) < 100, lambda s: (s[0] + 1, 2 * s[1]), (0, x))

    still, moved = carried_out(rounds, VECTOR), carried_out(rounds, VECTOR, size=0.4, random=0.0, shift=-1.0)
    assert still[0] == moved[0]
    assert np.sum(moved[1]) < 100
