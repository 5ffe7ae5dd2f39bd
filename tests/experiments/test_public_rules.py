"""The experiment on public rules: right rules are not accused, awkward points included, and a wrong one is."""

import functools
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

FILE = Path(__file__).parents[2] / "experiments" / "public_rules.py"


@functools.cache
def public_rules():
    spec = importlib.util.spec_from_file_location("public_rules", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def rules():
    return public_rules().all_rules()


def found(name, dtype, point):
    return public_rules().examine(name, rules()[name], dtype, point)


SLOW = [
    ("jax.nn.relu6", "bfloat16", "kinks"),
    ("jax.nn.softplus", "float32", "edges"),
    ("jax.nn.log1mexp", "float32", "edges"),
    ("jnp.logaddexp", "float32", "equal"),
    ("jnp.i0", "float32", "edges"),
    ("jax.scipy.special.xlogy", "float64", "ordinary"),
    ("jax.scipy.special.logit", "float32", "edges"),
    ("jax.scipy.special.ndtr", "float32", "tails"),
    ("optax.scale_gradient", "float32", "zero"),
    ("optax.projections.projection_simplex", "float32", "corner"),
]


@pytest.mark.parametrize(
    ("name", "dtype", "point"),
    [
        ("jax.nn.relu", "float32", "kinks"),
        ("jax.nn.silu", "bfloat16", "edges"),
        *(pytest.param(*slow, marks=pytest.mark.slow) for slow in SLOW),
    ],
)
def test_a_right_rule_is_not_accused(name, dtype, point):
    finding = found(name, dtype, point)
    assert finding.report is not None, finding.trouble
    assert finding.report.ok, f"\n{finding.report}"
    assert finding.dtype == dtype
    assert not finding.accused


def test_a_wrong_rule_is_accused_and_named():
    module = public_rules()

    @jax.custom_jvp
    def cube(x):
        return x**3

    cube.defjvps(lambda g, ans, x: 2 * x**2 * g)
    finding = module.examine("cube", module.Rule(cube, {"ordinary": ([1.0, 2.0],)}), "float32", "ordinary")
    assert finding.accused
    assert module.row(finding)[3 + module.QUESTIONS.index("algebra")] == "F"
    (paragraph,) = module.accusations([finding])
    assert paragraph.startswith("cube, float32, ordinary")
    assert "algebra" in paragraph


def test_what_jax_refuses_is_no_accusation():
    module = public_rules()
    finding = module.examine("log_ndtr", module.Rule(jax.scipy.special.log_ndtr, {"any": ([1.0],)}), "bfloat16", "any")
    assert finding.report is None
    assert not finding.escaped
    assert finding.trouble.startswith("JAX refuses: TypeError")
    assert list(module.accusations([finding])) == []


def test_an_error_from_the_check_itself_is_told():
    module = public_rules()

    def no_reference(x):
        raise RuntimeError("not today")

    finding = module.examine("sine", module.Rule(jnp.sin, {"any": ([1.0],)}, no_reference), "float32", "any")
    assert finding.escaped
    assert "not today" in next(iter(module.accusations([finding])))


def test_a_rule_tells_what_holds_it():
    module = public_rules()
    x = jnp.ones(2)
    assert module.kind_of(jax.nn.relu, (x,)) == "custom_jvp"
    assert module.kind_of(jax.nn.silu, (x,)) == "primitives"
    assert module.kind_of(module.softmax, (x,)) == "custom_jvp"
    assert module.kind_of(jnp.linalg.solve, (jnp.eye(2), x)) == "custom_linear_solve"
    assert module.kind_of(lambda x: rules()["optax.scale_gradient"].fun(x), (x,)) == "custom_vjp"


def test_every_rule_has_points_that_become_arrays():
    module = public_rules()
    assert len(rules()) >= 36
    for name, rule in rules().items():
        assert rule.points, name
        for args in rule.points.values():
            assert all(leaf.size for leaf in module.cast(args, "float32")), name
