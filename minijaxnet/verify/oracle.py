"""An estimate of a derivative that owes nothing to autodiff: finite differences with their own error estimate."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_LEVELS = 11
_SHRINK = 4.0
_FIRST_STEP = 2.0**-3


class Estimate(NamedTuple):
    """A derivative and how far off it may be."""

    value: float
    error: float

    def settles(self, size: float) -> bool:
        """Whether it is sharp enough to say something about a number of this size."""
        return self.error <= 1e-3 * size

    def agrees(self, value: float) -> bool:
        """Whether a number is this derivative, as far as can be seen."""
        return abs(value - self.value) <= 10 * self.error + 1e-7 * max(abs(value), abs(self.value))


def derivative(function: Callable[[float], float], *, side: int = 0) -> Estimate:
    """The derivative at 0, by differences of falling width, extrapolated to width 0.

    ``(f(h) - f(-h)) / 2h = f'(0) + c_2 h^2 + c_4 h^4 + ...``: two widths h and h/s give
    ``(s^2 D(h/s) - D(h)) / (s^2 - 1)``, free of the first error term, and so on in a triangle. One-sided differences
    have all powers of h. The entry that differs least from its neighbours wins, and that difference, with what rounding
    of f does at its width, is its error.

    Args:
        function: of one number, smooth near 0 at the scale of 1.
        side: 0 for both sides, 1 for the right one, -1 for the left one.

    Returns:
        The estimate; its error is infinite where no width gives a finite difference.

    Example:
        >>> import math
        >>> estimate = derivative(math.exp)
        >>> abs(estimate.value - 1) <= estimate.error < 1e-8
        True

    Source: Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982.
    """
    at_zero = function(0.0) if side else 0.0
    power = _SHRINK if side else _SHRINK**2
    best, previous = Estimate(float("nan"), float("inf")), []
    for level in range(_LEVELS):
        h = _FIRST_STEP / _SHRINK**level
        if side:
            first, second, width = function(side * h), at_zero, side * h
        else:
            first, second, width = function(h), function(-h), 2 * h
        with np.errstate(invalid="ignore", over="ignore"):
            row = [(first - second) / width]
            rounding = 4 * np.finfo(np.float64).eps * (abs(first) + abs(second)) / abs(width)
            for i, before in enumerate(previous):
                row.append(row[i] + (row[i] - before) / (power ** (i + 1) - 1))
                error = max(abs(row[i + 1] - row[i]), abs(row[i + 1] - before)) + rounding
                if np.isfinite(row[i + 1]) and error < best.error:
                    best = Estimate(float(row[i + 1]), float(error))
        previous = row
    return best
