"""A problem at a point: what both rules return there in float64, and at points nearby."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from minijaxnet._jaxpr import equations, is_literal
from minijaxnet.verify.compilation import Compiled, Traced
from minijaxnet.verify.interpreter import computed_narrow
from minijaxnet.verify.perturbation import Perturbation, lost_digits
from minijaxnet.verify.problem import Problem
from minijaxnet.verify.widening import as_real, from_real, is_inexact, widened

# The relative move of the inputs that makes all roundings fall out anew.
_NEARBY = 2.0**-50
# A rounding of an array that was computed may be that of a term of a sum: this share of a typical element, at least.
_OF_TERMS = 1 / 8

Arrays = list[np.ndarray]
Progress = Callable[[str], None]


class Evaluation(NamedTuple):
    """A problem at a point: what all verdicts look at.

    Attributes:
        compiled: the problem, compiled.
        leaves: the point.
        wide: the same in float64, on the host; keys and integers as they are.
        hand: what the hand rule returns there in float64, real arrays; a complex number is a pair of them.
        reference: what autodiff returns.
        tolerances: how far apart rounding can bring the two, element by element.
        seed: of random directions and signs.
        tell: called with what is being done.
    """

    compiled: Compiled
    leaves: Sequence[Any]
    wide: list[Any]
    hand: Arrays
    reference: Arrays
    tolerances: Arrays
    seed: int
    tell: Progress

    @property
    def problem(self) -> Problem:
        """The problem."""
        return self.compiled.problem

    @property
    def names(self) -> list[str]:
        """The names of the results."""
        return [*["the value"] * self.problem.n_values, *self.problem.names]

    def params(self) -> Arrays:
        """The differentiated arguments, as real arrays in float64."""
        return list(map(as_real, self.wide[: self.problem.n_params]))

    def dtypes(self) -> list[Any]:
        """The dtypes that they come in."""
        return [x.dtype for x in self.leaves[: self.problem.n_params]]

    def value(self, params: Sequence[np.ndarray]) -> float:
        """The objective at other values of the differentiated arguments."""
        given = [from_real(x, like.dtype) for x, like in zip(params, self.wide, strict=False)]
        return float(self.compiled.value(self.compiled.objective.consts, [*given, *self.wide[len(given) :]]))


def evaluate(compiled: Compiled, leaves: Sequence[Any], seed: int, tell: Progress) -> Evaluation:
    """Run both rules at a point; call it where float64 is enabled."""
    wide = [widened(leaf) for leaf in leaves]
    hand, reference = outputs(compiled, wide)
    return Evaluation(compiled, leaves, wide, hand, reference, [np.zeros_like(x) for x in hand], seed, tell)


def outputs(
    compiled: Compiled,
    arguments: Sequence[Any],
    by: Perturbation = Perturbation(),  # noqa: B008
    consts: Sequence[Sequence[Any]] | None = None,
    *,
    enlarged: bool = False,
) -> tuple[Arrays, Arrays]:
    """What the two rules return in float64: real arrays on the host."""
    hand, reference = compiled.hand, compiled.reference
    program = compiled.enlarged() if enlarged else compiled.pair
    results = program(arguments, *(consts or (hand.consts, reference.consts)), by.arrays())
    by_hand = hand.call(*arguments) if hand.program is None else results[0]
    return on_host(by_hand, compiled.problem.n_values), on_host(results[1], compiled.problem.n_values)


def on_host(results: Sequence[Any], n_values: int) -> Arrays:
    """Results as real arrays; of a complex gradient g, which JAX has as du/dx - i du/dy, the pair (du/dx, du/dy)."""
    arrays = list(map(np.asarray, results))
    return [as_real(np.conj(array) if i >= n_values else array) for i, array in enumerate(arrays)]


def nearby(values: Sequence[Any], seed: int, sign: float) -> list[Any]:
    """The values, each moved by a few roundings of float64; equal ones alike."""

    def moved(value: Any) -> Any:
        if not is_inexact(value):
            return value
        real = as_real(value)
        draw = np.random.default_rng((seed, zlib.crc32(real.tobytes())))
        step = sign * _NEARBY * draw.choice((-2.0, -1.0, 1.0, 2.0), size=real.shape)
        most = float(np.max(np.abs(real), initial=0.0)) or 1.0
        return from_real(np.where(real == 0, step * most, real * (1 + step)), value.dtype)

    return list(map(moved, values))


def moved_consts(traced: Traced, seed: int) -> list[Any]:
    """The arrays that a rule closes over, moved by half a unit in the last place of the dtype they came in."""

    def moved(value: Any, dtype: Any) -> Any:
        mask, unit, _ = lost_digits(value, dtype)
        if not mask.any():
            return value
        real = as_real(value)
        mask = np.stack([mask, mask], -1) if np.iscomplexobj(value) else mask
        draw = np.random.default_rng((seed, zlib.crc32(real.tobytes())))
        half = 0.5 * unit * np.maximum(np.abs(real), _OF_TERMS * np.sqrt(np.mean(np.square(real))))
        return from_real(real + np.where(mask, draw.choice((-1.0, 1.0), size=real.shape) * half, 0.0), value.dtype)

    return list(map(moved, traced.consts, traced.const_dtypes))


def narrow_constants(compiled: Compiled) -> dict[str, float]:
    """The values in the two rules with fewer digits than float64, in words, and the relative size of the last digit.

    They are arrays that the rules close over, numbers in the programs, and results of callbacks.
    """
    found: dict[str, float] = {}
    for traced in (compiled.hand, compiled.reference):
        if traced.program is None:
            continue
        atoms = [v for eqn in equations(traced.program) for v in eqn.invars if is_literal(v) and np.ndim(v.val) == 0]
        values = [("an array", *pair) for pair in zip(traced.consts, traced.const_dtypes, strict=True)]
        values += [("", v.val, v.aval.dtype) for v in atoms if is_inexact(v.aval)]
        for name, value, dtype in values:
            lost = lost_digits(value, dtype)
            if lost.mask.any():
                found[f"{name or f'{float(np.real(value)):.15g}'} {lost.how}"] = lost.unit
        for dtype in computed_narrow(traced.program):
            found[f"what a callback returns in {dtype}"] = float(jnp.finfo(dtype).eps)
    return dict(sorted(found.items()))
