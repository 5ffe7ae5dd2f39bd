"""What rounding does to two rules, measured: first by moving the inputs, and where that leaves a doubt, everything.

When the inputs move by a few float64 roundings, two right rules change alike, but every rounding within them is a new
one: how far the difference of the two moves is their rounding error, and the second difference of one rule,
``f(x + d) - 2 f(x) + f(x - d)``, is its own. That takes no program but the two rules. Where it does not explain a
difference, both rules are compiled once more with every rounding enlarged to a relative ``size`` far above float64's
epsilon: how far the results then move, over ``size``, is how much the program amplifies rounding errors.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from minijaxnet.verify.compilation import EPSILON
from minijaxnet.verify.estimates import typical_sizes
from minijaxnet.verify.evaluation import Arrays, Evaluation, moved_consts, narrow_constants, nearby, outputs
from minijaxnet.verify.perturbation import Perturbation
from minijaxnet.verify.widening import largest

# A rounding error may be so many times the largest seen at a few nearby points; and so many times, of fewer digits.
_SEEN, _SEEN_NARROW = 64, 32
_PAIRS, _MORE_PAIRS = 2, 6
# So small a share of the largest effect on the objective counts as no effect.
_NOTHING = 1e-40
# Of the largest number of all results: what moves by more than this was no rounding, but a kink.
_KINK = 2.0**-30
# Two sizes of enlarged roundings: what is smooth answers in proportion to both, a kink within reach does not.
SIZES = (2.0**-40, 2.0**-24)
_PROBES = 3
# An error may be so many times its estimate from a few runs with enlarged roundings.
_ENLARGED = 1024
# Two results of an iteration to a tolerance of its own may differ by so much of their size.
ITERATED = 1e-6


class Rounding(NamedTuple):
    """What rounding does at a point; a list of arrays each, one for each result of the rules.

    Attributes:
        apart: how far the difference of the two rules was seen to move.
        hand: the rounding error of the hand rule alone, the largest seen.
        reference: that of autodiff.
        input_ulp: how far one unit in the last place of float64 in all inputs moves autodiff's result.
        narrow: what half a unit in the last place of constants, numbers and callbacks of fewer digits does.
        narrow_kinds: what these are, and the relative size of their last digit.
        unrepeatable: how far the hand rule's results differ when it is called again.
    """

    apart: Arrays
    hand: Arrays
    reference: Arrays
    input_ulp: Arrays
    narrow: Arrays
    narrow_kinds: dict[str, float]
    unrepeatable: Arrays


def measure_rounding(at: Evaluation) -> Rounding:
    """What is seen of rounding at a few points nearby."""
    exact, zeros = (at.hand, at.reference or at.hand), [np.zeros_like(x) for x in at.hand]
    unrepeatable = list(map(distance, outputs(at.compiled, at.wide)[0], at.hand))
    if any(x.any() for x in unrepeatable):
        unrepeatable = _larger(unrepeatable, map(distance, outputs(at.compiled, at.wide)[0], at.hand))
    seen = Rounding(zeros, zeros, zeros, zeros, zeros, {}, unrepeatable)
    seen = _nearby(at, exact, seen, range(_PAIRS))
    if any((distance(h, r) > t).any() for h, r, t in zip(*exact, tolerances(at, seen), strict=True)):
        seen = _nearby(at, exact, seen, range(_PAIRS, _PAIRS + _MORE_PAIRS))
    if kinds := narrow_constants(at.compiled):
        seen = seen._replace(narrow=_by_narrow(at, exact), narrow_kinds=kinds)
    return seen


def tolerances(at: Evaluation, seen: Rounding) -> Arrays:
    """How far apart rounding can bring the two rules, for each element of each result."""
    found, n = [], at.problem.n_values
    vanishing = [*[0.0] * n, *_vanishing(at), *[0.0] * len(at.hand)][: len(at.hand)]
    for hand, reference, apart, narrow, again, least in zip(
        at.hand, at.reference or at.hand, seen.apart, seen.narrow, seen.unrepeatable, vanishing, strict=True
    ):
        size = np.maximum(_finite_size(hand), _finite_size(reference))
        iterated = at.problem.reference is None and at.compiled.iterates
        own = ITERATED * np.max(size, initial=0.0) if iterated else 0.0
        found.append(8 * EPSILON * size + _SEEN * apart + _SEEN_NARROW * narrow + 8 * again + own + least)
    return found


def _vanishing(at: Evaluation) -> list[Any]:
    """How large an element of each gradient counts as nothing: its dtype rounds it to 0, or it has next to no effect.

    Such as the gradient of the start of an iteration that has converged: 1e-40 of the largest effect of any leaf.
    """
    least = [min(float(jnp.finfo(dtype).smallest_subnormal), _NOTHING) for dtype in at.dtypes()]
    if not at.problem.names:  # the results are no gradients
        return least
    both = [rule[at.problem.n_values :] for rule in (at.hand, at.reference or at.hand)]
    sizes = list(map(typical_sizes, at.params()))
    effects = [np.maximum(_finite_size(h), _finite_size(r)) * size for h, r, size in zip(*both, sizes, strict=True)]
    most = max(float(np.max(effect, initial=0.0)) for effect in effects)
    return [np.maximum(few, _NOTHING * most / size) for few, size in zip(least, sizes, strict=True)]


def enlarged_tolerances(at: Evaluation, seen: Rounding) -> Arrays:
    """The same, with the rounding error from programs whose roundings are enlarged."""
    at.tell("enlarging every rounding")
    small, large = (_moved_by(at, Perturbation(size=size)) for size in SIZES)
    errors = [
        [EPSILON * np.minimum(a / SIZES[0], b / SIZES[1]) for a, b in zip(*rule, strict=True)]
        for rule in zip(small, large, strict=True)
    ]
    if at.compiled.hand.program is None:
        errors[0] = errors[1]
    without = tolerances(at, seen._replace(apart=[np.zeros_like(x) for x in seen.apart]))
    return [_ENLARGED * (a + b) + c for a, b, c in zip(*errors, without, strict=True)]


def enlarged_errors(at: Evaluation, size: float) -> tuple[list[float], list[float]]:
    """How far enlarged roundings take each result of the two rules, at most."""
    hand, reference = _moved_by(at, Perturbation(size=size), seed=50)
    return list(map(largest, hand)), list(map(largest, reference))


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``|a - b|``, 0 where one of them is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a - b)
    return np.where(np.isfinite(apart), apart, 0.0)


def _nearby(at: Evaluation, exact: tuple[Arrays, Arrays], seen: Rounding, pairs: range) -> Rounding:
    """More of what is seen, at points to both sides of this one."""
    scale = max((largest(x) for rule in exact for x in rule), default=0.0)
    difference = _difference(*exact)

    def no_kink(moved: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(moved) & (moved <= _KINK * scale), moved, 0.0)

    for pair in pairs:
        sides = []
        for sign in (1.0, -1.0):
            seed = at.seed + 10 * pair
            consts = [nearby(rule.consts, seed, sign) for rule in (at.compiled.hand, at.compiled.reference)]
            hand, reference = outputs(at.compiled, nearby(at.wide, seed, sign), consts=consts)
            sides.append((hand, reference or hand))
            apart = map(no_kink, map(distance, _difference(*sides[-1]), difference))
            of_inputs = [x / 4 for x in map(distance, sides[-1][1], exact[1])]  # moved by at most 8 epsilon
            seen = seen._replace(apart=_larger(seen.apart, apart), input_ulp=_larger(seen.input_ulp, of_inputs))
        own = []
        for i, middle in enumerate(exact):
            with np.errstate(invalid="ignore", over="ignore"):
                second = [np.abs(a - b + (c - b)) for a, b, c in zip(sides[0][i], middle, sides[1][i], strict=True)]
            own.append([no_kink(x) / 2 for x in second])
        seen = seen._replace(hand=_larger(seen.hand, own[0]), reference=_larger(seen.reference, own[1]))
    return seen


def _by_narrow(at: Evaluation, exact: tuple[Arrays, Arrays]) -> Arrays:
    """How far half a unit in the last place of all values with fewer digits than float64 moves the difference."""
    difference = _difference(*exact)
    most = [np.zeros_like(x) for x in difference]
    for probe in range(_PROBES):
        consts = [moved_consts(rule, at.seed + probe) for rule in (at.compiled.hand, at.compiled.reference)]
        by = Perturbation(narrow=0.5, seed=(at.seed + probe) % 2**32)
        hand, reference = outputs(at.compiled, at.wide, by, consts)
        most = _larger(most, map(distance, _difference(hand, reference or hand), difference))
    return most


def _moved_by(at: Evaluation, by: Perturbation, seed: int = 0) -> tuple[Arrays, Arrays]:
    """How far enlarged roundings move each rule's results, at most."""
    exact = outputs(at.compiled, at.wide, enlarged=True)
    hand, reference = ([np.zeros_like(x) for x in rule] for rule in exact)
    for probe in range(_PROBES):
        by = by._replace(seed=(at.seed + seed + probe) % 2**32)
        moved = outputs(at.compiled, at.wide, by, enlarged=True)
        hand = _larger(hand, map(distance, exact[0], moved[0]))
        reference = _larger(reference, map(distance, exact[1], moved[1]))
    return hand, reference


def _difference(hand: Arrays, reference: Arrays) -> Arrays:
    with np.errstate(invalid="ignore", over="ignore"):
        return [a - b for a, b in zip(hand, reference, strict=True)]


def _larger(a: Arrays, b: Iterable[np.ndarray]) -> Arrays:
    return list(map(np.maximum, a, b))


def _finite_size(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), np.abs(x), 0.0)
