"""Rules of ``custom_vjp`` under JAX's new engine, which a flag turns on, are found and judged as under the old one."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from corpora.real_kit import f32, ruled
from jax import lax
from kits.marks import slow
from kits.reports import failures

import minijaxnet as mjn

X = f32(0.5, -1.2, 2.0)


@pytest.fixture
def new_engine():
    before = jax.config.jax_custom_vjp3
    jax.config.update("jax_custom_vjp3", True)
    yield
    jax.config.update("jax_custom_vjp3", before)


def sine(factor):
    return ruled(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, c: (factor * jnp.cos(x) * c,))


def power(factor):
    rule = ruled(
        lambda x, n: x**n,
        lambda x, n: (x**n, x),
        lambda n, x, c: (factor * n * x ** (n - 1) * c,),
        nondiff_argnums=(1,),
    )
    return lambda x: rule(x, 3)


def two_outputs(factor):
    return ruled(
        lambda x: {"sine": jnp.sin(x), "square": x**2},
        lambda x: ({"sine": jnp.sin(x), "square": x**2}, x),
        lambda x, c: (jnp.cos(x) * c["sine"] + factor * 2 * x * c["square"],),
    )


def in_scan(factor):
    rule = sine(factor)
    return jax.jit(lambda x: lax.scan(lambda h, row: (rule(h) + row, None), x, jnp.stack([x, x]))[0])


def under_vmap(factor):
    return jax.vmap(sine(factor))


def nested(factor):
    inner = sine(1.0)
    return ruled(
        lambda x: inner(x) * x, lambda x: (inner(x) * x, x), lambda x, c: (factor * (jnp.cos(x) * x + jnp.sin(x)) * c,)
    )


def closing_over(factor):
    table = jnp.asarray(f32(0.1, 1.7, -0.6))
    return ruled(
        lambda x: jnp.sum(table * x**2),
        lambda x: (jnp.sum(table * x**2), x),
        lambda x, c: (factor * 2 * table * x * c,),
    )


def in_bfloat16(factor):
    def plain(x):
        return jnp.tanh(x.astype(jnp.float32)).astype(x.dtype)

    rule = ruled(
        plain,
        lambda x: (plain(x), x),
        lambda x, c: ((factor * (1 - jnp.tanh(x.astype(jnp.float32)) ** 2) * c.astype(jnp.float32)).astype(x.dtype),),
    )
    return lambda x: rule(x.astype(jnp.bfloat16)).astype(x.dtype)


BUILDERS = [sine, power, two_outputs, *slow(in_scan, under_vmap, nested, closing_over, in_bfloat16)]


@pytest.mark.parametrize("build", BUILDERS)
def test_a_rule_is_found_and_judged_under_the_new_engine(build, new_engine):
    right = mjn.check_vjp(build(1.0), (X,))
    assert failures(right) == set() and right.ok, str(right)
    assert "no custom rule" not in str(right)
    wrong = mjn.check_vjp(build(1.01), (X,))
    assert "algebra" in failures(wrong), str(wrong)


@pytest.mark.parametrize("build", [sine, *slow(two_outputs)])
def test_a_gradient_of_a_loss_with_such_a_rule_inside_is_judged(build, new_engine):
    rule = build(1.0)

    def loss(x):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(rule(x)))

    slope = jnp.cos if build is sine else lambda x: jnp.cos(x) + 2 * x
    assert mjn.check_grad(loss, slope, (X,)).ok
    assert failures(mjn.check_grad(loss, lambda x: 1.01 * slope(x), (X,))) == {"algebra"}


@pytest.mark.slow
def test_a_process_that_starts_under_the_new_engine_judges_alike():
    program = """
    import jax
    from corpora.real_code import KINDS
    assert jax.config.jax_custom_vjp3
    for kind in ("closed over", "static arguments", "written casts"):
        for case in KINDS[kind].cases:
            if case.gradient is None and not case.slow:
                report = case.report()
                assert report.ok == case.right, f"{case.name}: {report}"
    """
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "JAX_CUSTOM_VJP3": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
