"""What is right at a kink: one-sided derivatives, and what lies between them.

At a kink the reference is evaluated just off it, to many sides. An element of a gradient may lie between the least and
the largest derivative found; where several elements stand on the same kink, as at a tie of several maxima, they have to
lie together in the convex hull of the gradients to all sides (Clarke, "Optimization and nonsmooth analysis", 1983).
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from minijaxnet.verify.comparison import Comparison
from minijaxnet.verify.evaluation import Arrays, Evaluation, outputs
from minijaxnet.verify.perturbation import Perturbation
from minijaxnet.verify.rounding import SIZES, distance

# Off a kink to either side, with the first or the last of several equals largest, and at random.
_SIDES = (
    Perturbation(random=0.0, shift=1.0),
    Perturbation(random=0.0, shift=-1.0),
    Perturbation(random=0.0, ramp=1.0),
    Perturbation(random=0.0, ramp=-1.0),
    Perturbation(random=0.0, turn=1.0),
    Perturbation(random=0.0, turn=-1.0),
    *(Perturbation(seed=100 + i) for i in range(6)),
)
_ALL_SIDES = [side._replace(inputs=inputs) for inputs in (0.0, 1.0) for side in _SIDES]
_LIFTS = (1e-150, 1e-100)
# So many times smaller, perturbations do as much to what stands on a kink, and as many times less to what is smooth.
_NEARER = 64
# So many more sides, drawn at random, show which elements stand on the same kink; so many elements are looked at.
_MORE_SIDES, _MOST_JOINT = 256, 48
_TINY = float(np.finfo(np.float64).tiny)

Bounds = list[tuple[np.ndarray, np.ndarray]]


def excused_at_kinks(at: Evaluation, results: Sequence[Comparison]) -> list[Comparison]:
    """The results of two rules, with conventions at kinks excused; hidden where the least move changes everything."""
    at.tell("looking to both sides of kinks")
    bounds, spread = _one_sided_derivatives(at)
    results = [r.hiding(r.wrong & (r.errors <= 2 * s)) for r, s in zip(results, spread, strict=True)]
    excused = [_between(result, *bound) for result, bound in zip(results, bounds, strict=True)]
    if any(result.excused.any() for result in excused) and not _jointly(at, results, bounds):
        note = "at a kink of several elements: each lies between its one-sided derivatives, but not all at once"
        return [r._replace(note=note) if e.excused.any() else e for r, e in zip(results, excused, strict=True)]
    return excused


def _one_sided_derivatives(at: Evaluation) -> tuple[Bounds, Arrays]:
    """The least and the largest value of each element of the reference, just off the kinks that it may stand on.

    Only those that do not depend on how far off: the one-sided derivatives at a kink, not a formula that breaks down,
    and not what the perturbation itself does to a smooth function, which is large where most of a sum cancels. How far
    that takes an element is returned, too, where it takes it to quite another value: 0 elsewhere.
    """
    there, other, near = (
        list(_off_kinks(at, [side._replace(size=size, lift=lift) for side in _ALL_SIDES]))
        for size, lift in ((SIZES[0], _LIFTS[0]), (SIZES[0], _LIFTS[1]), (SIZES[0] / _NEARER, _LIFTS[0]))
    )
    bounds, spread = [], []
    for i, middle in enumerate(at.reference):
        (low, high), (other_low, other_high), (near_low, near_high) = (
            (np.min([middle, *values], axis=0), np.max([middle, *values], axis=0))
            for values in ([off[i] for off in offs] for offs in (there, other, near))
        )
        slack = at.tolerances[i] + 1e-6 * (np.abs(low) + np.abs(high))
        # To the same side, a one-sided derivative is the same however near.
        pairs = [(a[i], b[i]) for a, b, side in zip(there, near, _ALL_SIDES, strict=True) if not side.random]
        moved = np.max([distance(a, b) for a, b in pairs], axis=0)
        size = np.max([np.abs(x) for pair in pairs for x in pair], axis=0)
        erratic = (moved > slack) & (moved > 0.1 * size)
        spread.append(np.where(erratic, high - low, 0.0))
        steady = np.isfinite(middle) & np.isfinite(slack) & ~erratic
        steady &= (distance(low, other_low) <= slack) & (distance(high, other_high) <= slack)
        # Random moves need not find the same corner of several kinks again: halfway between the two, in magnitude.
        steady &= distance(high, low) <= math.sqrt(_NEARER) * distance(near_high, near_low)
        bounds.append((np.where(steady, low, middle), np.where(steady, high, middle)))
    return bounds, spread


def _off_kinks(at: Evaluation, sides: Iterable[Perturbation]) -> Iterator[Arrays]:
    """The reference just off the kinks, to some sides."""
    for side in sides:
        off = outputs(at.compiled, at.wide, side, enlarged=True)[1]
        # What grows with 1 / lift is no derivative, but a formula that divides by what was lifted.
        most = 1 / math.sqrt(side.lift)
        yield [np.where(np.abs(x) < most, x, there) for x, there in zip(off, at.reference, strict=True)]


def _between(result: Comparison, low: np.ndarray, high: np.ndarray) -> Comparison:
    """A value between the one-sided derivatives at a kink is a convention, not an error."""
    slack = result.tolerance + 1e-9 * (np.abs(low) + np.abs(high))
    with np.errstate(invalid="ignore"):  # infinite derivatives
        between = (result.hand >= low - slack) & (result.hand <= high + slack)
        excused = result.wrong & (high - low > slack) & between
    if not excused.any():
        return result
    k = tuple(int(i) for i in np.argwhere(excused)[0])
    note = (
        f"at a kink{f' in {list(k)}' if k else ''} the derivative may be from {low[k]:.6g} to {high[k]:.6g}: "
        f"by hand {result.hand[k]:.6g}, by autodiff {result.reference[k]:.6g}"
    )
    return result._replace(wrong=result.wrong & ~excused, excused=excused, note=note)


def _jointly(at: Evaluation, results: Sequence[Comparison], bounds: Bounds) -> bool:
    """Whether the elements that stand on the same kink lie together in the hull of the gradients to all sides."""
    places = [
        (i, tuple(k))
        for i, (r, (low, high)) in enumerate(zip(results, bounds, strict=True))
        for k in np.argwhere(high - low > r.tolerance + 1e-9 * (np.abs(low) + np.abs(high)))
    ]
    if not 1 < len(places) <= _MOST_JOINT:
        return True
    at_random = [Perturbation(seed=(at.seed + 1000 + k) % 2**32, inputs=float(k % 2)) for k in range(_MORE_SIDES)]
    sides = [side._replace(size=SIZES[0], lift=_LIFTS[0]) for side in (*_ALL_SIDES, *at_random)]
    seen = np.array([[off[i][k] for i, k in places] for off in _off_kinks(at, sides)])
    mine = np.array([results[i].hand[k] for i, k in places])
    return all(_in_hull(mine[group], seen[:, group]) for group in _groups(seen))


def _groups(seen: np.ndarray) -> Iterator[list[int]]:
    """The elements that stand on the same kink: those that are correlated over the sides."""
    apart = seen - seen.mean(axis=0)
    size = np.maximum(np.sqrt(np.sum(apart**2, axis=0)), _TINY)
    tied = np.abs((apart / size).T @ (apart / size)) > 4 / math.sqrt(len(seen))
    left = set(range(len(tied)))
    while left:
        group, new = set(), {left.pop()}
        while new:
            group |= new
            new = {j for i in new for j in np.flatnonzero(tied[i]).tolist()} - group
        left -= group
        yield sorted(group)


def _in_hull(point: np.ndarray, seen: np.ndarray) -> bool:
    """Whether a point is a weighted mean of the rows, to a millionth; true where too many rows may not be seen yet."""
    from scipy.optimize import nnls

    size = max(float(np.max(np.abs(seen))), _TINY)
    corners, counts = np.unique(np.round(seen / size, 7), axis=0, return_counts=True)
    if len(point) == 1 or np.sum(counts == 1) > 0.05 * len(seen):  # by Good and Turing, so much is still unseen
        return True
    system = np.vstack([corners.T, np.ones(len(corners))])
    return nnls(system, np.append(point / size, 1.0))[1] <= 1e-6
