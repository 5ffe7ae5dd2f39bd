"""How is a wrong gradient wrong? The usual slips are tried one by one; the first that explains it is named."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

# Slices in another order are searched for among so many, at most.
_MOST_SLICES = 64
# So many elements do not agree by chance.
_EVIDENCE = 4


class Wrong(NamedTuple):
    """A leaf of a gradient that is wrong, and what may explain it; all arrays are float64.

    Attributes:
        path: of the leaf.
        hand: its value by hand.
        reference: its true value.
        tolerance: what rounding explains.
        wrong: which elements are beyond it.
        params: the differentiated leaf itself.
        others: ``{path: true value}`` of the other leaves.
        arguments: ``{path: value}`` of all arguments.
        pairs: whether the last axis has the real and the imaginary parts of complex numbers.
    """

    path: str
    hand: np.ndarray
    reference: np.ndarray
    tolerance: np.ndarray
    wrong: np.ndarray
    params: np.ndarray
    others: dict[str, np.ndarray]
    arguments: dict[str, np.ndarray]
    pairs: bool = False

    def equal(self, a: Any, b: Any) -> bool:
        """Whether two candidates are the same array, up to rounding, and far better than the rule is right."""
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
            return False
        sizes, apart = np.maximum(np.abs(a), np.abs(b)), np.abs(self.hand - self.reference)
        slack = 1e-9 * sizes + 1e-13 * np.max(sizes, initial=0)
        slack = np.minimum(slack, 1e-3 * np.max(apart, initial=0, where=np.isfinite(apart)))
        return bool(np.all(np.abs(a - b) <= 4 * self.tolerance + slack))


def explain(slip: Wrong) -> str:
    """The sentence for the first slip that explains the difference; "" if none does."""
    with np.errstate(all="ignore"):
        for find in _SLIPS:
            if sentence := find(slip):
                return sentence
    return ""


def guess(slip: Wrong) -> str:
    """A sentence that fits the difference though others would, too; for when nothing else explains it."""
    with np.errstate(all="ignore"):
        tried = (
            _reordered(slip),
            _repeated_index(slip, some_once=False),
            _one_slice(slip),
            _far_or_near(slip),
            _constant(slip),
            _missing_term(slip, plain=False),
        )
    return next(filter(None, tried), "")


def _not_finite(slip: Wrong) -> str:
    broken = ~np.isfinite(slip.hand)
    if not broken.any():
        return ""
    where = " where the argument is 0" if _same_shape(slip) and (slip.params[broken] == 0).all() else ""
    return (
        f"not finite in {broken.sum()} of {broken.size} elements{where}: a division or a log at the edge of its domain"
    )


def _zero(slip: Wrong) -> str:
    return "" if slip.hand.any() else "zero everywhere: the gradient was not derived, or a path to this leaf was cut"


def _factor(slip: Wrong) -> str:
    if not (np.abs(slip.reference) > slip.tolerance).any() or not np.isfinite(slip.hand).all():
        return ""
    c = float(np.sum(slip.hand * slip.reference) / np.sum(slip.reference * slip.reference))
    name = _named_factor(c, slip)
    if not c or not slip.equal(slip.hand / c, slip.reference) or (slip.hand.size == 1 and not name):
        return ""
    if not name and abs(c - 1) < 1e-9:
        return f"all of it is off by {abs(c - 1):.1e} of itself: a constant of too few digits"
    return name or f"{c:.10g} times what it should be"


def _named_factor(c: float, slip: Wrong) -> str:
    def is_it(value: float) -> bool:
        return abs(c - value) <= 1e-9 * abs(value)

    if is_it(-1.0):
        return "the sign is wrong: a factor -1"
    lengths = {n: path for path, x in slip.arguments.items() for n in _lengths(x.shape) if n > 2}
    for n, path in sorted(lengths.items()):
        size = f"perhaps a size of {path}"
        if is_it(n) or is_it(-n):
            return f"{c:.0f} times too large: a factor n = {n}, {size}: a sum where a mean is meant"
        if is_it(1 / n) or is_it(-1 / n):
            minus = "-" if c < 0 else ""
            return f"a factor {minus}1/n = {minus}1/{n}, {size}: a mean where a sum is meant"
    words = {2.0: "twice what it should be: a factor 2", 0.5: "half of what it should be: a factor 1/2"}
    named = (
        words.get(v, f"{v:g} times what it should be: a factor {v:g}")
        for v in (2.0, 0.5, -2, -0.5, 4, 0.25)
        if is_it(v)
    )
    return next(named, "")


def _lengths(shape: tuple[int, ...]) -> Iterator[int]:
    for count in range(1, len(shape) + 1):
        for axes in itertools.combinations(shape, count):
            yield int(np.prod(axes))


def _conjugate(slip: Wrong) -> str:
    if slip.pairs and slip.equal(slip.hand * [1, -1], slip.reference):
        return "it is the complex conjugate of what it should be: JAX's gradient is du/dx - i du/dy"
    return ""


def _shifted(slip: Wrong) -> str:
    for axis in range(slip.hand.ndim - slip.pairs):
        hand, right = np.moveaxis(slip.hand, axis, 0), np.moveaxis(slip.reference, axis, 0)
        tolerance = np.moveaxis(slip.tolerance, axis, 0)[1:]
        for way, a, b in (("later", hand[1:], right[:-1]), ("earlier", hand[:-1], right[1:])):
            distinct = len(np.unique(np.round(b / max(np.max(np.abs(b), initial=0), 1e-300), 9)))
            if len(a) > 1 and distinct > 2 and slip._replace(tolerance=tolerance).equal(a, b):
                return f"shifted by one along axis {axis}: each value is one place {way} than it should be"
    return ""


def _reordered(slip: Wrong) -> str:
    """Each slice along an axis is another one's: the one whose sum, with random weights, is the nearest."""
    for axis in range(slip.hand.ndim - slip.pairs):
        hand, right = (np.moveaxis(x, axis, 0) for x in (slip.hand, slip.reference))
        weights = np.random.default_rng(0).normal(size=hand[0].shape)
        mine, theirs = (np.sum(x * weights, axis=tuple(range(1, x.ndim))) for x in (hand, right))
        order = np.argmin(np.abs(mine[:, None] - theirs), axis=1) if len(hand) <= _MOST_SLICES else []
        if len(np.unique(order)) == len(hand) > 1 and hand.size >= _EVIDENCE:
            if slip.equal(slip.hand, np.moveaxis(right[order], 0, axis)):
                first = ", ".join(map(str, order[:8])) + (", ..." if len(order) > 8 else "")
                return f"in another order along axis {axis}: in the places of 0, 1, ... are the values of {first}"
    return ""


def _transposed(slip: Wrong) -> str:
    for i, j in itertools.combinations(range(slip.hand.ndim), 2):
        if slip.hand.shape[i] == slip.hand.shape[j] and slip.equal(np.swapaxes(slip.hand, i, j), slip.reference):
            return "transposed" + ("" if slip.hand.ndim == 2 else f" in axes {i} and {j}")
    return ""


def _swapped(slip: Wrong) -> str:
    for path, other in slip.others.items():
        if slip.equal(slip.hand, other):
            return f"it is the gradient of {path}: are the two swapped?"
    return ""


def _one_side(slip: Wrong) -> str:
    if not _same_shape(slip) or slip.pairs:
        return ""
    right = np.logical_not(slip.wrong)
    for side, where in (("x > 0", slip.params > 0), ("x < 0", slip.params < 0), ("x >= 0", slip.params >= 0)):
        elsewhere = slip.wrong[~where]
        if where.sum() > 2 and right[where].all() and elsewhere.size and elsewhere.mean() > 0.5:
            return f"right only where {side} (x: the argument)"
    return ""


def _far_or_near(slip: Wrong) -> str:
    if not _same_shape(slip) or slip.pairs:
        return ""
    right, size = np.logical_not(slip.wrong), np.abs(slip.params)
    inside, outside = size[right], size[slip.wrong]
    if len(np.unique(inside[slip.hand[right] != 0])) < _EVIDENCE:
        return ""
    if outside.size and inside.max() < outside.min():
        return f"right up to |x| = {inside.max():.4g}, wrong from {outside.min():.4g} on: a branch for large arguments"
    if outside.size and outside.max() < inside.min():
        return f"wrong up to |x| = {outside.max():.4g}, right from {inside.min():.4g} on: a branch for small arguments"
    return ""


def _repeated_index(slip: Wrong, *, some_once: bool = True) -> str:
    """Wrong in the rows of repeated indices; ``some_once``: and right in a row whose index comes once."""
    if not slip.hand.ndim or not slip.wrong.any():
        return ""
    rows = np.asarray(slip.wrong.reshape(len(slip.wrong), -1).any(axis=1))
    for path, x in slip.arguments.items():
        if x.size > 1 and np.array_equal(x, np.round(x)) and x.min() >= 0 and x.max() < len(rows):
            count = np.bincount(x.astype(int).ravel(), minlength=len(rows))
            repeated = count > 1
            if some_once and not (count == 1).any():
                continue
            if repeated.any() and not rows[~repeated].any() and rows[repeated].all():
                return f"wrong in the rows whose index is repeated in {path}: set where add is meant"
    return ""


def _one_place(slip: Wrong) -> str:
    places = np.argwhere(slip.wrong)
    if len(places) == 1 and slip.wrong.size > 1:
        return f"one element is wrong, {tuple(map(int, places[0]))}"
    return ""


def _one_slice(slip: Wrong) -> str:
    places = np.argwhere(slip.wrong)
    for axis in range(places.shape[1] if slip.wrong.size > 1 else 0):
        values = np.unique(places[:, axis])
        if len(values) == 1 and slip.wrong.shape[axis] > 1:
            return f"one slice is wrong, index {int(values[0])} of axis {axis}"
    return ""


def _broadcast(slip: Wrong) -> str:
    if slip.hand.size < 2 or np.ptp(slip.hand) > 1e-12 * np.max(np.abs(slip.hand)):
        return ""
    value = slip.hand.flat[0]
    for name, total in (("sum", slip.reference.sum()), ("mean", slip.reference.mean())):
        if np.isclose(value, total, rtol=1e-9):
            return f"each element is the {name} over all of them: reduced, then broadcast"
    return ""


def _missing_term(slip: Wrong, *, plain: bool = True) -> str:
    """A multiple of something too many, or too few; ``plain``: by a factor of few digits, as people write them."""
    difference = slip.hand - slip.reference
    if not np.isfinite(difference).all():
        return ""
    candidates = [("the argument itself, as in weight decay", slip.params)]
    candidates += [(f"the gradient of {path}", other) for path, other in slip.others.items()]
    candidates += [(path, x) for path, x in slip.arguments.items() if x is not slip.params]
    if np.ptp(np.sign(slip.params)):
        candidates += [("the sign of the argument, as in an L1 penalty", np.sign(slip.params))]
    for name, term in candidates:
        if term.shape == difference.shape and (size := np.sum(term * term)):
            c = float(np.sum(difference * term) / size)
            short = not plain or abs(c - float(f"{c:.3g}")) < 1e-6 * abs(c)
            if c and short and difference.size > 1 and slip.equal(slip.reference + c * term, slip.hand):
                how = "a term is missing" if c < 0 else "there is a term too many"
                return f"{how}: {abs(c):.6g} times {name}"
    return ""


def _constant(slip: Wrong) -> str:
    difference = slip.hand - slip.reference
    varied = len(np.unique(slip.reference)) >= _EVIDENCE and difference.flat[0]
    if varied and slip.equal(slip.reference + difference.flat[0], slip.hand):
        shared = "a term that all of them share, as through a mean"
        return f"every element is off by the same {difference.flat[0]:.6g}: {shared}"
    return ""


def _missing_factor(slip: Wrong) -> str:
    if slip.hand.size < 2:
        return ""
    candidates = {path: x for path, x in slip.arguments.items() if x.ndim and x.size > 1}
    for path, x in candidates.items():
        try:
            shaped = np.broadcast_to(x, slip.hand.shape)
        except ValueError:
            continue
        if slip.equal(slip.hand * shaped, slip.reference):
            return f"a factor {path} is missing"
        if slip.equal(slip.hand, slip.reference * shaped):
            return f"there is a factor {path} too many"
    if slip.equal(slip.hand, np.abs(slip.reference)):
        return "the sign is lost: it is the absolute value of what it should be"
    return ""


def _same_shape(slip: Wrong) -> bool:
    return slip.params.shape == slip.hand.shape


_SLIPS: tuple[Callable[[Wrong], str], ...] = (
    _not_finite,
    _zero,
    _conjugate,
    _repeated_index,
    _one_place,
    _factor,
    _transposed,
    _swapped,
    _one_side,
    _shifted,
    _missing_term,
    _missing_factor,
    _broadcast,
)
