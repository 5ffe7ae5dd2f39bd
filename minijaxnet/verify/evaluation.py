"""A problem at a point: what both rules return there in float64, and at points nearby."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from minijaxnet._jaxpr import equations, is_literal
from minijaxnet.verify.compilation import Compiled, Traced
from minijaxnet.verify.interpreter import computed_narrow
from minijaxnet.verify.numbers import as_given, as_real, widened
from minijaxnet.verify.perturbation import Perturbation, is_inexact, rounded
from minijaxnet.verify.problem import Problem

# Inputs are moved by so much to have all roundings fall out anew.
_NEARBY = 2.0**-50
# Of what is typical of an array that was computed, the part whose rounding may be in any element.
_OF_TERMS = 1 / 8

Outputs = tuple[list[np.ndarray], list[np.ndarray]]


class Evaluation(NamedTuple):
    """A problem at a point: what all verdicts look at.

    Attributes:
        compiled: the problem, compiled.
        leaves: the point.
        wide: the same in float64, on the host; keys and integers as they are.
        hand: what the hand rule returns there in float64, real arrays; a complex number is a pair of them.
        reference: what autodiff returns.
        tolerances: how far apart rounding can bring the two, element by element.
        seed: of whatever is drawn.
        tell: told what is being done.
    """

    compiled: Compiled
    leaves: Sequence[Any]
    wide: list[Any]
    hand: list[np.ndarray]
    reference: list[np.ndarray]
    tolerances: list[np.ndarray]
    seed: int
    tell: Callable[[str], None]

    @property
    def problem(self) -> Problem:
        """The problem."""
        return self.compiled.problem

    def differentiated(self) -> list[np.ndarray]:
        """The arguments that are differentiated, as real arrays in float64."""
        return [as_real(x) for x, moved in zip(self.wide, self.problem.moved, strict=True) if moved]

    def dtypes(self) -> list[Any]:
        """The dtypes that they come in."""
        return [x.dtype for x, moved in zip(self.leaves, self.problem.moved, strict=True) if moved]

    def value(self, differentiated: Sequence[np.ndarray]) -> float:
        """The objective where what is differentiated is this."""
        rest, pairs = iter(differentiated), zip(self.wide, self.problem.moved, strict=True)
        leaves = [as_given(next(rest), x.dtype) if moved else x for x, moved in pairs]
        return float(self.compiled.value(self.compiled.objective.consts, leaves))


def evaluate(compiled: Compiled, leaves: Sequence[Any], seed: int, tell: Callable[[str], None]) -> Evaluation:
    """Carry out both rules at a point; call it where float64 is enabled."""
    wide = [widened(leaf) for leaf in leaves]
    hand, reference = outputs(compiled, wide)
    return Evaluation(compiled, leaves, wide, hand, reference, [np.zeros_like(x) for x in hand], seed, tell)


def outputs(
    compiled: Compiled,
    arguments: Sequence[Any],
    moved: Perturbation | None = None,
    consts: Sequence[Sequence[Any]] | None = None,
    *,
    enlarged: bool = False,
) -> Outputs:
    """What the two rules return in float64: real arrays on the host."""
    hand, reference = compiled.hand, compiled.reference
    consts = (hand.consts, reference.consts) if consts is None else consts
    program = compiled.enlarged() if enlarged else compiled.pair
    results = program(arguments, *consts, (Perturbation() if moved is None else moved).arrays())
    if hand.program is None:
        results = (hand.call(*arguments), results[1])
    return on_host(compiled.problem, results[0]), on_host(compiled.problem, results[1])


def on_host(problem: Problem, results: Sequence[Any]) -> list[np.ndarray]:
    """Results as real arrays; of a complex gradient g, which JAX has as du/dx - i du/dy, the pair (du/dx, du/dy)."""
    found = []
    for i, result in enumerate(results):
        array = np.asarray(result)
        found.append(as_real(np.conj(array) if i >= problem.n_values else array))
    return found


def nearby(values: Sequence[Any], seed: int, sign: float) -> list[Any]:
    """The values, each moved by a few roundings of float64; equal ones alike."""

    def one(value: Any) -> Any:
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            return value
        real = as_real(value)
        draw = np.random.default_rng((seed, zlib.crc32(real.tobytes())))
        step = sign * _NEARBY * draw.choice((-2.0, -1.0, 1.0, 2.0), size=real.shape)
        largest = float(np.max(np.abs(real), initial=0.0)) or 1.0
        moved = np.where(real == 0, step * largest, real * (1 + step))
        return as_given(moved, value.dtype)

    return [one(value) for value in values]


def moved_consts(traced: Traced, seed: int) -> list[Any]:
    """The arrays that a rule closes over, moved by half a unit in the last place of the dtype they came in."""

    def one(value: Any, dtype: Any) -> Any:
        mask, unit, _ = rounded(value, dtype)
        if not mask.any():
            return value
        real = as_real(value)
        mask = np.stack([mask, mask], -1) if np.iscomplexobj(value) else mask
        draw = np.random.default_rng((seed, zlib.crc32(real.tobytes())))
        # What was summed up may be small, and its rounding that of larger terms.
        half = 0.5 * unit * np.maximum(np.abs(real), _OF_TERMS * np.sqrt(np.mean(np.square(real))))
        return as_given(real + np.where(mask, draw.choice((-1.0, 1.0), size=real.shape) * half, 0.0), value.dtype)

    return list(map(one, traced.consts, traced.const_dtypes))


def narrow_constants(compiled: Compiled) -> dict[str, float]:
    """What has fewer digits than float64 in the two rules, in words, and the relative size of the last one.

    Arrays they close over, numbers that stand in them, results of callbacks.
    """
    found: dict[str, float] = {}
    for traced in (compiled.hand, compiled.reference):
        if traced.program is None:
            continue
        atoms = [v for eqn in equations(traced.program) for v in eqn.invars if is_literal(v) and np.ndim(v.val) == 0]
        pairs = [("an array", *pair) for pair in zip(traced.consts, traced.const_dtypes, strict=True)]
        pairs += [("", v.val, v.aval.dtype) for v in atoms if is_inexact(v.aval)]
        for name, value, dtype in pairs:
            lost, unit, how = rounded(value, dtype)
            if lost.any():
                found[f"{name or f'{float(np.real(value)):.15g}'} {how}"] = unit
        for dtype in computed_narrow(traced.program):
            found[f"what a callback returns in {dtype}"] = float(jnp.finfo(dtype).eps)
    return dict(sorted(found.items()))
