"""A result of two rules side by side, element by element."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from minijaxnet.verify.report import LeafReport

# Of the largest number in a leaf: the last place of what is smaller says nothing.
_TINY = 2.0**-10


class Compared(NamedTuple):
    """One result of the two rules, element by element; all arrays have its shape.

    Attributes:
        name: of the result.
        hand: by hand, float64; a complex number is a pair of them.
        reference: by autodiff, or by finite differences.
        tolerance: how far apart rounding can bring the two.
        wrong: where they differ by more.
        undecided: where the reference is not finite, or not to be had.
        excused: where they differ, and the hand rule is right.
        hidden: where they differ by much, and rounding may be the cause.
        finite_difference: of the worst element; None if there is no need, or no estimate.
        note: why something was excused.
        acquitted: whether finite differences side with the hand rule where autodiff differs.
    """

    name: str
    hand: np.ndarray
    reference: np.ndarray
    tolerance: np.ndarray
    wrong: np.ndarray
    undecided: np.ndarray
    excused: np.ndarray
    hidden: np.ndarray
    finite_difference: float | None = None
    note: str = ""
    acquitted: bool = False

    @property
    def errors(self) -> np.ndarray:
        """The absolute differences; infinite where only one is finite, 0 where excused."""
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.where(self.hand == self.reference, 0.0, np.abs(self.hand - self.reference))
        return np.where(self.excused, 0.0, np.where(np.isnan(apart), np.inf, apart))

    def hiding(self, mask: np.ndarray) -> "Compared":
        """The same, with what is in the mask as hidden."""
        return self._replace(wrong=self.wrong & ~mask, hidden=self.hidden | mask)

    @property
    def worst(self) -> tuple[int, ...]:
        """The index of the element whose error is largest against its tolerance; the undecided come last."""
        excess = self.errors / np.maximum(self.tolerance, np.finfo(np.float64).tiny)
        excess = np.where(self.undecided & self.wrong.any(), -1.0, excess)
        return tuple(int(k) for k in np.unravel_index(np.argmax(excess), excess.shape))


def compare(name: str, hand: np.ndarray, reference: np.ndarray, tolerance: np.ndarray) -> Compared:
    """A result of two rules."""
    none = np.zeros(hand.shape, bool)
    result = Compared(name, hand, reference, tolerance, none, none, none, none)
    undecided = ~np.isfinite(reference)  # infinity equals infinity, whatever the factor
    return result._replace(wrong=(result.errors > result.tolerance) & ~undecided, undecided=undecided)


def leaf_report(result: Compared, dtype: Any, precision_ratio: float | None) -> LeafReport:
    """The figures of a leaf."""
    complex_numbers = jnp.issubdtype(dtype, jnp.complexfloating)
    shape = result.hand.shape[:-1] if complex_numbers else result.hand.shape
    if not result.hand.size:
        return LeafReport(result.name, shape, 0.0, 0.0, 0.0, (), 0.0, 0.0)
    k = result.worst
    error, hand, reference = float(result.errors[k]), float(result.hand[k]), float(result.reference[k])
    largest = float(np.max(np.abs(result.reference), initial=0.0, where=np.isfinite(result.reference)))
    telling = np.isfinite(reference) and abs(reference) > max(_TINY * largest, float(jnp.finfo(dtype).tiny))
    note = result.note
    if complex_numbers:  # the pair of a gradient is that of its conjugate
        sign, part, k = (-1 if k[-1] else 1), ("real", "imaginary")[k[-1]], k[:-1]
        hand, reference = sign * hand, sign * reference
        note = "; ".join(filter(None, (note, f"the numbers are {part} parts")))
    return LeafReport(
        result.name,
        shape,
        error,
        float(result.tolerance[result.worst]),
        float(np.max(result.tolerance)),
        k,
        hand,
        reference,
        result.finite_difference,
        error / (float(jnp.finfo(dtype).eps) * abs(reference)) if telling else float("nan"),
        float(np.mean(result.wrong)),
        precision_ratio,
        note,
    )
