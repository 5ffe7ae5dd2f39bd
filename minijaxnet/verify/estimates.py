"""The derivative of a function of one number by finite differences, with its own error estimate."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minijaxnet.verify.widening import largest

_LEVELS = 11
_SHRINK = 4.0
_FIRST_STEP = 2.0**-3


class Estimate(NamedTuple):
    """A derivative and how far off it may be.

    Attributes:
        value: the derivative; at a kink the mean of the one-sided derivatives.
        error: how far off it may be; infinite where there is no estimate.
        jump: the derivative from the right less that from the left; 0 where there is no kink.
        jump_error: how far off that may be.
    """

    value: float
    error: float
    jump: float = 0.0
    jump_error: float = float("inf")

    def is_sharp(self, size: float, share: float) -> bool:
        """Whether its error is at most this share of a number of this size."""
        return self.error <= share * size

    def agrees(self, value: float, size: float) -> bool:
        """Whether a number is this derivative, as far as can be seen, where numbers are of this size."""
        return abs(value - self.value) <= 10 * self.error + 1e-7 * size

    def is_smooth(self, size: float) -> bool:
        """Whether there is no kink, as far as can be seen."""
        return self.jump_error <= 1e-4 * size and abs(self.jump) <= 10 * self.jump_error + 1e-6 * size

    def is_between_sides(self, value: float, size: float) -> bool:
        """Whether a number lies between the one-sided derivatives at a kink."""
        if self.is_smooth(size) or not np.isfinite(self.jump_error):
            return False
        slack = 10 * (self.error + self.jump_error) + 1e-7 * size
        return abs(value - self.value) <= abs(self.jump) / 2 + slack

    def scaled(self, factor: float) -> "Estimate":
        """The derivative with respect to a variable in which steps are so many times shorter."""
        return Estimate(*(x * factor for x in self))


def derivative(
    function: Callable[[float], float], noise: float = float(np.finfo(np.float64).eps), enough: float = 0.0
) -> Estimate:
    """The derivative at 0, by differences of falling width, extrapolated to width 0.

    ``(f(h) - f(-h)) / 2h = f'(0) + c_2 h^2 + c_4 h^4 + ...``: two widths h and h/s give
    ``(s^2 D(h/s) - D(h)) / (s^2 - 1)``, free of the first error term, and so on in a triangle. The entry that differs
    least from its neighbours wins, and that difference, with what rounding of f does at its width, is its error.
    ``(f(h) - 2 f(0) + f(-h)) / h = jump + c_1 h + c_3 h^3 + ...`` is treated alike.

    Args:
        function: of one number, smooth near 0 at the scale of 1.
        noise: the relative rounding error of its values.
        enough: the relative error that is small enough, where kinks do not matter.

    Returns:
        The estimate; its error is infinite where no width gives a finite difference.

    Example:
        >>> import math
        >>> estimate = derivative(math.exp)
        >>> abs(estimate.value - 1) <= estimate.error < 1e-8
        True
        >>> abs(derivative(abs).jump - 2) < 1e-8
        True

    Source: Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982.
    """
    middle = function(0.0)
    limit, jump = _Limit(first_power=2), _Limit(first_power=1)
    with np.errstate(invalid="ignore", over="ignore"):
        for level in range(_LEVELS):
            h = _FIRST_STEP / _SHRINK**level
            right, left = function(h), function(-h)
            rounding = 2 * noise * (abs(right) + abs(left)) / h
            if np.isfinite(middle):
                apart = right - middle - (middle - left)
            else:  # as where a formula divides 0 by 0: from two points on either side
                apart = function(2 * h) - right - (left - function(-2 * h))
            sharper = limit.refined((right - left) / (2 * h), rounding)
            sharper |= jump.refined(apart / h, 2 * rounding)
            if limit.error <= (enough if sharper else 1e-8) * abs(limit.value):
                break
    return Estimate(limit.value, limit.error, jump.value, jump.error)


class _Limit:
    """The limit of values at falling widths, whose error has every second power of the width, and its error."""

    def __init__(self, first_power: int):
        self.first_power = first_power
        self.value, self.error = float("nan"), float("inf")
        self._row: list[float] = []

    def refined(self, value: float, rounding: float) -> bool:
        """Use the value at the next width; whether that made the limit sharper."""
        row, before = [value], self.error
        for i, last in enumerate(self._row):
            row.append(row[i] + (row[i] - last) / (_SHRINK ** (2 * i + self.first_power) - 1))
            error = max(abs(row[i + 1] - row[i]), abs(row[i + 1] - last)) + rounding
            if np.isfinite(row[i + 1]) and error < self.error:
                self.value, self.error = float(row[i + 1]), float(error)
        self._row = row
        return self.error < before


def typical_sizes(leaf: np.ndarray) -> np.ndarray:
    """How far each element may be moved for a difference: in proportion to itself, or to its leaf where it is small."""
    size, most = np.where(np.isfinite(leaf), np.abs(leaf), 0.0), largest(leaf)
    if not most:
        return np.ones_like(size)
    typical = most * np.sqrt(np.mean(np.square(size / most)))
    return np.where(size > 1e-3 * typical, size, typical)
