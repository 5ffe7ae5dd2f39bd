"""The checker of custom rules: under the rule it finds the plain function, and judges the rule by it."""

import functools
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import minijaxnet as mjn
from minijaxnet import assert_vjp, check_vjp

X = jnp.array([0.3, -1.2, 2.0])
LITTLE = 1 + 1e-6


def states(report, *names):
    """The states of the verdicts concerned; of all without names."""
    return {name: report.verdicts[name].state for name in names or report.verdicts}


def failures(report):
    return {name for name, state in states(report).items() if state == "fail"}


def wrong_leaves(report):
    return {path for path, leaf in report.leaves.items() if not leaf.ok}


def custom(fun, forward, backward, **options):
    """A new function with a rule of its own; ``jax.custom_vjp`` of the same function twice would share one."""
    ruled = jax.custom_vjp(lambda *args: fun(*args), **options)
    ruled.defvjp(forward, backward)
    return ruled


def sine(backward=lambda x, c: jnp.cos(x) * c, value=jnp.sin):
    return custom(jnp.sin, lambda x: (value(x), x), lambda x, c: (backward(x, c),))


def sine_by_tangent(factor=1.0):
    ruled = jax.custom_jvp(lambda x: jnp.sin(x))
    ruled.defjvp(lambda primals, tangents: (jnp.sin(primals[0]), factor * jnp.cos(primals[0]) * tangents[0]))
    return ruled


def sine_of_degree(factor=1.0):
    """One with an argument that is not differentiated."""
    ruled = custom(
        lambda n, x: jnp.sin(n * x),
        lambda n, x: (jnp.sin(n * x), x),
        lambda n, x, c: (factor * n * jnp.cos(n * x) * c,),
        nondiff_argnums=(0,),
    )
    return lambda x: ruled(2, x)


def sine_with_a_rule_inside(factor=1.0):
    """A rule within a function that has a rule."""
    inside = sine()
    return custom(lambda x: inside(x) * x, *_sine_times_x(factor))


def _sine_times_x(factor):
    def backward(x, c):
        return (factor * (jnp.cos(x) * x + jnp.sin(x)) * c,)

    return (lambda x: (jnp.sin(x) * x, x)), backward


RULES = {
    "custom_vjp": lambda factor: sine(lambda x, c: factor * jnp.cos(x) * c),
    "custom_jvp": sine_by_tangent,
    "nondiff_argnums": sine_of_degree,
    "a rule within a rule": sine_with_a_rule_inside,
}


def _right_or_wrong(kind):
    """A sine with a rule that is right or, by its first argument, a millionth too large: one program for both."""

    def factor(wrong):
        return jnp.where(wrong, LITTLE, 1.0)

    if kind == "custom_vjp":
        return custom(
            lambda wrong, x: jnp.sin(x),
            lambda wrong, x: (jnp.sin(x), (wrong, x)),
            lambda kept, c: (None, (factor(kept[0]) * jnp.cos(kept[1]) * c).astype(c.dtype)),
        )
    ruled = jax.custom_jvp(lambda wrong, x: jnp.sin(x))
    ruled.defjvp(
        lambda primals, tangents: (
            jnp.sin(primals[1]),
            (factor(primals[0]) * jnp.cos(primals[1]) * tangents[1]).astype(tangents[1].dtype),
        )
    )
    return ruled


def reports_at(place, kind):
    """The reports on a right rule and on a wrong one, called in a place."""
    ruled = _right_or_wrong(kind)

    def fun(x, wrong):
        return PLACES[place](functools.partial(ruled, wrong))(x)

    return check_vjp(fun, (X, jnp.array(False))), check_vjp(fun, (X, jnp.array(True)))


def in_while(rule):
    """A loop of as many rounds as it takes has no reverse mode: only what it is given can be differentiated."""

    def fun(x):
        rounds = lax.while_loop(
            lambda s: jnp.sum(rule(s[1])) < s[0], lambda s: (s[0] - 0.5, s[1]), (3.0, lax.stop_gradient(x))
        )
        return rule(x) * (1 + rounds[0])

    return fun


PLACES = {
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


@pytest.mark.parametrize("place", PLACES)
def test_a_rule_is_found_and_judged_wherever_it_is_called(place):
    right, wrong = reports_at(place, "custom_vjp")
    assert right.ok, str(right)
    assert failures(wrong) == {"algebra"}, str(wrong)


@pytest.mark.parametrize("kind", RULES)
def test_a_rule_of_any_kind_is_judged(kind):
    report = check_vjp(RULES[kind](1.0), (X,))
    assert report.ok, str(report)
    assert set(states(report).values()) == {"pass"}
    report = check_vjp(RULES[kind](LITTLE), (X,))
    assert {"algebra"} <= failures(report) <= {"algebra", "forward"}
    assert wrong_leaves(report) == {"[0]"}


@pytest.mark.parametrize("place", ["scan, carried", "cond", "jit"])
def test_a_rule_by_tangents_is_judged_inside_control_flow(place):
    right, wrong = reports_at(place, "custom_jvp")
    assert right.ok, str(right)
    assert failures(wrong) == {"algebra", "forward"}, str(wrong)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64], ids=["bfloat16", "float64"])
def test_a_millionth_is_found_in_every_dtype(dtype):
    with jax.enable_x64(dtype is jnp.float64):
        x = X.astype(dtype)
        assert check_vjp(sine(), (x,)).ok
        assert failures(check_vjp(RULES["custom_vjp"](LITTLE), (x,))) == {"algebra"}


@pytest.mark.parametrize("fun", [jax.nn.relu, jax.nn.relu6, jax.nn.softplus], ids=["relu", "relu6", "softplus"])
def test_jaxs_own_rules_are_right_at_their_kinks_too(fun):
    assert_vjp(fun, (jnp.array([-2.0, 0.0, 1.0, 6.0]),))


# --- Trees, and what is carried along ---------------------------------------------------------------------------------


def lookup(params, batch, key):
    kept = jax.random.bernoulli(key, 0.5, batch["mask"].shape)
    rows = params["table"][batch["index"]] * (kept & batch["mask"])[:, None]
    return {"rows": rows + params["shift"], "count": jnp.sum(kept), "norm": jnp.sum(rows**2)}


SLIPS = ("none", "set for add", "mean for sum", "an output forgotten")


def rule_of_lookup():
    """A rule with the slip that the batch asks for: one program for all."""

    def backward(residuals, cotangents):
        params, batch, kept = residuals
        zeros, index = jnp.zeros_like(params["table"]), batch["index"]
        gate = (kept & batch["mask"])[:, None]
        rows = params["table"][batch["index"]] * gate
        of_rows = (cotangents["rows"] + 2 * rows * cotangents["norm"]) * gate
        right, shift = zeros.at[index].add(of_rows), jnp.sum(cotangents["rows"], axis=0)
        tables = {
            "set for add": zeros.at[index].set(of_rows),
            "an output forgotten": zeros.at[index].add(cotangents["rows"] * gate),
        }
        shifts = {"mean for sum": jnp.mean(cotangents["rows"], axis=0)}
        table = jnp.stack([tables.get(slip, right) for slip in SLIPS])[batch["slip"]]
        shift = jnp.stack([shifts.get(slip, shift) for slip in SLIPS])[batch["slip"]]
        return {"table": table, "shift": shift}, None, None

    def forward(params, batch, key):
        kept = jax.random.bernoulli(key, 0.5, batch["mask"].shape)
        return lookup(params, batch, key), (params, batch, kept)

    return custom(lookup, forward, backward)


def table(slip="none"):
    return (
        {"table": jnp.arange(8.0).reshape(4, 2) / 4 - 0.9, "shift": jnp.array([0.5, -1.0])},
        {
            "index": jnp.array([0, 1, 1, 3, 1, 0]),
            "mask": jnp.array([True, True, True, True, True, False]),
            "slip": jnp.int32(SLIPS.index(slip)),
        },
        jax.random.key(3),
    )


def test_integers_booleans_and_keys_are_carried_along_and_outputs_may_be_a_tree():
    report = check_vjp(rule_of_lookup(), table())
    assert report.ok, str(report)
    assert set(report.leaves) == {"[0]['table']", "[0]['shift']"}


@pytest.mark.parametrize(
    ("slip", "path"),
    [
        ("set for add", "[0]['table']"),
        ("mean for sum", "[0]['shift']"),
        ("an output forgotten", "[0]['table']"),
    ],
)
def test_a_slip_in_a_tree_is_found_in_its_leaf_alone(slip, path):
    report = check_vjp(rule_of_lookup(), table(slip))
    assert "algebra" in failures(report)
    assert wrong_leaves(report) == {path}
    assert path in report.verdicts["algebra"].reason
    assert all(hint.startswith(path) for hint in report.hints)


def product(second=lambda x, y, c: x * c):
    return custom(lambda x, y: x * y, lambda x, y: (x * y, (x, y)), lambda r, c: (r[1] * c, second(*r, c)))


def test_argnums_choose_what_is_judged():
    half = product(lambda x, y, c: None)
    args = X, X + 1
    assert set(check_vjp(product(), args).leaves) == {"[0]", "[1]"}
    assert wrong_leaves(check_vjp(half, args)) == {"[1]"}
    assert check_vjp(half, args, argnums=0).ok
    for argnums in (1, (1,), -1):
        report = check_vjp(half, args, argnums=argnums)
        assert set(report.leaves) == wrong_leaves(report) == {"[1]"}
    assert wrong_leaves(check_vjp(half, args, argnums=(1, 0))) == {"[1]"}


def sine_and_square(back):
    def both(x):
        return jnp.sin(x), x**2

    return custom(both, lambda x: (both(x), x), lambda x, c: (back(x, c),))


@pytest.mark.parametrize(
    "back",
    [lambda x, c: jnp.cos(x) * c[1] + 2 * x * c[0], lambda x, c: jnp.cos(x) * c[0], lambda x, c: 2 * x * c[1]],
    ids=["swapped", "first alone", "second alone"],
)
def test_a_cotangent_given_to_another_output_or_to_none_is_found(back):
    assert failures(check_vjp(sine_and_square(back), (X,))) == {"algebra"}


def test_each_output_has_its_own_cotangent():
    assert check_vjp(sine_and_square(lambda x, c: jnp.cos(x) * c[0] + 2 * x * c[1]), (X,)).ok


def test_a_rule_of_with_gradient_is_judged_like_any_other():
    objective = mjn.objective(mjn.mlp((2, 2)), mjn.mean_squared_error)
    by_hand = mjn.mlp_gradient((2, 2), activation=jax.nn.relu, loss=mjn.mean_squared_error)
    args = mjn.mlp((2, 2)).init(jax.random.key(0)), (jnp.eye(3, 2), jnp.ones((3, 2)))

    def halved(params, batch):
        loss, gradient = by_hand(params, batch)
        return loss, jax.tree.map(lambda leaf: leaf / 2, gradient)

    assert check_vjp(mjn.with_gradient(objective, by_hand), args, argnums=0).ok
    report = check_vjp(mjn.with_gradient(objective, halved), args, argnums=0)
    assert wrong_leaves(report) == {"[0][0]['weights']", "[0][0]['bias']"}


# --- What a rule can get wrong ----------------------------------------------------------------------------------------

NOT_LINEAR = {
    "clipped": (lambda x, c: jnp.cos(x) * jnp.clip(c, -1, 1), "linear"),
    "ignored": (lambda x, c: jnp.cos(x), "ignores the cotangent"),
    "squared": (lambda x, c: jnp.cos(x) * c**2, "linear|too many"),
    "without its sign": (lambda x, c: jnp.cos(x) * jnp.abs(c), "linear"),
    "its sign alone": (lambda x, c: jnp.cos(x) * jnp.sign(c), "linear"),
    "a constant added": (lambda x, c: jnp.cos(x) * c + 1, "linear|constant"),
    "a little constant added": (lambda x, c: jnp.cos(x) * c + 1e-6, "linear|constant"),
    "of degree one, and yet no sum": (lambda x, c: jnp.cos(x) * jnp.cbrt(jnp.sum(c**3)), "linear"),
    "squashed where it is large": (lambda x, c: jnp.cos(x) * jnp.where(jnp.abs(c) > 100, 0, c), "linear"),
}


@pytest.mark.parametrize("slip", NOT_LINEAR)
def test_a_rule_that_is_not_linear_in_its_cotangent_fails_linearity_and_a_hint_says_how(slip):
    backward, words = NOT_LINEAR[slip]
    report = check_vjp(sine(backward), (X,))
    assert "linearity" in failures(report) <= {"linearity", "algebra"}
    assert not report.ok
    hints = "; ".join(report.hints)
    assert any(word in hints for word in words.split("|")), hints
    assert ("ignores" in hints) == (slip == "ignored"), hints


def test_a_clipped_cotangent_fails_linearity_alone_where_it_is_not_clipped():
    report = check_vjp(sine(lambda x, c: jnp.cos(x) * jnp.clip(c, -64, 64)), (X,))
    assert failures(report) == {"linearity"}


def test_a_rule_that_breaks_down_at_a_cotangent_of_zeros_fails_linearity_alone():
    report = check_vjp(sine(lambda x, c: jnp.cos(x) * c * (jnp.sum(c**2) / jnp.sum(c**2))), (X,))
    assert failures(report) == {"linearity"}
    assert "zeros" in report.verdicts["linearity"].reason


def test_a_rule_of_zeros_is_linear_and_wrong():
    report = check_vjp(sine(lambda x, c: jnp.zeros_like(x)), (X,))
    assert failures(report) == {"algebra"}
    assert states(report, "linearity") == {"linearity": "pass"}
    assert report.hints[0].startswith("[0]: zero everywhere")


@pytest.mark.parametrize("seed", [1, 2**31])
def test_a_verdict_does_not_hang_on_the_seed(seed):
    assert check_vjp(sine(), (X,), seed=seed).ok
    assert failures(check_vjp(RULES["custom_vjp"](LITTLE), (X,), seed=seed)) == {"algebra"}
    assert "linearity" in failures(check_vjp(sine(NOT_LINEAR["clipped"][0]), (X,), seed=seed))


@pytest.mark.parametrize(
    "value",
    [lambda x: jnp.sin(x) * (1 + 1e-9), lambda x: jnp.sin(x).at[1].add(1e-3), jnp.cos, lambda x: jnp.sin(x) * jnp.nan],
    ids=["a billionth", "one element", "another function", "NaN"],
)
def test_a_forward_pass_of_another_value_fails_primal_alone(value):
    with jax.enable_x64(True):  # a billionth is nothing in float32
        report = check_vjp(sine(value=value), (jnp.asarray(np.asarray(X), jnp.float64),))
    assert failures(report) == {"primal"}
    assert "forward pass" in report.hints[0]


@pytest.mark.parametrize(
    ("fun", "args", "complaint"),
    [
        (
            sine(lambda x, c: (jnp.cos(x) * c).astype(jnp.float32)),
            (X.astype(jnp.bfloat16),),
            r"args\[0\].*float32\[3\]; expected bfloat16\[3\]",
        ),
        (custom(lambda x, y: x * y, lambda x, y: (x * y, (x, y)), lambda r, c: (r[1] * c,)), (X, X), "length"),
        (product(lambda x, y, c: (x * c)[:1]), (X, X), "shape"),
        (product(lambda x, y, c: {"y": x * c}), (X, X), "structure|type"),
    ],
    ids=["float32 for bfloat16", "a missing slope", "shape", "tree"],
)
def test_a_slope_of_another_structure_fails_structure_and_is_not_compared(fun, args, complaint):
    report = check_vjp(fun, args)
    assert failures(report) == {"structure"}
    assert states(report, "algebra") == {"algebra": "unchecked"}
    assert report.leaves == {} and not report.ok
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(report.verdicts["structure"].reason)


def test_forward_mode_is_judged_for_rules_by_tangents_only():
    assert states(check_vjp(sine_by_tangent(), (X,)), "forward") == {"forward": "pass"}
    assert "forward" not in check_vjp(sine(), (X,)).verdicts
    assert failures(check_vjp(sine_by_tangent(1.1), (X,))) == {"algebra", "forward"}


def test_a_rule_that_hides_a_dependence_fails_second_order_alone():
    hiding = custom(jnp.sin, lambda x: (jnp.sin(x), lax.stop_gradient(jnp.cos(x))), lambda r, c: (r * c,))
    assert check_vjp(hiding, (X,)).ok
    report = check_vjp(hiding, (X,), order=2)
    assert failures(report) == {"second order"}
    assert any("hides a dependence" in hint for hint in report.hints)
    for rule in (sine(), sine_by_tangent()):
        assert states(check_vjp(rule, (X,), order=2), "second order") == {"second order": "pass"}


def test_a_rule_that_is_right_but_unstable_fails_precision_alone():
    def backward(x, c):
        return ((c + 1024 * x) ** 2 - c**2 - (1024 * x) ** 2) / (2 * 1024 * x) * jnp.cos(x)

    report = check_vjp(sine(backward), (X,))
    assert "precision" in failures(report)
    assert "algebra" not in failures(report)


def test_a_rule_that_vmap_changes_fails_transforms_alone():
    @jax.custom_batching.custom_vmap
    def slope(x):
        return jnp.cos(x)

    @slope.def_vmap
    def _(axis_size, in_batched, x):
        return 2 * jnp.cos(x), in_batched[0]

    report = check_vjp(sine(lambda x, c: slope(x) * c), (X,))
    assert failures(report) == {"transforms"}
    assert "vmap" in report.verdicts["transforms"].reason


# --- The plain function -----------------------------------------------------------------------------------------------


def test_a_function_without_rules_is_unchecked_unless_a_reference_is_given():
    report = check_vjp(jnp.sin, (X,))
    assert not report.ok
    assert states(report, "algebra") == {"algebra": "unchecked"}
    assert "no custom rule" in report.verdicts["algebra"].reason
    assert check_vjp(jnp.sin, (X,), reference=lambda x: (jnp.exp(1j * x)).imag).ok
    assert failures(check_vjp(jnp.sin, (X,), reference=lambda x: jnp.sin(x) * LITTLE)) == {"algebra"}


def test_a_surrogate_is_judged_by_the_reference_and_keeps_its_own_value():
    straight_through = custom(jnp.round, lambda x: (jnp.round(x), None), lambda _, c: (c,))
    assert failures(check_vjp(straight_through, (X,))) == {"algebra"}
    report = check_vjp(straight_through, (X,), reference=lambda x: x)
    assert report.ok, str(report)
    assert states(report, "primal", "oracle") == {"primal": "pass", "oracle": "pass"}
    assert not check_vjp(straight_through, (X,), reference=lambda x: 2 * x).ok


def doubled_until_large(x):
    return lax.while_loop(lambda s: jnp.sum(jnp.abs(s)) < 100, lambda s: 2 * s, x)


def called_back(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize(
    ("fun", "backward", "reference"),
    [(doubled_until_large, lambda x, c: 32 * c, lambda x: 32 * x), (called_back, lambda x, c: jnp.cos(x) * c, jnp.sin)],
    ids=["while", "callback"],
)
def test_a_function_that_only_its_rule_can_differentiate_asks_for_a_reference(fun, backward, reference):
    ruled = custom(fun, lambda x: (fun(x), x), lambda x, c: (backward(x, c),))
    with pytest.raises(ValueError, match="expected reference="):
        check_vjp(ruled, (X,))
    report = check_vjp(ruled, (X,), reference=reference)
    assert report.ok, str(report)
    assert failures(check_vjp(ruled, (X,), reference=lambda x: reference(x) * LITTLE)) == {"algebra"}


# --- What is refused, and what is left as it was ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fun", "args", "options", "error", "complaint"),
    [
        (sine(), (X + 0j,), {}, TypeError, r"args\[0\]: got dtype complex64; complex numbers are not supported"),
        (lambda x: sine()(x) + 0j, (X,), {}, TypeError, "fun: its output: got dtype complex64; complex numbers"),
        (lambda x: x > 0, (X,), {}, TypeError, "fun: got no floating output"),
        (sine(), (jnp.arange(3),), {}, TypeError, "args: got no floating leaf"),
        (sine(), X, {}, TypeError, "args: got a .*; expected a tuple"),
        (sine(), (X.at[1].set(jnp.nan),), {}, ValueError, r"args\[0\]: got NaN at \[1\]"),
        (sine(), (X,), {"argnums": 1}, ValueError, "argnums: got 1"),
        (sine(), (X,), {"argnums": (True,)}, TypeError, "argnums: got"),
        (sine(), (X,), {"order": 3}, ValueError, "order: got 3; expected 1 or 2"),
    ],
    ids=["complex", "complex output", "no float out", "no float in", "no tuple", "NaN", "argnums", "bool", "order"],
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


@pytest.mark.parametrize("x64", [False, True])
def test_no_flag_is_changed_and_the_arguments_are_left_as_they_were(x64):
    before = dict(jax.config.values)
    args = (jnp.array(X),)
    with jax.enable_x64(x64):
        check_vjp(sine(), args)
        assert jax.config.jax_enable_x64 is x64
    assert dict(jax.config.values) == before
    chex.assert_trees_all_equal(args, (X,), strict=True)


def test_checks_in_several_threads_do_not_meet():
    def check(i):
        report = check_vjp(RULES["custom_vjp"](LITTLE if i % 2 else 1.0), (jnp.arange(1.0, 3 + i),))
        return report.ok, jnp.ones(1).dtype

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(check, range(4))) == [(True, jnp.float32), (False, jnp.float32)] * 2


def test_the_same_seed_gives_the_same_report():
    first, again = (check_vjp(RULES["custom_vjp"](1.5), (X,), seed=4).to_dict() for _ in range(2))
    assert first == again


def test_assert_vjp_is_silent_on_a_right_rule_and_raises_the_whole_report_of_a_wrong_one():
    assert_vjp(sine(), (X,))
    with pytest.raises(mjn.GradientMismatch, match="NOT RIGHT") as raised:
        assert_vjp(RULES["custom_vjp"](-1.0), (X,))
    assert raised.value.report.hints[0].startswith("[0]: the sign is wrong")
