"""In the dtype one works in: is the hand rule's rounding error like autodiff's own?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._loops import platform_of
from minijaxnet._machine import product_epsilon, product_note
from minijaxnet.verify.compared import Compared
from minijaxnet.verify.compilation import EPSILON
from minijaxnet.verify.evaluation import Evaluation, on_host, outputs
from minijaxnet.verify.numbers import as_given, as_real, widened
from minijaxnet.verify.report import Verdict, listed
from minijaxnet.verify.rounding import Rounding, distance, enlarged_errors

# Far worse is more than so many times autodiff's own error; where errors are only estimated, more than so many.
_WORSE, _WORSE_ESTIMATED = 8, 64
_ENLARGED = 2.0**-40

Ratios = list[float | None]


def precision(at: Evaluation, seen: Rounding, compared: Sequence[Compared]) -> tuple[Verdict, Ratios]:
    """The verdict, and for each gradient the hand rule's error over autodiff's.

    Both rules are carried out in the working dtype, here and with all inputs moved by one unit in their last place, and
    held against float64. A rule fails where its largest error in a leaf exceeds 8 times autodiff's, plus what one unit
    in the last place of the inputs does, plus the rounding of the result; or where it is not finite and autodiff is.
    Where matrix products read fewer digits than their operands have, as float32 on a GPU, a unit is one of theirs.
    Where autodiff itself is not finite, there is nothing to compare it with.
    """
    at.tell("measuring rounding errors in the working dtype")
    if all(dtype in (np.float64, np.complex128) for dtype in at.dtypes()):
        return _in_float64(at, seen)
    working = at.compiled.working(at.leaves)
    if working.program is None:
        return Verdict("unchecked", working.why_not), [None] * len(compared)
    platform = platform_of(at.leaves)
    units = [product_epsilon(dtype, platform) for dtype in at.dtypes()]
    here = _in_working(at, at.leaves, at.reference)
    moved, slopes = [], []
    for sign in (1.0, -1.0):
        each = zip(at.leaves, at.problem.moved, strict=True)
        leaves = [_moved(x, sign * product_epsilon(x.dtype, platform), at.seed) if mine else x for x, mine in each]
        reference = outputs(at.compiled, [widened(leaf) for leaf in leaves])[1]
        moved.append(_in_working(at, leaves, reference))
        slopes.append([float(np.max(x, initial=0.0)) for x in map(distance, reference, at.reference)])
    ratios, too_coarse = [], []
    for i, dtype in enumerate(at.dtypes()):
        k, limits = at.problem.n_values + i, jnp.finfo(dtype)
        hand, autodiff, truth = here[0][k], here[1][k], at.reference[k]
        comparable = np.isfinite(truth) & np.isfinite(autodiff)
        right = np.where(compared[i].excused, at.hand[k], truth)
        largest = float(np.max(np.abs(right), initial=0.0, where=np.isfinite(right)))
        floor = max(units[i] * largest, float(limits.tiny))
        mine = _largest(hand, right, comparable)
        own = max(_largest(autodiff, truth, comparable), *(_largest(m[1][k], m[2][k], comparable) for m in moved))
        broken = ~np.isfinite(hand) & comparable & np.isfinite(right)
        ratios.append(max(mine, floor / 2) / max(own, floor / 2) if comparable.any() else None)
        allowed = max(s[k] for s in slopes) + 4 * floor + 8 * float(np.max(seen.unrepeatable[k], initial=0.0))
        if broken.any() or mine > _WORSE * own + allowed:
            too_coarse.append((i, mine, allowed, bool(broken.any())))
    if too_coarse:
        _, spread = enlarged_errors(at, max(units))
        n = at.problem.n_values
        too_coarse = [
            at.problem.names[i]
            for i, mine, allowed, broken in too_coarse
            if broken or mine > _WORSE * spread[n + i] + allowed
        ]
    if too_coarse:
        return Verdict("fail", f"far less precise than autodiff in {listed(too_coarse)}"), ratios
    names = ", ".join(sorted({dtype.name for dtype in at.dtypes()}))
    names += f" ({note})" if "float32" in names and (note := product_note(platform)) else ""
    if not any(ratio is not None for ratio in ratios):
        return Verdict("unchecked", "autodiff is not finite: there is no error of its own to compare with"), ratios
    return Verdict("pass", f"in {names} its rounding error goes {_compared(ratios)}"), ratios


def _in_working(
    at: Evaluation, leaves: Sequence[jax.Array], truth: list[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """What both rules return in the working dtype, and the truth there."""
    hand, reference = at.compiled.working(at.leaves).program(*leaves)
    return on_host(at.problem, hand), on_host(at.problem, reference), truth


def _moved(leaf: jax.Array, share: float, seed: int) -> jax.Array:
    """A leaf moved by a share of itself, at random up or down."""
    draw, real = np.random.default_rng((seed, leaf.size)), as_real(widened(leaf))
    real = real * (1 + share * draw.choice((-1.0, 1.0), size=real.shape))
    return jax.device_put(as_given(real, leaf.dtype).astype(leaf.dtype), leaf.sharding)


def _largest(got: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    return float(np.max(distance(got, truth), initial=0.0, where=mask))


def _compared(ratios: Ratios) -> str:
    worst = max((ratio for ratio in ratios if ratio is not None), default=1.0)
    return "no further than autodiff's" if worst <= 1 else f"at most {worst:.2g} times as far as autodiff's"


def _in_float64(at: Evaluation, seen: Rounding) -> tuple[Verdict, Ratios]:
    """In float64 there is no truth to measure by: what rounding does to each rule nearby is compared instead."""
    ratios, too_coarse = [], []
    for k, name in enumerate(at.problem.names, start=at.problem.n_values):
        truth = at.reference[k]
        known = np.isfinite(truth)
        floor = EPSILON * float(np.max(np.abs(truth), initial=0.0, where=known))
        mine, own, slope = (
            float(np.max(x[k], initial=0.0, where=known)) for x in (seen.hand, seen.reference, seen.slope)
        )
        ratios.append(max(mine, floor) / max(own, floor) if floor else None)
        slope += 8 * float(np.max(seen.unrepeatable[k], initial=0.0))
        if mine > _WORSE_ESTIMATED * max(own, floor) + slope:
            too_coarse.append((k, name, floor, slope))
    if too_coarse:
        hand, own = ([error * EPSILON / _ENLARGED for error in errors] for errors in enlarged_errors(at, _ENLARGED))
        too_coarse = [
            name
            for k, name, floor, slope in too_coarse
            if max(hand[k], floor) > _WORSE_ESTIMATED * max(own[k], floor) + slope
        ]
    if too_coarse:
        return Verdict("fail", f"its roundings go far further than autodiff's in {listed(too_coarse)}"), ratios
    return Verdict("pass", f"in float64 its rounding error goes {_compared(ratios)}"), ratios
