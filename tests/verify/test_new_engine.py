"""Rules of ``custom_vjp`` under JAX's new engine, which a flag turns on, are found and checked as under the old one."""

import jax
import jax.numpy as jnp
import pytest
from corpora import CODE
from corpora.kit import custom, f32
from kits.marks import SLOW, slow
from kits.reports import failures

from minijaxnet import check_grad, check_vjp

X = f32(0.5, -1.2, 2.0)


@pytest.fixture(autouse=True)
def new_engine():
    before = jax.config.jax_custom_vjp3
    jax.config.update("jax_custom_vjp3", True)
    yield
    jax.config.update("jax_custom_vjp3", before)


def sine(factor):
    return custom(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, c: (factor * jnp.cos(x) * c,))


def two_outputs(factor):
    both = lambda x: {"sine": jnp.sin(x), "square": x**2}  # noqa: E731
    backward = lambda x, c: (jnp.cos(x) * c["sine"] + factor * 2 * x * c["square"],)  # noqa: E731
    return custom(both, lambda x: (both(x), x), backward)


def in_scan(factor):
    rule = sine(factor)
    return jax.jit(lambda x: jax.lax.scan(lambda h, row: (rule(h) + row, None), x, jnp.stack([x, x]))[0])


@pytest.mark.parametrize("build", [sine, *slow(two_outputs, in_scan, lambda factor: jax.vmap(sine(factor)))])
def test_a_rule_is_found_and_checked(build):
    right = check_vjp(build(1.0), (X,))
    assert failures(right) == set() and right.ok, str(right)
    assert "no custom rule" not in str(right)
    assert "algebra" in failures(check_vjp(build(1.01), (X,)))


def test_a_loss_with_such_a_rule_inside_is_checked():
    rule = sine(1.0)
    loss = lambda x: jnp.sum(rule(x))  # noqa: E731
    assert check_grad(loss, jnp.cos, (X,)).ok
    assert failures(check_grad(loss, lambda x: 1.01 * jnp.cos(x), (X,))) == {"algebra"}


@pytest.mark.parametrize("kind", ["static arguments", SLOW("closed over"), SLOW("casts")])
def test_code_as_people_write_it_is_judged_alike(kind):
    for case in [case for case in CODE[kind].cases if case.gradient is None][:2]:
        report = case.report()
        assert report.ok == case.right, f"{case.name}: {report}"
