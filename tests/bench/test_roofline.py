"""Which limit binds a step: arithmetic on made-up rates; measured rates are only positive."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from kits.marks import slow

from minijaxnet.bench import roofline as roofline_module
from minijaxnet.bench.bounds import limits
from minijaxnet.bench.cost import StepCost
from minijaxnet.bench.roofline import Roofline, measure_roofline

MACHINE = Roofline("made up", {"float32": 1e11, "bfloat16": 4e11}, {1_000: 1e11, 10**6: 5e10, 10**9: 1e10}, 5e-6)


def cost_of(matrix, least_bytes):
    return StepCost(matrix, {}, least_bytes)


@pytest.mark.parametrize(
    ("matrix", "least_bytes", "called", "binds", "bound_s"),
    [
        ({"float32": 10**9}, 10**6, True, "compute", 0.01),
        ({"float32": 10**5}, 10**9, False, "bandwidth", 0.1),
        ({"float32": 10**5}, 10**4, True, "dispatch", 5e-6),
        ({"float32": 10**5}, 10**4, False, "compute", 1e-6),
        ({"float32": 10**9, "bfloat16": 4 * 10**9}, 10**6, False, "compute", 0.02),
        ({}, 10**6, False, "bandwidth", 2e-5),
    ],
)
def test_the_largest_bound_binds(matrix, least_bytes, called, binds, bound_s):
    found = limits(cost_of(matrix, least_bytes), 0.2, MACHINE, called=called)
    assert found.binds == binds
    assert found.bound_s == pytest.approx(bound_s)
    assert found.dispatch_s == (5e-6 if called else 0)
    assert found.attained == pytest.approx(found.compute_s / 0.2)
    assert found.intensity == sum(matrix.values()) / least_bytes
    assert binds in str(found)


def test_intensity_meets_the_ridge_where_moving_takes_as_long_as_computing():
    found = limits(cost_of({"float32": 2 * 10**9}, 10**9), 1.0, MACHINE)
    assert found.ridge == pytest.approx(10)  # 1e11 FLOP/s over 1e10 bytes/s
    assert (found.intensity < found.ridge) == (found.bandwidth_s > found.compute_s)
    balanced = limits(cost_of({"float32": 10**10}, 10**9), 1.0, MACHINE)
    assert balanced.intensity == pytest.approx(balanced.ridge)
    assert balanced.bandwidth_s == pytest.approx(balanced.compute_s) == pytest.approx(0.1)
    assert math.isnan(limits(cost_of({}, 10**9), 1.0, MACHINE).ridge)


def test_a_step_faster_than_its_limit_is_named_and_the_notes_of_a_cost_are_printed():
    cost = cost_of({"float32": 10**9}, 1)._replace(notes=("while: of unknown length",))
    slow, quick = (str(limits(cost, step_s, MACHINE)) for step_s in (0.02, 0.005))
    assert "faster than the bound" in quick and "faster" not in slow
    assert "note: while: of unknown length" in slow


def test_a_dtype_without_a_peak_and_a_step_s_that_is_no_time_are_refused():
    with pytest.raises(ValueError, match=r"roofline: got the peaks of float32, bfloat16; expected float64 too"):
        limits(cost_of({"float64": 1}, 1), 1.0, MACHINE)
    for step_s in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="step_s: got"):
            limits(cost_of({}, 1), step_s, MACHINE)


# --- The measurement --------------------------------------------------------------------------------------------------


def test_measured_rates_are_positive(monkeypatch):
    monkeypatch.setattr(roofline_module, "_SIDES", (4,))
    monkeypatch.setattr(roofline_module, "_ARRAYS", (2**10,))
    roofline = measure_roofline((jnp.bfloat16,), seconds=0.01)
    assert list(roofline.peaks) == ["bfloat16"] and list(roofline.bandwidths) == [2**11]
    assert all(0 < rate < math.inf for rate in (*roofline.peaks.values(), *roofline.bandwidths.values()))
    assert 0 < roofline.dispatch_s < math.inf and "bfloat16" in str(roofline)


@pytest.mark.parametrize(("first_s", "side"), [(1e-9, 4096), (1e-4, 1024), (1.0, 256)])
def test_a_rate_is_work_over_the_least_time(monkeypatch, first_s, side):
    def block(first_s, least_s):
        """Seconds of a round; by the first it is known whether larger matrices would take too long."""
        times = iter([first_s, 3 * least_s, least_s])
        return lambda: next(times, 2 * least_s)

    monkeypatch.setattr(roofline_module, "_products", lambda side, kind: block(first_s * side / 256, side * 1e-3))
    monkeypatch.setattr(roofline_module, "_passes", lambda size: block(3.0, size * 1e-9))
    monkeypatch.setattr(roofline_module, "_calls", lambda: block(3.0, 5e-6))
    roofline = measure_roofline(("float32", "complex64"), seconds=0.1)
    assert roofline.peaks == pytest.approx({"float32": 2 * side**2 / 1e-3, "complex64": 8 * side**2 / 1e-3})
    assert list(roofline.bandwidths.values()) == pytest.approx([2e9] * len(roofline.bandwidths))
    assert roofline.dispatch_s == pytest.approx(5e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float32", "float16")])
def test_what_is_timed_neither_vanishes_nor_grows(monkeypatch, dtype):
    kept = []
    monkeypatch.setattr(roofline_module, "_block", lambda *arguments: kept.append(arguments))
    roofline_module._products(16, dtype)
    ((function, x, w),) = kept
    later = lax.fori_loop(0, 1000, lambda _, x: function(x, w), x).astype(jnp.float32)
    assert float(jnp.std(later)) == pytest.approx(1, abs=0.1)
    assert not np.any(np.asarray(w) == 0)


@pytest.mark.parametrize(
    ("dtypes", "words"),
    [
        (("int32",), "dtypes: got int32; expected floating or complex ones"),
        ("float32", "dtypes: got 'float32'; expected a sequence"),
        (("float64",), "dtypes: got float64; expected one that is enabled"),
    ],
)
def test_dtypes_that_cannot_be_measured_are_refused(dtypes, words):
    with pytest.raises(TypeError, match=words):
        measure_roofline(dtypes)
