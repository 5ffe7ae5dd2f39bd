"""A rule has to be linear, to bear jit and vmap, and to be differentiated once more; a report says what it lacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpora.kit import custom, sine
from kits.reports import failures, passes, states, wrong_leaves

from minijaxnet import check_grad, check_vjp

SLOW = pytest.mark.slow
LITTLE = 1 + 1e-6

# --- The sine with one of several backward rules, by an argument: one program for all of a table ----------------------

RULES = {
    "right": lambda x, c: jnp.cos(x) * c,
    "a millionth": lambda x, c: LITTLE * jnp.cos(x) * c,
    "zeros": lambda x, c: 0 * x,
    "clipped far off": lambda x, c: jnp.cos(x) * jnp.clip(c, -64, 64),
    "clipped": lambda x, c: jnp.cos(x) * jnp.clip(c, -1, 1),
    "ignored": lambda x, c: jnp.cos(x),
    "of degree one, and yet no sum": lambda x, c: jnp.cos(x) * jnp.cbrt(jnp.sum(c**3)),
}


@functools.cache
def report_on(slip, dtype="float32", seed=0):
    def backward(kept, c):
        number, x = kept
        return None, jnp.stack([back(x, c) for back in RULES.values()])[number].astype(c.dtype)

    ruled = custom(lambda number, x: jnp.sin(x), lambda number, x: (jnp.sin(x), (number, x)), backward)
    with jax.enable_x64(dtype == "float64"):
        x, number = jnp.asarray([0.3, -1.2, 2.0], dtype), np.int32([*RULES].index(slip))
        return check_vjp(lambda x, number: ruled(number, x), (x, number), seed=seed)


@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(d, marks=SLOW) for d in ("bfloat16", "float64"))])
def test_a_millionth_in_a_custom_rule_is_found_in_every_dtype(dtype):
    assert report_on("right", dtype).ok
    assert set(states(report_on("right", dtype)).values()) == {"pass"}
    assert failures(report_on("a millionth", dtype)) == {"algebra"}
    assert wrong_leaves(report_on("a millionth", dtype)) == {"x"}


@pytest.mark.parametrize(
    ("slip", "words"),
    [("clipped", "linear"), ("ignored", "ignores the cotangent"), ("of degree one, and yet no sum", "linear")],
)
def test_a_rule_that_is_not_linear_in_its_cotangent_fails_linearity_and_a_hint_says_how(slip, words):
    report = report_on(slip)
    assert "linearity" in failures(report) <= {"linearity", "algebra"}
    assert not report.ok
    hints = "; ".join(report.hints)
    assert any(word in hints for word in words.split("|")), hints
    assert ("ignores" in hints) == (slip == "ignored"), hints


def test_a_clipped_cotangent_fails_linearity_alone_where_it_is_not_clipped():
    assert failures(report_on("clipped far off")) == {"linearity"}


def test_a_rule_that_clips_as_its_reference_does_is_right_and_not_judged_on_linearity():
    def clipping(least):
        return custom(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, c: (jnp.clip(c * jnp.cos(x), least, 0.5),))

    x = jnp.float32([0.3, -1.2, 2.0])
    report = check_vjp(clipping(-0.5), (x,), reference=clipping(-0.5))
    assert report.ok and states(report, "linearity") == {"linearity": "unchecked"}, str(report)
    assert "algebra" in failures(check_vjp(clipping(-0.25), (x,), reference=clipping(-0.5)))


# --- Gradients --------------------------------------------------------------------------------------------------------

W = np.float32([1, 2, 3])


def cubes(w):
    return jnp.sum(w**3)


def cubes_gradient(w):
    return 3 * w**2


def not_passed(report):
    return [name for name, state in states(report).items() if state != "pass"]


def test_a_gradient_that_refuses_float64_is_widened_all_the_same():
    def only_float32(w, off=0.0):
        if w.dtype == jnp.float64:
            raise RuntimeError("float32 only")
        return cubes_gradient(w) * (1 + off)

    report = check_grad(cubes, only_float32, (W,))
    assert report.ok and report.leaves["w"].blind < 1e-13
    assert not check_grad(cubes, lambda w: only_float32(w, 1e-5), (W,)).ok


def test_a_gradient_in_numpy_is_called_as_it_is_and_the_report_says_so():
    report = check_grad(cubes, lambda w: 3 * np.asarray(w) ** 2, (W,))
    assert states(report, "algebra", "precision", "transforms") == {
        "algebra": "pass",
        "precision": "unchecked",
        "transforms": "unchecked",
    }
    assert "can't be traced" in report.verdicts["algebra"].reason
    assert not check_grad(cubes, lambda w: 3.001 * np.asarray(w) ** 2, (W,)).ok


def test_a_right_gradient_that_hides_a_dependence_fails_second_order_alone():
    def hiding(w):
        return 3 * jax.lax.stop_gradient(w) * w

    assert "second order" not in check_grad(cubes, hiding, (W,)).verdicts
    assert states(check_grad(cubes, cubes_gradient, (W,), order=2), "second order") == passes("second order")
    report = check_grad(cubes, hiding, (W,), order=2)
    assert not report.ok
    assert not_passed(report) == ["second order"]
    assert len(report.hints) == 1 and "hides a dependence" in report.hints[0]


def test_a_custom_rule_that_vmap_changes_fails_transforms_alone():
    @jax.custom_batching.custom_vmap
    def slope(x):
        return jnp.cos(x)

    @slope.def_vmap
    def _(axis_size, in_batched, x):
        return 2 * jnp.cos(x), in_batched[0]

    report = check_vjp(sine(lambda x, c: slope(x) * c), (W,))
    assert failures(report) == {"transforms"}
    assert "vmap" in report.verdicts["transforms"].reason


@pytest.mark.slow
def test_a_generator_that_draws_otherwise_under_vmap_is_not_held_against_a_rule():
    """https://github.com/jax-ml/jax/pull/20094: of a batch of keys, ``rbg`` takes the first for all."""

    def kept(key, w):
        key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key, impl="rbg")
        return jax.random.bits(key, w.shape) % 2

    def loss(w, key):
        return jnp.sum(w**3 * kept(key, w))

    @jax.custom_batching.custom_vmap
    def doubled_by_vmap(slope):
        return slope

    @doubled_by_vmap.def_vmap
    def _(axis_size, in_batched, slope):
        return 2 * slope, in_batched[0]

    w, key = jnp.arange(1.0, 9.0), jax.random.key(0, impl="rbg")
    for carried in (key, jax.random.key_data(key)):
        report = check_grad(loss, lambda w, key: 3 * w**2 * kept(key, w), (w, carried))
        assert states(report, "algebra", "transforms") == passes("algebra", "transforms"), str(report)
        assert "vmap over floats alone: its keys draw other numbers there" in report.verdicts["transforms"].reason
    report = check_grad(loss, lambda w, key: doubled_by_vmap(3 * w**2 * kept(key, w)), (w, key))
    assert states(report, "algebra", "transforms") == {"algebra": "pass", "transforms": "fail"}
