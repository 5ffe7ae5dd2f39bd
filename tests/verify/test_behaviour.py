"""A rule has to bear jit and vmap, and to be differentiated once more; what can't be asked of it, the report says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.reports import passes, states

from minijaxnet import check_grad

W = np.float32([1, 2, 3])


def cubes(w):
    return jnp.sum(w**3)


def cubes_gradient(w):
    return 3 * w**2


def not_passed(report):
    return [name for name, state in states(report).items() if state != "pass"]


def test_a_gradient_that_refuses_float64_is_compared_all_the_same_and_the_report_says_so():
    def only_float32(w, off=0.0):
        if w.dtype == jnp.float64:
            raise RuntimeError("float32 only")
        return cubes_gradient(w) * (1 + off)

    report = check_grad(cubes, only_float32, (W,))
    assert report.ok
    assert "float32 only" in report.verdicts["algebra"].reason
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


def test_a_rule_that_is_another_one_without_jit_fails_transforms_alone():
    def undecided(w):
        return cubes_gradient(w) * (1 if isinstance(w, jax.core.Tracer) else 2)

    report = check_grad(cubes, undecided, (W,))
    assert not report.ok
    assert not_passed(report) == ["transforms"]


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
