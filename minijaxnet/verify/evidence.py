"""Two functions that should be one, side by side in float64: how far apart they are, and what rounding allows."""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.verify.arguments import UNTRACEABLE
from minijaxnet.verify.interpret import Moves, equations, interpret, move, narrow_literals

EPSILON = float(np.finfo(np.float64).eps)
# Two sizes of moves: what is smooth answers in proportion to both, a kink within reach of rounding does not.
SIZES = (2.0**-40, 2.0**-24)
_PROBES = 3
# How many times its estimate a rounding error may be: the estimate is a random walk's, from a few walks.
ROUNDINGS = 1024
# Off a kink to either side, at random, and with the first or the last of several equals on top.
_CONVENTIONS = (
    Moves(random=0.0, shift=1.0),
    Moves(random=0.0, shift=-1.0),
    Moves(random=0.0, ramp=1.0),
    Moves(random=0.0, ramp=-1.0),
    Moves(random=0.0, turn=1.0),
    Moves(random=0.0, turn=-1.0),
    *(Moves(seed=np.uint32(100 + i)) for i in range(6)),
)
_LIFTS = (1e-150, 1e-100)
# So many times smaller, moves do as much to what stands on a kink, and as many times less to what is smooth.
_NEARER = 64


class Rule(NamedTuple):
    """A function of flat arguments, ready to be carried out in float64.

    Attributes:
        program: its jaxpr; None where it can't be traced.
        consts: the arrays that it closes over.
        call: the function itself, ``call(*arguments) -> results``.
        note: what keeps it from being float64 throughout; "" if nothing.
    """

    program: Any
    consts: Sequence[Any]
    call: Callable[..., Sequence[Any]]
    note: str = ""


class Evidence(NamedTuple):
    """What two rules returned in float64; a list of arrays each, one a result.

    Attributes:
        hand: by hand.
        reference: by autodiff.
        hand_doubt: the rounding error to be expected in ``hand``, element by element.
        reference_doubt: the same of ``reference``.
    """

    hand: list[np.ndarray]
    reference: list[np.ndarray]
    hand_doubt: list[np.ndarray]
    reference_doubt: list[np.ndarray]

    def tolerance(self, i: int) -> np.ndarray:
        """How far apart rounding can bring the two, for each element of a result."""
        largest = np.maximum(_finite_size(self.hand[i]), _finite_size(self.reference[i]))
        return ROUNDINGS * (self.hand_doubt[i] + self.reference_doubt[i]) + 8 * EPSILON * largest


class Pair(NamedTuple):
    """A hand rule and its reference, in float64, to be carried out at will.

    Attributes:
        hand: by hand.
        reference: by autodiff.
        program: both in one, ``program(arguments, hand_consts, reference_consts, moves)``; jitted, or compiled.
    """

    hand: Rule
    reference: Rule
    program: Any

    def lower(self, arguments: Sequence[Any]) -> Any:
        """The program for arguments like these, lowered."""
        return self.program.lower(arguments, self.hand.consts, self.reference.consts, _as_arrays(Moves()))

    def __call__(
        self, arguments: Sequence[Any], moves: Moves | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What the two return, on the host."""
        moves = _as_arrays(Moves() if moves is None else moves)
        results = self.program(arguments, self.hand.consts, self.reference.consts, moves)
        hand, reference = (list(map(to_host, result)) for result in results)
        if self.hand.program is None:
            hand = list(map(to_host, self.hand.call(*arguments)))
        return hand, reference


def pair_of(hand: Rule, reference: Rule, moved: Sequence[bool]) -> Pair:
    """Two rules to be carried out together; of their flat arguments, those ``moved`` are what is differentiated."""

    def both(arguments: Any, hand_consts: Any, reference_consts: Any, moves: Moves) -> Any:
        start = moves._replace(size=moves.size * moves.inputs, lift=moves.lift * moves.inputs, seed=moves.seed + 77)
        arguments = [
            move(argument, start, i) if mine else argument
            for i, (argument, mine) in enumerate(zip(arguments, moved, strict=True))
        ]
        results = []
        for rule, consts in ((hand, hand_consts), (reference, reference_consts)):
            results.append([] if rule.program is None else interpret(rule.program, consts, arguments, moves))
            moves = moves._replace(seed=moves.seed + 7919)
        return results

    return Pair(hand, reference, jax.jit(both))


def trace(function: Callable[..., Any], wide: Sequence[Any], working: Sequence[Any]) -> Rule:
    """A function of flat arguments as a rule; call it where float64 is enabled.

    Args:
        function: ``function(*arguments) -> results``, both flat.
        wide: the arguments in float64.
        working: the arguments as they came, for a function that refuses float64.
    """
    try:
        closed, note = jax.make_jaxpr(function)(*wide), ""
    except UNTRACEABLE:
        return Rule(None, (), function, "it can't be traced: it was called as it is")
    except Exception as error:
        with jax.enable_x64(False):
            try:
                closed = jax.make_jaxpr(function)(*working)
            except Exception:
                raise error from None
        note = f"it fails in float64 ({in_short(error)}): its numbers have fewer digits"
    if not note and (place := _narrowest_place(closed)):
        note = place
    return Rule(getattr(closed, "jaxpr", closed), closed.consts, function, note)


def gather(pair: Pair, arguments: Sequence[Any], seed: int) -> Evidence:
    """Carry out a pair as it is, and with its roundings made larger, to see what they amount to."""
    exact = pair(arguments)

    def moved_by(moves: Moves) -> list[list[np.ndarray]]:
        """How far each rule's results move, at most."""
        largest = [[np.zeros_like(x) for x in results] for results in exact]
        for probe in range(_PROBES):
            moved = pair(arguments, moves._replace(seed=np.uint32((seed + probe) % 2**32)))
            for i, results in enumerate(moved):
                apart = map(distance, exact[i], results)
                largest[i] = [np.maximum(x, y) for x, y in zip(largest[i], apart, strict=True)]
        return largest

    small, large = (moved_by(Moves(size=size)) for size in SIZES)
    doubts = [
        [EPSILON * np.minimum(a / SIZES[0], b / SIZES[1]) for a, b in zip(*rule, strict=True)]
        for rule in zip(small, large, strict=True)
    ]
    if any(rule.program is not None and narrow_literals(rule.program) for rule in (pair.hand, pair.reference)):
        # Numbers in the program that were rounded to a narrow dtype: what their last digit does, some times over.
        by_literals = moved_by(Moves(literals=1.0))
        doubts = [
            [np.maximum(doubt, 8 / ROUNDINGS * moved) for doubt, moved in zip(*rule, strict=True)]
            for rule in zip(doubts, by_literals, strict=True)
        ]
    hand_doubt, reference_doubt = doubts
    return Evidence(*exact, reference_doubt if pair.hand.program is None else hand_doubt, reference_doubt)


def conventions(pair: Pair, arguments: Sequence[Any], evidence: Evidence) -> list[tuple[np.ndarray, np.ndarray]]:
    """The least and the largest value of each element of the reference, just off the kinks that it may stand on.

    Only what does not depend on how far off: the slopes to both sides of a kink, not a formula that breaks down, and
    not what the moves themselves do to a smooth function, which is large where most of a sum cancels.
    """

    def extremes(size: float, lift: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
        low = high = evidence.reference
        for inputs, way in itertools.product((0.0, 1.0), _CONVENTIONS):
            _, off = pair(arguments, way._replace(size=size, lift=lift, inputs=inputs))
            off = [np.where(np.isfinite(x), x, there) for x, there in zip(off, evidence.reference, strict=True)]
            low, high = list(map(np.minimum, low, off)), list(map(np.maximum, high, off))
        return low, high

    (low, high), (other_low, other_high) = (extremes(SIZES[0], lift) for lift in _LIFTS)
    near_low, near_high = extremes(SIZES[0] / _NEARER, _LIFTS[0])
    bounds = []
    for i, there in enumerate(evidence.reference):
        slack = evidence.tolerance(i) + 1e-6 * (np.abs(low[i]) + np.abs(high[i]))
        steady = np.isfinite(there) & np.isfinite(slack)
        steady &= (distance(low[i], other_low[i]) <= slack) & (distance(high[i], other_high[i]) <= slack)
        # Random moves need not find the same corner of several kinks again: halfway between the two, in magnitude.
        steady &= distance(high[i], low[i]) <= math.sqrt(_NEARER) * distance(near_high[i], near_low[i])
        bounds.append((np.where(steady, low[i], there), np.where(steady, high[i], there)))
    return bounds


def compile_together(lowered: Sequence[Any]) -> list[Any]:
    """Compiled programs, made side by side on the cores there are."""
    wide = jnp.result_type(float) == jnp.float64  # each thread has its own, and a custom_partitioning traces in it

    def compiled(program: Any) -> Any:
        with jax.enable_x64(wide):
            return program.compile()

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(compiled, lowered))


def to_host(array: Any) -> np.ndarray:
    """As float64 on the host: float64 arrays do not survive leaving the x64 context."""
    return np.asarray(array).astype(np.float64)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``|a - b|``, 0 where one of them is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a - b)
    return np.where(np.isfinite(apart), apart, 0.0)


def _finite_size(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), np.abs(x), 0.0)


def _as_arrays(moves: Moves) -> Moves:
    return Moves(*(np.asarray(x, np.uint32 if name == "seed" else np.float64) for name, x in moves._asdict().items()))


def in_short(error: Exception) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(str(error).split())[:150] or type(error).__name__


def _narrowest_place(closed: Any) -> str:
    """Where a program that was given float64 makes fewer digits of it; "" if nowhere."""
    for eqn in equations(closed):
        for before, after in zip(eqn.invars, eqn.outvars, strict=False):
            wide, narrow = getattr(before.aval, "dtype", None), getattr(after.aval, "dtype", None)
            if eqn.primitive.name == "convert_element_type" and wide == jnp.float64 and narrow is not None:
                if jnp.issubdtype(narrow, jnp.floating) and narrow != jnp.float64:
                    return f"it casts to {narrow}, which was taken for float64"
    return ""
