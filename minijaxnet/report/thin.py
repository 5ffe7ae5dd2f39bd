"""Fewer points for a line that looks the same: of each stretch its lowest, its highest, and where it breaks."""

import numpy as np

_FEWEST = 5  # the two ends, and of one stretch three


def thin(steps: np.ndarray, values: np.ndarray, most: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points of a long line, with its spikes and its gaps.

    The line is cut into stretches of equally many points. Of each the lowest and the highest finite value stay, and
    the first one that is not finite, all in their order; and so do the line's two ends.

    Args:
        steps: ``(points,)``.
        values: ``(points,)``; NaN and infinity are gaps.
        most: how many points may stay, at least 5.

    Returns:
        Steps and values of the points that stay: all of them, if they are no more than ``most``.

    Raises:
        ValueError: steps and values of different shapes, or not one line; ``most`` below 5.

    Example:
        >>> steps = np.arange(1_000_000)
        >>> few, values = thin(steps, np.where(steps == 123_456, 9.0, 1.0))
        >>> print(len(few) <= 2_000, few[0], few[-1], values.max())
        True 0 999999 9.0
    """
    steps, values = np.asarray(steps), np.asarray(values)
    if steps.ndim != 1 or steps.shape != values.shape:
        raise ValueError(f"steps, values: got shapes {steps.shape} and {values.shape}; expected one line, (points,)")
    if most < _FEWEST:
        raise ValueError(f"most: got {most}; expected at least {_FEWEST}")
    if len(steps) <= most:
        return steps, values
    finite = np.isfinite(values)
    stretches = (most - 2) // (2 if finite.all() else 3)
    size = -(-len(values) // stretches)
    padding = -len(values) % size

    def rows(array: np.ndarray, beyond: float) -> np.ndarray:
        return np.pad(array, (0, padding), constant_values=beyond).reshape(-1, size)

    first = np.arange(0, len(values), size)
    lowest = np.argmin(rows(np.where(finite, values, np.inf), np.inf), axis=1)
    highest = np.argmax(rows(np.where(finite, values, -np.inf), -np.inf), axis=1)
    gaps = rows(~finite, False)
    broken = (first + np.argmax(gaps, axis=1))[gaps.any(axis=1)]
    kept = np.unique(np.concatenate([[0], first + lowest, first + highest, broken, [len(values) - 1]]))
    return steps[kept], values[kept]
