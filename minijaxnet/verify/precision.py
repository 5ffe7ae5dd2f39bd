"""In the dtype one works in: is the hand rule's rounding error like autodiff's own?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._loops import platform_of
from minijaxnet._machine import product_epsilon, product_note
from minijaxnet.verify.comparison import Comparison
from minijaxnet.verify.compilation import EPSILON, is_float64
from minijaxnet.verify.evaluation import Arrays, Evaluation, on_host, outputs
from minijaxnet.verify.report import Verdict, listed
from minijaxnet.verify.rounding import Rounding, distance, enlarged_errors
from minijaxnet.verify.widening import as_real, from_real, largest, widened

# Far worse is more than so many times autodiff's own error; where errors are only estimated, more than so many.
_WORSE, _WORSE_ESTIMATED = 8, 64
_ENLARGED = 2.0**-40

Ratios = list[float | None]


def precision(at: Evaluation, seen: Rounding, compared: Sequence[Comparison]) -> tuple[Verdict, Ratios]:
    """The verdict, and for each gradient the hand rule's error over autodiff's.

    Both rules are run in the working dtype, here and with all inputs moved by one unit in the last place, and compared
    with float64. A rule fails where its largest error in a leaf exceeds 8 times autodiff's, plus what one unit in the
    last place of the inputs does, plus the rounding of the result; or where it is not finite and autodiff is. Where
    matrix products read fewer digits than their operands have, as float32 on a GPU, a unit is one of theirs. Where
    autodiff itself is not finite, there is nothing to compare with.
    """
    at.tell("measuring rounding errors in the working dtype")
    if is_float64(at.leaves[: at.problem.n_params]):
        return _in_float64(at, seen)
    working = at.compiled.working(at.leaves)
    if working.program is None:
        return Verdict("unchecked", working.why_not), [None] * len(compared)
    platform = platform_of(at.leaves)
    units = [product_epsilon(dtype, platform) for dtype in at.dtypes()]
    hand, autodiff = _in_working(at, at.leaves)
    own_errors, input_ulp = _autodiff_nearby(at, units)
    ratios, doubtful = [], []
    for i, dtype in enumerate(at.dtypes()):
        k = at.problem.n_values + i
        truth, right = at.reference[k], np.where(compared[i].excused, at.hand[k], at.reference[k])
        comparable = np.isfinite(truth) & np.isfinite(autodiff[k])
        floor = max(units[i] * largest(right), float(jnp.finfo(dtype).tiny))
        mine = _largest_error(hand[k], right, comparable)
        own = max(
            _largest_error(autodiff[k], truth, comparable), *(_largest_error(*e[k], comparable) for e in own_errors)
        )
        ratios.append(max(mine, floor / 2) / max(own, floor / 2) if comparable.any() else None)
        broken = bool((~np.isfinite(hand[k]) & comparable & np.isfinite(right)).any())
        allowed = input_ulp[k] + 4 * floor + 8 * largest(seen.unrepeatable[k])
        if broken or mine > _WORSE * own + allowed:
            doubtful.append((k, mine, allowed, broken))
    if doubtful:
        _, spread = enlarged_errors(at, max(units))
        coarse = [at.names[k] for k, mine, allowed, broken in doubtful if broken or mine > _WORSE * spread[k] + allowed]
        if coarse:
            return Verdict("fail", f"far less precise than autodiff in {listed(coarse)}"), ratios
    dtypes = ", ".join(sorted({dtype.name for dtype in at.dtypes()}))
    dtypes += f" ({note})" if "float32" in dtypes and (note := product_note(platform)) else ""
    if all(ratio is None for ratio in ratios):
        return Verdict("unchecked", "autodiff is not finite: there is no error of its own to compare with"), ratios
    return Verdict("pass", f"in {dtypes} its rounding error goes {_compared(ratios)}"), ratios


def _in_working(at: Evaluation, leaves: Sequence[jax.Array]) -> tuple[Arrays, Arrays]:
    """What both rules return in the working dtype."""
    hand, reference = at.compiled.working(at.leaves).program(*leaves)
    return on_host(hand, at.problem.n_values), on_host(reference, at.problem.n_values)


def _autodiff_nearby(
    at: Evaluation, units: Sequence[float]
) -> tuple[list[list[tuple[np.ndarray, np.ndarray]]], list[float]]:
    """At two points one unit away: autodiff in the working dtype beside float64, and how far that is from here."""
    pairs, moves = [], []
    for sign in (1.0, -1.0):
        leaves = list(at.leaves)
        for i, unit in enumerate(units):
            leaves[i] = _moved(leaves[i], sign * unit, at.seed)
        truth = outputs(at.compiled, list(map(widened, leaves)))[1]
        pairs.append(list(zip(_in_working(at, leaves)[1], truth, strict=True)))
        moves.append(list(map(largest, map(distance, truth, at.reference))))
    return pairs, list(map(max, *moves))


def _moved(leaf: jax.Array, share: float, seed: int) -> jax.Array:
    """A leaf moved by a share of itself, at random up or down."""
    draw, real = np.random.default_rng((seed, leaf.size)), as_real(widened(leaf))
    real = real * (1 + share * draw.choice((-1.0, 1.0), size=real.shape))
    return jax.device_put(from_real(real, leaf.dtype).astype(leaf.dtype), leaf.sharding)


def _largest_error(got: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    return float(np.max(distance(got, truth), initial=0.0, where=mask))


def _compared(ratios: Ratios) -> str:
    worst = max((ratio for ratio in ratios if ratio is not None), default=1.0)
    return "no further than autodiff's" if worst <= 1 else f"at most {worst:.2g} times as far as autodiff's"


def _in_float64(at: Evaluation, seen: Rounding) -> tuple[Verdict, Ratios]:
    """In float64 nothing is more exact: the rounding errors of both rules, as seen nearby, are compared."""
    ratios, doubtful = [], []
    for k in range(at.problem.n_values, len(at.hand)):
        finite = np.isfinite(at.reference[k])
        floor = EPSILON * largest(at.reference[k])
        mine, own, input_ulp = (
            float(np.max(x[k], initial=0.0, where=finite)) for x in (seen.hand, seen.reference, seen.input_ulp)
        )
        ratios.append(max(mine, floor) / max(own, floor) if floor else None)
        allowed = input_ulp + 8 * largest(seen.unrepeatable[k])
        if mine > _WORSE_ESTIMATED * max(own, floor) + allowed:
            doubtful.append((k, floor, allowed))
    if doubtful:
        hand, own = ([error * EPSILON / _ENLARGED for error in errors] for errors in enlarged_errors(at, _ENLARGED))
        coarse = [
            at.names[k]
            for k, floor, allowed in doubtful
            if max(hand[k], floor) > _WORSE_ESTIMATED * max(own[k], floor) + allowed
        ]
        if coarse:
            return Verdict("fail", f"its roundings go far further than autodiff's in {listed(coarse)}"), ratios
    return Verdict("pass", f"in float64 its rounding error goes {_compared(ratios)}"), ratios
