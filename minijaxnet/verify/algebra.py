"""Are two rules the same function? Element by element in float64; kinks and errors of autodiff are given a hearing."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from minijaxnet.verify.evidence import Evidence, conventions, distance
from minijaxnet.verify.question import REACHES, Look
from minijaxnet.verify.report import LeafReport

_FEW = 8


class Compared(NamedTuple):
    """One result of the two rules, element by element; all arrays have its shape.

    Attributes:
        name: of the result.
        hand: by hand, float64.
        reference: by autodiff, float64.
        tolerance: how far apart rounding can bring the two.
        wrong: where they differ by more.
        undecided: where autodiff is not finite.
        excused: where they differ, and the hand rule is right.
        finite_difference: of the worst element; None if there is no need, or no estimate.
        note: why something was excused.
    """

    name: str
    hand: np.ndarray
    reference: np.ndarray
    tolerance: np.ndarray
    wrong: np.ndarray
    undecided: np.ndarray
    excused: np.ndarray
    finite_difference: float | None = None
    note: str = ""

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


def algebra(look: Look) -> list[Compared]:
    """Each gradient of a question, compared."""
    first = look.question.n_values
    results = [compare(look.evidence, first + i, name) for i, name in enumerate(look.question.names)]
    if not np.isfinite(look.value(look.differentiated())):
        # Where the function itself overflows, so does what autodiff makes of it.
        results = [r._replace(wrong=np.zeros_like(r.wrong), undecided=r.undecided | r.wrong) for r in results]
    if any(result.wrong.any() for result in results):
        bounds = conventions(look.examiner.pair, look.wide, look.evidence)[first:]
        results = [excused_at_kinks(result, *bound) for result, bound in zip(results, bounds, strict=True)]
    return [_heard_by_oracle(look, i, result) for i, result in enumerate(results)]


def compare(evidence: Evidence, i: int, name: str) -> Compared:
    """The i-th result of two rules."""
    hand, reference = evidence.hand[i], evidence.reference[i]
    none = np.zeros(hand.shape, bool)
    result = Compared(name, hand, reference, evidence.tolerance(i), none, none, none)
    undecided = ~np.isfinite(reference)  # infinity equals infinity, whatever the factor
    return result._replace(wrong=(result.errors > result.tolerance) & ~undecided, undecided=undecided)


def excused_at_kinks(result: Compared, low: np.ndarray, high: np.ndarray) -> Compared:
    """A value between the slopes to both sides of a kink is a convention, not an error."""
    slack = result.tolerance + 1e-9 * (np.abs(low) + np.abs(high))
    with np.errstate(invalid="ignore"):  # infinite slopes
        between = (result.hand >= low - slack) & (result.hand <= high + slack)
    excused = result.wrong & (distance(high, low) > slack) & between
    if not excused.any():
        return result
    k = tuple(int(i) for i in np.argwhere(excused)[0])
    place = f" in {list(k)}" if k else ""
    note = (
        f"at a kink{place} the slope may be from {low[k]:.6g} to {high[k]:.6g}: "
        f"by hand {result.hand[k]:.6g}, by autodiff {result.reference[k]:.6g}"
    )
    return result._replace(wrong=result.wrong & ~excused, excused=excused, note=note)


def leaf_report(result: Compared, dtype: Any, precision_ratio: float | None) -> LeafReport:
    """The figures of a leaf."""
    if not result.hand.size:
        return LeafReport(result.name, result.hand.shape, 0.0, 0.0, 0.0, (), 0.0, 0.0)
    k = result.worst
    error, reference = float(result.errors[k]), float(result.reference[k])
    unit = float(jnp.finfo(dtype).eps) * max(abs(reference), float(jnp.finfo(dtype).tiny))
    return LeafReport(
        result.name,
        result.hand.shape,
        error,
        float(result.tolerance[k]),
        float(np.max(result.tolerance)),
        k,
        float(result.hand[k]),
        reference,
        result.finite_difference,
        error / unit if np.isfinite(reference) else float("nan"),
        float(np.mean(result.wrong)),
        precision_ratio,
        result.note,
    )


def _heard_by_oracle(look: Look, leaf: int, result: Compared) -> Compared:
    """Where the two differ, finite differences may acquit the hand rule; they never condemn it."""
    doubtful = result.wrong | result.undecided
    if not doubtful.any():
        return result
    scale = typical_sizes(look.differentiated()[leaf])
    if _acquitted(look, leaf, result, doubtful, scale):
        count = f"{doubtful.sum()} of {doubtful.size} elements"
        note = f"autodiff suspect: in {count} finite differences side with the hand rule"
        none = np.zeros_like(doubtful)
        return result._replace(wrong=none, undecided=none, excused=result.excused | doubtful, note=note)
    unit = np.zeros(result.hand.shape)
    unit[result.worst] = scale[result.worst]
    estimate = look.slope_of(leaf, unit)
    if not np.isfinite(estimate.error):
        return result
    return result._replace(finite_difference=estimate.value / float(scale[result.worst]))


def _acquitted(look: Look, leaf: int, result: Compared, doubtful: np.ndarray, scale: np.ndarray) -> bool:
    """Whether finite differences agree with the hand rule in a few doubtful elements, and in all of them together."""
    if not np.isfinite(result.hand[doubtful]).all():
        return False
    draw, places = np.random.default_rng(look.seed), np.argwhere(doubtful)
    masks = [doubtful] if len(places) > _FEW else []
    for place in places[draw.permutation(len(places))[:_FEW]]:
        masks.append(np.zeros_like(doubtful))
        masks[-1][tuple(place)] = True
    largest = float(np.max(np.abs(result.hand), initial=0.0, where=np.isfinite(result.hand)))
    for mask in reversed(masks):
        way = np.where(mask, draw.choice((-1.0, 1.0), size=mask.shape) * scale, 0.0)
        size = largest * float(np.sum(np.abs(way)))
        mine, theirs = (float(np.sum(np.where(mask, x, 0.0) * way)) for x in (result.hand, result.reference))
        estimates = (look.slope_of(leaf, way, reach) for reach in REACHES)
        sharp = [e for e in estimates if e.settles(size, 1e-5)]
        if not any(e.agrees(mine, size) for e in sharp) or any(e.agrees(theirs, size) for e in sharp):
            return False
    return True


def typical_sizes(leaf: np.ndarray) -> np.ndarray:
    """How far each element may be moved for a difference: in proportion to itself, or to its leaf where it is small."""
    size = np.where(np.isfinite(leaf), np.abs(leaf), 0.0)
    largest = np.max(size, initial=0.0)
    if not largest:
        return np.ones_like(size)
    typical = largest * np.sqrt(np.mean(np.square(size / largest)))
    return np.where(size > 1e-3 * typical, size, typical)
