"""Derivatives by differences, and how far off they may be."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minijaxnet.verify.estimates import derivative


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (math.exp, 1.0),
        (lambda x: math.sin(5 * x), 5.0),
        (lambda x: 3 * x, 3.0),
        (lambda x: (1 + x) ** 7, 7.0),
        (lambda x: math.log1p(x / 2), 0.5),
        (lambda x: 1e6 + x, 1.0),
        (lambda x: 1e-30 * math.exp(x), 1e-30),
        (lambda x: 1e30 * math.exp(x), 1e30),
    ],
)
def test_differences_agree_with_the_slope_and_with_nothing_beside_it(function, slope):
    estimate = derivative(function)
    size = abs(slope)
    assert estimate.is_sharp(size, 1e-5)
    assert estimate.agrees(slope, size)
    assert abs(estimate.value - slope) <= 10 * estimate.error + 1e-7 * size
    assert not estimate.agrees(slope * 1.001, size)
    assert not estimate.agrees(-slope, size)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(rate=st.floats(-4, 4), phase=st.floats(-3, 3), size=st.floats(-1e3, 1e3), offset=st.floats(-1e3, 1e3))
def test_differences_of_a_smooth_function_never_disagree_with_its_slope(rate, phase, size, offset):
    estimate = derivative(lambda x: size * math.sin(rate * x + phase) + offset)
    slope = size * rate * math.cos(phase)
    assert estimate.agrees(slope, abs(slope))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(exponent=st.floats(-6, -1), side=st.sampled_from([-1, 1]), slope=st.floats(1.5, 10))
def test_differences_beside_a_kink_settle_on_the_slope_that_is_there_or_not_at_all(exponent, side, slope):
    kink = side * 10.0**exponent  # nearer than the smallest difference is wide, a kink cannot be seen
    estimate = derivative(lambda x: max(x - kink, slope * (x - kink)))
    here = 1.0 if kink > 0 else slope
    assert not estimate.is_sharp(slope, 1e-5) or estimate.agrees(here, slope)


@pytest.mark.parametrize("function", [lambda x: math.nan, lambda x: math.inf, lambda x: math.inf if x > 0 else 0.0])
@pytest.mark.filterwarnings("error")
def test_differences_that_are_not_finite_settle_nothing(function):
    estimate = derivative(function)
    assert estimate.error == math.inf
    assert not estimate.is_sharp(1e300, 1.0)
    assert math.isnan(estimate.value)


def test_differences_of_a_noisy_function_own_up_to_it():
    draw = np.random.default_rng(0)
    estimate = derivative(lambda x: math.exp(x) + 1e-7 * draw.normal())
    assert estimate.agrees(1.0, 1.0)
    assert estimate.error > 1e-9
