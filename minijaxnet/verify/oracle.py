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

    def settles(self, size: float, share: float) -> bool:
        """Whether its error is at most this share of a number of this size."""
        return self.error <= share * size

    def agrees(self, value: float, size: float) -> bool:
        """Whether a number is this derivative, as far as can be seen, where numbers are of this size."""
        return abs(value - self.value) <= 10 * self.error + 1e-7 * size


def derivative(function: Callable[[float], float]) -> Estimate:
    """The derivative at 0, by differences of falling width, extrapolated to width 0.

    ``(f(h) - f(-h)) / 2h = f'(0) + c_2 h^2 + c_4 h^4 + ...``: two widths h and h/s give
    ``(s^2 D(h/s) - D(h)) / (s^2 - 1)``, free of the first error term, and so on in a triangle. The entry that differs
    least from its neighbours wins, and that difference, with what rounding of f does at its width, is its error.

    Args:
        function: of one number, smooth near 0 at the scale of 1.

    Returns:
        The estimate; its error is infinite where no width gives a finite difference.

    Example:
        >>> import math
        >>> estimate = derivative(math.exp)
        >>> abs(estimate.value - 1) <= estimate.error < 1e-8
        True

    Source: Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982.
    """
    best, previous = Estimate(float("nan"), float("inf")), []
    for level in range(_LEVELS):
        h = _FIRST_STEP / _SHRINK**level
        right, left = function(h), function(-h)
        with np.errstate(invalid="ignore", over="ignore"):
            row = [(right - left) / (2 * h)]
            rounding = 2 * np.finfo(np.float64).eps * (abs(right) + abs(left)) / h
            for i, before in enumerate(previous):
                row.append(row[i] + (row[i] - before) / (_SHRINK ** (2 * i + 2) - 1))
                error = max(abs(row[i + 1] - row[i]), abs(row[i + 1] - before)) + rounding
                if np.isfinite(row[i + 1]) and error < best.error:
                    best = Estimate(float(row[i + 1]), float(error))
        previous = row
    return best
