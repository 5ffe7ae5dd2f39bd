"""In the dtype one works in: is the hand rule's rounding error like autodiff's own?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.verify.algebra import Compared
from minijaxnet.verify.evidence import EPSILON, SIZES, distance, pair_of, to_host, trace
from minijaxnet.verify.interpret import Moves, equations
from minijaxnet.verify.question import Look
from minijaxnet.verify.report import Verdict, listed

# Far worse is more than so many times autodiff's own error; where errors are only estimated, more than so many.
_WORSE, _WORSE_ESTIMATED = 8, 64
_DRAWS = ("random_bits", "threefry2x32", "random_gamma", "rng_bit_generator")

Ratios = list[float | None]


def precision(look: Look, compared: Sequence[Compared]) -> tuple[Verdict, Ratios]:
    """The verdict, and for each gradient the hand rule's error over autodiff's.

    A rule fails where its largest error in a leaf exceeds 8 times autodiff's (measured, or estimated from enlarged
    roundings, whichever is larger), plus what one unit in the last place of the inputs does, plus the rounding of the
    result; or where it is not finite and autodiff is.
    """
    if all(dtype == np.float64 for dtype in look.dtypes()):
        return _by_estimate(look)
    if look.examiner.in_working is None:
        return Verdict("unchecked", look.examiner.why_not_in_working), [None] * len(compared)
    hand, autodiff = (list(map(to_host, results)) for results in look.examiner.in_working(*look.leaves))
    look = _as_drawn(look)
    coarsest = max(float(jnp.finfo(dtype).eps) for dtype in look.dtypes())
    spread = _moved_by(look, Moves(size=coarsest))
    ulp = [x * coarsest / SIZES[0] for x in _moved_by(look, Moves(size=SIZES[0], inputs=1.0))]
    ratios, too_coarse = [], []
    for i, (name, dtype) in enumerate(zip(look.question.names, look.dtypes(), strict=True)):
        k, limits = look.question.n_values + i, jnp.finfo(dtype)
        truth = look.evidence.reference[k]
        right = np.where(compared[i].excused, look.evidence.hand[k], truth)
        largest = float(np.max(np.abs(truth), initial=0.0, where=np.isfinite(truth)))
        floor = max(float(limits.eps) * largest, float(limits.tiny))
        mine, own = (float(np.max(distance(x, y), initial=0.0)) for x, y in ((hand[k], right), (autodiff[k], truth)))
        broken = ~np.isfinite(hand[k]) & np.isfinite(autodiff[k]) & np.isfinite(right)
        ratios.append(max(mine, floor / 2) / max(own, floor / 2))
        if broken.any() or mine > _WORSE * max(own, spread[k]) + ulp[k] + 4 * floor:
            too_coarse.append(name)
    if too_coarse:
        return Verdict("fail", f"far less precise than autodiff in {listed(too_coarse)}"), ratios
    names = ", ".join(sorted({dtype.name for dtype in look.dtypes()}))
    return Verdict("pass", f"in {names} its rounding error goes {_compared(ratios)}"), ratios


def _compared(ratios: Ratios) -> str:
    worst = max((ratio for ratio in ratios if ratio is not None), default=1.0)
    return "no further than autodiff's" if worst <= 1 else f"at most {worst:.2g} times as far as autodiff's"


def _by_estimate(look: Look) -> tuple[Verdict, Ratios]:
    """In float64 there is no truth to measure by: how far enlarged roundings take the two rules is compared instead."""
    ulp = [x * EPSILON / SIZES[0] for x in _moved_by(look, Moves(size=SIZES[0], inputs=1.0))]
    ratios, too_coarse = [], []
    for k, name in enumerate(look.question.names, start=look.question.n_values):
        doubts, truth = (look.evidence.hand_doubt[k], look.evidence.reference_doubt[k]), look.evidence.reference[k]
        known = np.isfinite(truth)
        floor = EPSILON * float(np.max(np.abs(truth), initial=0.0, where=known))
        mine, own = (max(float(np.max(doubt, initial=0.0, where=known)), floor) for doubt in doubts)
        ratios.append(mine / own if own else None)
        if mine > _WORSE_ESTIMATED * own + ulp[k]:
            too_coarse.append(name)
    if too_coarse:
        return Verdict("fail", f"enlarged roundings take it far further than autodiff in {listed(too_coarse)}"), ratios
    return Verdict("pass", f"in float64 enlarged roundings take it {_compared(ratios)}"), ratios


def _moved_by(look: Look, moves: Moves) -> list[float]:
    """How far moves take each result of the reference, at most."""
    largest = [0.0] * len(look.evidence.reference)
    for probe in range(2):
        _, moved = look.examiner.pair(look.wide, moves._replace(seed=np.uint32((look.seed + 50 + probe) % 2**32)))
        for i, (x, before) in enumerate(zip(moved, look.evidence.reference, strict=True)):
            largest[i] = max(largest[i], float(np.max(distance(x, before), initial=0.0)))
    return largest


def _as_drawn(look: Look) -> Look:
    """The same with the random numbers of the working dtype: float64 would draw others."""
    question, program = look.question, look.examiner.pair.reference.program
    if not any(eqn.primitive.name in _DRAWS for eqn in equations(program)):
        return look
    with jax.enable_x64(False):
        rules = [trace(rule, look.leaves, look.leaves) for rule in (question.hand, question.reference)]
    pair = pair_of(rules[0], rules[1], question.moved)
    hand, reference = pair(look.wide)
    evidence = look.evidence._replace(hand=hand, reference=reference)
    return look._replace(examiner=look.examiner._replace(pair=pair), evidence=evidence)
