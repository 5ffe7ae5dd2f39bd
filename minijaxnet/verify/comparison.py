"""A result of two rules side by side, element by element."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from minijaxnet.verify.evaluation import Evaluation
from minijaxnet.verify.report import LeafReport
from minijaxnet.verify.widening import largest

# Of the largest number in a leaf: the last place of what is smaller says nothing.
_TINY = 2.0**-10


class Comparison(NamedTuple):
    """One result of the two rules, element by element; all arrays have its shape.

    Attributes:
        name: of the result.
        hand: by hand, float64; a complex number is a pair of them.
        reference: by autodiff, or by finite differences.
        tolerance: how far apart rounding can bring the two.
        wrong: where they differ by more.
        undecided: where there is no finite reference.
        excused: where they differ, and the hand rule is right.
        hidden: where they differ by much, and rounding may be the cause.
        finite_difference: of the worst element; None if there is no need, or no estimate.
        note: why something was excused.
        autodiff_suspect: whether finite differences agree with the hand rule where autodiff differs.
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
    autodiff_suspect: bool = False

    @property
    def errors(self) -> np.ndarray:
        """The absolute differences; infinite where only one is finite, 0 where excused."""
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.where(self.hand == self.reference, 0.0, np.abs(self.hand - self.reference))
        return np.where(self.excused, 0.0, np.where(np.isnan(apart), np.inf, apart))

    @property
    def worst(self) -> tuple[int, ...]:
        """The index of the element whose error is largest against its tolerance; the undecided come last."""
        excess = self.errors / np.maximum(self.tolerance, np.finfo(np.float64).tiny)
        excess = np.where(self.undecided & self.wrong.any(), -1.0, excess)
        return tuple(int(k) for k in np.unravel_index(np.argmax(excess), excess.shape))

    def hiding(self, mask: np.ndarray) -> "Comparison":
        """The same, with the elements of the mask hidden instead of wrong."""
        return self._replace(wrong=self.wrong & ~mask, hidden=self.hidden | mask)

    def without_wrong(self) -> "Comparison":
        """The same, with what is wrong left undecided."""
        return self._replace(wrong=np.zeros_like(self.wrong), undecided=self.undecided | self.wrong)


def compare(name: str, hand: np.ndarray, reference: np.ndarray, tolerance: np.ndarray) -> Comparison:
    """A result of two rules."""
    none = np.zeros(hand.shape, bool)
    result = Comparison(name, hand, reference, tolerance, none, none, none, none)
    undecided = ~np.isfinite(reference)  # infinity equals infinity, whatever the factor
    return result._replace(wrong=(result.errors > result.tolerance) & ~undecided, undecided=undecided)


def compare_all(at: Evaluation, names: list[str]) -> list[Comparison]:
    """All results of the two rules, values first, within the tolerances of an evaluation."""
    return [compare(*each) for each in zip(names, at.hand, at.reference, at.tolerances, strict=True)]


def leaf_report(result: Comparison, dtype: Any, precision_ratio: float | None) -> LeafReport:
    """How a leaf compares, at its worst element and as a whole."""
    is_complex, note = jnp.issubdtype(dtype, jnp.complexfloating), result.note
    shape = result.hand.shape[:-1] if is_complex else result.hand.shape
    if not result.hand.size:
        return LeafReport(result.name, shape, 0.0, 0.0, 0.0, (), 0.0, 0.0)
    k = result.worst
    error, hand, reference = float(result.errors[k]), float(result.hand[k]), float(result.reference[k])
    in_sight = max(_TINY * largest(result.reference), float(jnp.finfo(dtype).tiny)) < abs(reference) < np.inf
    ulps = error / (float(jnp.finfo(dtype).eps) * abs(reference)) if in_sight else np.inf
    tolerance, index = float(result.tolerance[k]), k
    if is_complex:  # the pair of a gradient is that of its conjugate
        sign, part, index = (-1 if k[-1] else 1), ("real", "imaginary")[k[-1]], k[:-1]
        hand, reference = sign * hand, sign * reference
        note = "; ".join(filter(None, (note, f"the numbers are {part} parts")))
    return LeafReport(
        result.name, shape, error, tolerance, float(np.max(result.tolerance)), index, hand, reference,
        finite_difference=result.finite_difference,
        ulps=ulps if np.isfinite(ulps) else None,
        share_wrong=float(np.mean(result.wrong)),
        precision_ratio=precision_ratio,
        note=note,
    )  # fmt: skip
