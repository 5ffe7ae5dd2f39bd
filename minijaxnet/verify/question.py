"""What is asked of a hand-derived gradient, made ready to be answered at one point after another."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.pytrees import is_keys
from minijaxnet.verify.evidence import Evidence, Pair, Rule, compile_together, gather, in_short, pair_of, to_host, trace
from minijaxnet.verify.flat import Flat
from minijaxnet.verify.interpret import equations, interpret
from minijaxnet.verify.oracle import Estimate, derivative

# How far finite differences reach, in proportion to the arguments: less where kinks are in the way.
REACHES = (1.0, 2.0**-10, 2.0**-18)


class Question(NamedTuple):
    """What is to be judged, all of it on flat arguments.

    Attributes:
        hand: ``hand(*leaves) -> [*values, *gradients]``.
        reference: the same by autodiff of the plain function.
        objective: ``objective(*leaves)``, the scalar whose gradient it is.
        paths: the names of the arguments.
        moved: which of them are differentiated; there is a gradient for each.
        names: the names of the gradients.
        n_values: how many values come before the gradients.
        cotangents: where among the leaves the cotangents are; none for a plain gradient.
        forward: the same pair of rules for forward mode, where there is one.
        curved: the same pair of rules for the derivative of the gradient, where it is asked for.
    """

    hand: Flat
    reference: Flat
    objective: Callable[..., Any]
    paths: list[str]
    moved: list[bool]
    names: list[str]
    n_values: int
    cotangents: list[int]
    forward: tuple[Flat, Flat] | None = None
    curved: tuple[Flat, Flat] | None = None


class Examiner(NamedTuple):
    """A question compiled for arguments of certain shapes and dtypes.

    Attributes:
        question: the question.
        pair: both rules in float64.
        objective: the scalar as a rule in float64, and its program.
        in_working: both rules in the dtype one works in; None where that is float64, or the rule can't be traced.
        why_not_in_working: why there is none.
        stacked: the hand rule under vmap, in float64; or why there is none.
    """

    question: Question
    pair: Pair
    objective: tuple[Rule, Any]
    in_working: Any
    why_not_in_working: str
    stacked: Any


class Look(NamedTuple):
    """A question at a point: what all verdicts look at.

    Attributes:
        examiner: the question compiled.
        leaves: the point.
        wide: the same in float64, on the host; keys and integers as they are.
        evidence: what the two rules return there.
        seed: of whatever is drawn.
    """

    examiner: Examiner
    leaves: Sequence[Any]
    wide: list[Any]
    evidence: Evidence
    seed: int

    @property
    def question(self) -> Question:
        """The question."""
        return self.examiner.question

    def differentiated(self) -> list[np.ndarray]:
        """The arguments that are differentiated, in float64."""
        return [x for x, moved in zip(self.wide, self.question.moved, strict=True) if moved]

    def dtypes(self) -> list[Any]:
        """The dtypes that they come in."""
        return [x.dtype for x, moved in zip(self.leaves, self.question.moved, strict=True) if moved]

    def value(self, differentiated: Sequence[np.ndarray]) -> float:
        """The objective where what is differentiated is this."""
        rule, program = self.examiner.objective
        rest = iter(differentiated)
        leaves = [next(rest) if moved else x for x, moved in zip(self.wide, self.question.moved, strict=True)]
        return float(program(rule.consts, leaves))

    def slope(self, direction: Sequence[np.ndarray], reach: float) -> Estimate:
        """The derivative of the objective in a direction, by differences of steps up to ``reach`` times as long."""
        start = self.differentiated()

        def at(step: float) -> float:
            return self.value([x + reach * step * way for x, way in zip(start, direction, strict=True)])

        estimate = derivative(at)
        return Estimate(estimate.value / reach, estimate.error / reach)

    def slope_of(self, leaf: int, way: np.ndarray, reach: float = 1.0) -> Estimate:
        """The same, where only one leaf moves."""
        direction = [np.zeros_like(x) for x in self.differentiated()]
        direction[leaf] = way
        return self.slope(direction, reach)


def prepare(question: Question, leaves: Sequence[Any]) -> Examiner:
    """Trace and compile a question for arguments like these."""
    with jax.enable_x64(True), jax.disable_jit(False):
        wide = [widened(leaf) for leaf in leaves]
        pair = pair_of(trace(question.hand, wide, leaves), trace(question.reference, wide, leaves), question.moved)
        rule = trace(lambda *leaves: [question.objective(*leaves)], wide, leaves)
        objective = jax.jit(lambda consts, leaves: interpret(rule.program, consts, leaves)[0])
        lowered = {"pair": pair.lower(wide), "objective": objective.lower(rule.consts, wide)}
        why_not_stacked = pair.hand.note
        if pair.hand.program is not None:
            try:
                axes = mapped_axes(pair.hand, wide)
                lowered["stacked"] = jax.jit(jax.vmap(question.hand, axes)).lower(*stacked(wide, wide, axes))
            except Exception as error:
                why_not_stacked = f"under vmap: {in_short(error)}"
    why_not_in_working = pair.hand.note
    precise = all(x.dtype == np.float64 for x, moved in zip(leaves, question.moved, strict=True) if moved)
    if pair.hand.program is not None and not precise:
        in_working = jax.jit(lambda *leaves: (question.hand(*leaves), question.reference(*leaves)))
        try:
            with jax.disable_jit(False):
                lowered["working"] = in_working.lower(*leaves)
        except NotImplementedError as error:  # a factorisation in bfloat16
            why_not_in_working = f"JAX refuses: {in_short(error)}"
    compiled = dict(zip(lowered, compile_together(list(lowered.values())), strict=True))
    return Examiner(
        question,
        pair._replace(program=compiled["pair"]),
        (rule, compiled["objective"]),
        compiled.get("working"),
        why_not_in_working,
        compiled.get("stacked", why_not_stacked),
    )


def look_at(examiner: Examiner, leaves: Sequence[Any], seed: int) -> Look:
    """Carry out both rules at a point; call it where float64 is enabled."""
    wide = [widened(leaf) for leaf in leaves]
    return Look(examiner, leaves, wide, gather(examiner.pair, wide, seed), seed)


def widened(leaf: Any) -> Any:
    """A floating leaf in float64 on the host, any other as it is; none of them on more than one device."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return to_host(leaf)
    if not is_spread(leaf):
        return leaf
    if is_keys(leaf):
        return jax.random.wrap_key_data(
            jnp.asarray(np.asarray(jax.random.key_data(leaf))), impl=jax.random.key_impl(leaf)
        )
    return np.asarray(leaf)


def is_spread(leaf: Any) -> bool:
    """Whether an array is on more devices than one."""
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


def mapped_axes(rule: Rule, leaves: Sequence[Any]) -> list[int | None]:
    """What of a batch of points to ``vmap`` over: all of it, but no keys of a generator that draws otherwise there.

    Such a key may come in as integers, too, or be made of some.

    Source: https://github.com/jax-ml/jax/pull/20094.
    """
    repeatable = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")).dtype
    dtypes = {getattr(atom.aval, "dtype", None) for eqn in equations(rule.program) for atom in eqn.invars}
    others = {dtype for dtype in dtypes if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)}
    everything = others <= {repeatable}
    return [0 if everything or jnp.issubdtype(leaf.dtype, jnp.floating) else None for leaf in leaves]


def stacked(first: Sequence[Any], second: Sequence[Any], axes: Sequence[int | None]) -> list[Any]:
    """Two points as one batch; the second one's share of what is not mapped over is left out."""

    def pair(a: Any, b: Any, axis: int | None) -> Any:
        if axis is None:
            return a
        return np.stack((a, b)) if isinstance(a, np.ndarray) else jnp.stack((a, b))

    return [pair(*each) for each in zip(first, second, axes, strict=True)]
