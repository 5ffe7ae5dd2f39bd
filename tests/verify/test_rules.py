"""The derivative rules within an objective: which there are, and which of them is wrong."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.custom_derivatives import linear_call
from kits.marks import slow

from minijaxnet.verify.rules import rules_checker, rules_in

ARGS = ({"a": jnp.array([0.3, -0.2]), "b": jnp.array([0.1, 0.5])}, jnp.array([[1.0, 2.0], [0.5, -1.0]]))


@functools.cache
def squash(factor):
    @jax.custom_vjp
    def squash(x):
        return jnp.tanh(x)

    squash.defvjp(lambda x: (jnp.tanh(x), x), lambda x, c: (factor * c * (1 - jnp.tanh(x) ** 2),))
    return squash


@functools.cache
def swish(factor):
    @jax.custom_jvp
    def swish(x):
        return x * jax.nn.sigmoid(x)

    def slope(x):
        return jax.nn.sigmoid(x) * (1 + x * jax.nn.sigmoid(-x))

    swish.defjvp(lambda at, along: (swish(at[0]), factor * slope(at[0]) * along[0]))
    return swish


def scaled(factor, x):
    def by(scale, x):
        return scale * x

    return linear_call(by, lambda scale, c: factor * scale * c, jnp.float32(3.0), x)


def objective(one, other, third, params, batch):
    """Each rule where it is hard to see: in a loop, under jit, in a branch."""
    carry = jax.lax.scan(lambda carry, row: (squash(one)(carry * row), None), params["a"], batch)[0]
    jitted = jax.jit(swish(other))(params["b"])
    branch = jax.lax.cond(batch[0, 0] > 0, lambda x: scaled(third, x), lambda x: x, params["b"])
    return jnp.sum(jax.nn.relu(carry)) + jnp.sum(jitted * branch)


def found(*factors):
    return rules_checker(functools.partial(objective, *factors), ARGS)(ARGS)


def at_fault(report):
    said = "the derivative rule at fault is that of "
    return [hint.removeprefix(said).split(" (")[0] for hint in report.hints if hint.startswith(said)]


def test_rules_are_found_wherever_they_are_with_jaxs_own_last():
    rules = rules_in(functools.partial(objective, 1.0, 1.0, 1.0), ARGS)
    assert [rule.name for rule in rules] == ["by", "squash", "swish", "relu"]
    assert [rule.is_jax for rule in rules] == [False, False, False, True]
    assert str(rules[1]).startswith("squash (test_rules.py:")
    assert rules_in(jnp.sin, (1.0,)) == []


@pytest.mark.parametrize(
    ("factors", "names"),
    [
        ((1.0, 1.0, 1.0), []),
        *slow(
            ((2.0, -1.0, 1.0), ["squash", "swish"]),
            ((2.0, 1.0, 1.0), ["squash"]),
            ((1.0, -1.0, 1.0), ["swish"]),
            ((1.0, 1.0, 3.0), ["by"]),
        ),
    ],
)
def test_the_rules_at_fault_are_named(factors, names):
    report = found(*factors)
    assert report.ok == (not names)
    assert at_fault(report) == names
    assert str(report.subject) == "gradient through derivative rules against autodiff"


def test_of_two_rules_the_wrong_one_is_named():
    check = rules_checker(lambda w: squash(1.0)(w) + swish(-1.0)(w), (jnp.float32(0.5),))
    assert at_fault(check((jnp.float32(0.5),))) == ["swish"]


def test_a_single_rule_needs_no_second_look():
    stages = []
    check = rules_checker(lambda w: jnp.sum(squash(2.0)(jax.nn.relu(w))), (jnp.ones(2),), tell=stages.append)
    assert at_fault(check((jnp.ones(2),))) == ["squash"]
    assert not any(stage.startswith("is it") for stage in stages)
