"""The checker of custom rules: under the rule it finds the plain function, and judges the rule by it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpora.kit import custom, sine
from jax import lax
from kits.marks import SLOW
from kits.reports import failures, states, wrong_leaves

import minijaxnet as mjn
from minijaxnet import check_vjp

X = np.float32([0.3, -1.2, 2.0])
LITTLE = 1 + 1e-6


# --- Rules of any kind, anywhere --------------------------------------------------------------------------------------


def factor(wrong):
    return jnp.where(wrong, LITTLE, 1.0)


def by_backward():
    return custom(
        lambda wrong, x: jnp.sin(x),
        lambda wrong, x: (jnp.sin(x), (wrong, x)),
        lambda kept, c: (None, (factor(kept[0]) * jnp.cos(kept[1]) * c).astype(c.dtype)),
    )


def by_tangent():
    ruled = jax.custom_jvp(lambda wrong, x: jnp.sin(x))

    @ruled.defjvp
    def _(primals, tangents):
        (wrong, x), (_, t) = primals, tangents
        return jnp.sin(x), (factor(wrong) * jnp.cos(x) * t).astype(t.dtype)

    return ruled


def in_while(rule):
    """A loop of as many rounds as it takes has no reverse mode: only what it is given can be differentiated."""

    def fun(x):
        rounds = lax.while_loop(
            lambda s: jnp.sum(rule(s[1])) < s[0], lambda s: (s[0] - 0.5, s[1]), (3.0, lax.stop_gradient(x))
        )
        return rule(x) * (1 + rounds[0])

    return fun


PLACES = {
    "by itself": lambda rule: rule,
    "jit": jax.jit,
    "vmap": lambda rule: lambda x: jax.vmap(rule)(jnp.stack([x, 2 * x])),
    "vmap, one by one": jax.vmap,
    "scan, carried": lambda rule: lambda x: lax.scan(lambda c, _: (rule(c) + x, None), x, length=3)[0],
    "scan, stacked, reversed": lambda rule: lambda x: lax.scan(lambda c, r: (c, rule(c * r)), x, x, reverse=True)[1],
    "fori_loop": lambda rule: lambda x: lax.fori_loop(0, 3, lambda i, c: rule(c) + i, x),
    "cond": lambda rule: lambda x: lax.cond(x[0] > 0, rule, lambda x: 2 * x, x),
    "cond under vmap": lambda rule: jax.vmap(lambda x: lax.cond(x > 0, rule, lambda x: 2 * x, x)),
    "while": in_while,
    "checkpoint": jax.checkpoint,
    "twice": lambda rule: lambda x: rule(rule(x)),
    "jit of scan of cond of vmap": lambda rule: jax.jit(
        lambda x: lax.scan(lambda c, _: (lax.cond(c[0] > -9, jax.vmap(rule), jnp.negative, c), None), x, length=2)[0]
    ),
}
RULES = [
    ("by itself", by_tangent),
    ("jit of scan of cond of vmap", by_backward),
    *(SLOW(place, by_backward) for place in [*PLACES][:-1]),
    *(SLOW(place, by_tangent) for place in ("scan, carried", "cond", "jit")),
]


@pytest.mark.parametrize(("place", "rule"), RULES)
def test_a_rule_of_any_kind_is_found_and_judged_wherever_it_is_called(place, rule):
    ruled = rule()

    def fun(x, wrong):
        return PLACES[place](functools.partial(ruled, wrong))(x)

    right, wrong = check_vjp(fun, (X, np.array(False))), check_vjp(fun, (X, np.array(True)))
    assert right.ok, str(right)
    if place == "by itself":
        assert set(states(right).values()) == {"pass"}
    assert failures(wrong) == ({"algebra", "forward"} if rule is by_tangent else {"algebra"}), str(wrong)
    assert ("forward" in right.verdicts) == (rule is by_tangent)
    assert wrong_leaves(wrong) == {"x"}


# --- Trees, and what is carried along ---------------------------------------------------------------------------------


def product(second=lambda x, y, c: x * c):
    return custom(lambda x, y: x * y, lambda x, y: (x * y, (x, y)), lambda r, c: (r[1] * c, second(*r, c)))


def test_argnums_choose_what_is_judged():
    half, args = product(lambda x, y, c: None), (X, X + 1)
    everything = check_vjp(half, args)
    assert set(everything.leaves) == {"args[0]", "args[1]"} and wrong_leaves(everything) == {"args[1]"}
    assert check_vjp(half, args, argnums=0).ok
    for argnums in ((1,), -1):
        report = check_vjp(half, args, argnums=argnums)
        assert set(report.leaves) == wrong_leaves(report) == {"args[1]"}


@pytest.mark.slow
def test_a_rule_of_with_gradient_is_judged_like_any_other():
    objective = mjn.objective(mjn.mlp((2, 2)), mjn.mean_squared_error)
    by_hand = mjn.mlp_gradient((2, 2), activation=jax.nn.relu, loss=mjn.mean_squared_error)
    args = mjn.mlp((2, 2)).init(jax.random.key(0)), (jnp.eye(3, 2), jnp.ones((3, 2)))

    def halved(params, batch):
        loss, gradient = by_hand(params, batch)
        return loss, jax.tree.map(lambda leaf: leaf / 2, gradient)

    assert check_vjp(mjn.with_gradient(objective, by_hand), args, argnums=0).ok
    report = check_vjp(mjn.with_gradient(objective, halved), args, argnums=0)
    assert wrong_leaves(report) == {"params[0]['weights']", "params[0]['bias']"}


# --- What else a rule can get wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [lambda x: jnp.sin(x) * (1 + 1e-9), SLOW(lambda x: jnp.sin(x) * jnp.nan)])
def test_a_forward_pass_of_another_value_fails_primal_alone(value):
    ruled = custom(jnp.sin, lambda x: (value(x), x), lambda x, c: (jnp.cos(x) * c,))
    with jax.enable_x64(True):  # a billionth is nothing in float32
        report = check_vjp(ruled, (np.float64(X),))
    assert failures(report) == {"primal"}
    assert "forward pass" in report.hints[0]


STRUCTURES = {
    "shape": (lambda r, c: (r[1] * c, (r[0] * c)[:1]), "shape|expected type"),
    "float32 for bfloat16": (
        lambda r, c: ((r[1] * c).astype(jnp.float32), r[0] * c),
        r"args\[0\].*float32\[3\]; expected bfloat16\[3\]",
    ),
}


@pytest.mark.parametrize("slip", STRUCTURES)
def test_a_slope_of_another_structure_fails_structure_and_is_not_compared(slip):
    backward, complaint = STRUCTURES[slip]
    x = X.astype(jnp.bfloat16) if "bfloat16" in slip else X
    report = check_vjp(custom(lambda x, y: x * y, lambda x, y: (x * y, (x, y)), backward), (x, x))
    assert failures(report) == {"structure"}
    assert states(report, "algebra") == {"algebra": "unchecked"}
    assert report.leaves == {} and not report.ok
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(report.verdicts["structure"].reason)


# --- The plain function -----------------------------------------------------------------------------------------------


def test_a_function_without_rules_is_held_against_finite_differences_unless_a_reference_is_given():
    report = check_vjp(jnp.sin, (X,))
    assert report.ok, str(report)
    assert re.search("by finite differences, to .*: fun holds no custom rule", report.verdicts["algebra"].reason)
    assert check_vjp(jnp.sin, (X,), reference=lambda x: (jnp.exp(1j * x)).imag).ok


def doubled_until_large(x):
    return lax.while_loop(lambda s: jnp.sum(jnp.abs(s)) < 100, lambda s: 2 * s, x)


def called_back(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize(
    ("fun", "backward", "reference"),
    [
        pytest.param(doubled_until_large, lambda x, c: 32 * c, lambda x: 32 * x, id="while"),
        SLOW(called_back, lambda x, c: jnp.cos(x) * c, jnp.sin, id="callback"),
    ],
)
def test_a_function_that_only_its_rule_can_differentiate_is_judged_by_finite_differences(fun, backward, reference):
    ruled = custom(fun, lambda x: (fun(x), x), lambda x, c: (backward(x, c),))
    report = check_vjp(ruled, (X,))
    assert report.ok and "can't be differentiated" in report.verdicts["algebra"].reason, str(report)
    wrong = custom(fun, lambda x: (fun(x), x), lambda x, c: (1.001 * backward(x, c),))
    assert failures(check_vjp(wrong, (X,))) == {"algebra"}
    report = check_vjp(ruled, (X,), reference=reference)
    assert report.ok, str(report)
    assert failures(check_vjp(ruled, (X,), reference=lambda x: reference(x) * LITTLE)) == {"algebra"}


# --- What is refused, and what is left as it was ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fun", "args", "options", "error", "complaint"),
    [
        (lambda x: x > 0, (X,), {}, TypeError, "fun: got no floating output"),
        (sine(), (np.arange(3),), {}, TypeError, "args: got no floating leaf"),
        (sine(), X, {}, TypeError, "args: got a .*; expected a tuple"),
        (sine(), (X * np.float32([1, np.nan, 1]),), {}, ValueError, r"args\[0\]: got NaN at \[1\]"),
        (sine(), (X,), {"argnums": 1}, ValueError, "argnums: got 1"),
        (sine(), (X,), {"argnums": (True,)}, TypeError, "argnums: got"),
        (sine(), (X,), {"order": 3}, ValueError, "order: got 3; expected 1 or 2"),
    ],
    ids=["no float out", "no float in", "no tuple", "NaN", "argnums", "bool", "order"],
)
def test_what_cannot_be_checked_is_refused_by_name(fun, args, options, error, complaint):
    with pytest.raises(error, match=complaint):
        check_vjp(fun, args, **options)


def test_an_error_in_the_rule_itself_comes_through_with_a_note():
    def backward(x, c):
        raise RuntimeError("in the rule")

    before = dict(jax.config.values)
    with pytest.raises(RuntimeError, match="in the rule") as raised:
        check_vjp(sine(backward), (X,))
    assert any("raised by the rule of fun" in note for note in raised.value.__notes__)
    assert dict(jax.config.values) == before
