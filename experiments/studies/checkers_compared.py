"""Gradient checkers compared on right and wrong rules: false alarms, misses and seconds of ours, JAX's and chex's.

    python experiments/studies/checkers_compared.py --sample 10 --names

The rules are those by which the tests judge ours (``tests/corpora``). Each checker has its own tolerances.
"""

import argparse
import importlib
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

import minijaxnet as mjn
from minijaxnet._tables import text_table

CORPUS = Path(__file__).parents[2] / "tests"

Checker = Callable[[Any, Any], bool]


class Found(NamedTuple):
    """What a checker made of the corpus in one dtype; names of cases.

    Attributes:
        alarms: right rules that it did not pass.
        misses: wrong rules that it passed.
        apart: pairs of a wrong rule and its right twin of which it passed only the right one.
        pairs: how many pairs there are.
        seconds: for all cases.
    """

    alarms: list[str]
    misses: list[str]
    apart: int
    pairs: int
    seconds: float


def corpus() -> Any:
    """The corpus that the tests judge the checker by."""
    sys.path.insert(0, str(CORPUS))
    return importlib.import_module("corpora")


# --- Hand rules as the other checkers take them: one function, and the floats to differentiate it by -----------------


def with_rule(case: Any, args: tuple[Any, ...]) -> tuple[Callable[[list[Any]], Any], list[Any]]:
    """A function of floating leaves whose derivative is the rule's, and those leaves.

    A gradient by hand becomes the rule of its loss; what it is not the gradient of is held fixed.
    """
    if hasattr(case, "gradient"):
        leaves, tree = jax.tree.flatten(args[case.argnums])

        def filled(leaves: Sequence[Any]) -> tuple[Any, ...]:
            return (*args[: case.argnums], jax.tree.unflatten(tree, leaves), *args[case.argnums + 1 :])

        def plain(leaves: Sequence[Any]) -> Any:
            value = case.loss(*filled(leaves))
            return value[0] if case.has_aux else value

        def forward(leaves: Sequence[Any]) -> tuple[Any, Any]:
            if not case.has_value:
                return plain(leaves), leaves
            value = case.gradient(*filled(leaves))[0]
            return (value[0] if isinstance(value, tuple) else value), leaves

        def backward(leaves: Any, cotangent: Any) -> tuple[list[Any]]:
            returned = case.gradient(*filled(leaves))
            slopes, found = jax.tree.flatten(returned[1] if case.has_value else returned)
            if found != tree:
                raise TypeError(f"gradient: got {found}; expected {tree}")
            return ([cotangent.astype(jnp.result_type(slope)) * slope for slope in slopes],)

        function = jax.custom_vjp(plain)
        function.defvjp(forward, backward)
        return function, leaves

    leaves, tree = jax.tree.flatten(args)
    moved = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def call(floats: Sequence[Any]) -> list[Any]:
        everything = list(leaves)
        for i, leaf in zip(moved, floats, strict=True):
            everything[i] = leaf
        results = jax.tree.leaves(case.fun(*jax.tree.unflatten(tree, everything)))
        return [x for x in results if jnp.issubdtype(jnp.result_type(x), jnp.floating)]

    return call, [leaves[i] for i in moved]


def modes_of(function: Callable[..., Any], leaves: list[Any]) -> tuple[str, ...]:
    """Forward mode, too, where no ``custom_vjp`` stands in its way."""
    return ("rev",) if "custom_vjp" in str(jax.make_jaxpr(function)(leaves)) else ("fwd", "rev")


# --- The checkers: (case, args) -> whether it passes ------------------------------------------------------------------


def ours(case: Any, args: tuple[Any, ...]) -> bool:
    """``check_grad`` or ``check_vjp``."""
    if not hasattr(case, "gradient"):
        return mjn.check_vjp(case.fun, args, reference=case.reference, order=case.order).ok
    options = {"argnums": case.argnums, "has_aux": case.has_aux, "has_value": case.has_value, "order": case.order}
    return mjn.check_grad(case.loss, case.gradient, args, **options).ok


def by_jax(case: Any, args: tuple[Any, ...]) -> bool:
    """``jax.test_util.check_grads`` with its own steps and tolerances, by the modes that the rule has."""
    function, leaves = with_rule(case, args)
    check_grads(function, (leaves,), order=1, modes=modes_of(function, leaves))
    return True


def by_chex(case: Any, args: tuple[Any, ...]) -> bool:
    """``chex.assert_numerical_grads`` with its own tolerances, by the same modes; of several outputs a weighted sum."""
    function, leaves = with_rule(case, args)

    def scalar(*leaves: Any) -> Any:
        draw = np.random.default_rng(0)
        results = jax.tree.leaves(function(list(leaves)))
        return sum(jnp.sum(x * jnp.asarray(draw.normal(size=x.shape) if x.ndim else 1, x.dtype)) for x in results)

    chex.assert_numerical_grads(scalar, leaves, order=1, modes=modes_of(function, leaves))
    return True


CHECKERS: dict[str, Checker] = {
    "minijaxnet": ours,
    "jax.test_util.check_grads": by_jax,
    "chex.assert_numerical_grads": by_chex,
}


def passes(checker: Checker, case: Any, dtype: str) -> bool:
    """Whether a checker passes a case; one that raises does not."""
    if getattr(case, "clears", False):
        jax.clear_caches()
    with jax.enable_x64(dtype == "float64"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return checker(case, case.args(jnp.dtype(dtype)))
        except Exception:
            return False


def twin_of(case: Any) -> tuple[Any, Any]:
    """What a right rule and a wrong one have in common: the function, and where it is looked at."""
    return (case.loss if hasattr(case, "gradient") else case.plain, case.args)


def judged(checker: Checker, right: Sequence[Any], wrong: Sequence[Any], dtype: str) -> Found:
    """What a checker makes of right and wrong rules in a dtype."""
    start = time.perf_counter()
    right = [case for case in right if dtype in case.dtypes]
    wrong = [case for case in wrong if dtype in case.dtypes and dtype in case.slip.dtypes]
    acquitted = [passes(checker, case, dtype) for case in right]
    missed = [passes(checker, case, dtype) for case in wrong]
    twins = {twin_of(case): good for case, good in zip(right, acquitted, strict=True)}
    pairs = [(twins[twin_of(case)], bad) for case, bad in zip(wrong, missed, strict=True) if twin_of(case) in twins]
    return Found(
        [case.name for case, good in zip(right, acquitted, strict=True) if not good],
        [case.name for case, bad in zip(wrong, missed, strict=True) if bad],
        sum(good and not bad for good, bad in pairs),
        len(pairs),
        time.perf_counter() - start,
    )


def sampled(cases: Sequence[Any], count: int, draw: np.random.Generator) -> list[Any]:
    """So many of the cases at most, in their order."""
    return [cases[i] for i in sorted(draw.permutation(len(cases))[:count])]


def main() -> None:
    """Print a table for each dtype."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, metavar="N", help="take N right rules and N wrong ones; all, if left out")
    parser.add_argument("--names", action="store_true", help="print the names of false alarms and misses")
    options = parser.parse_args()
    rules, draw = corpus(), np.random.default_rng(0)
    count = options.sample or len(rules.WRONG)
    wrong = sampled(rules.WRONG, count, draw)
    # With a sample, the twins of the wrong rules first: pairs show most.
    twins = {twin_of(case) for case in wrong}
    right = sorted(sampled(rules.RIGHT, len(rules.RIGHT), draw), key=lambda case: twin_of(case) not in twins)[:count]
    print(f"{len(right)} right rules, {len(wrong)} wrong ones\n")
    for dtype in rules.DTYPES:
        rows, names = [], []
        for name, checker in CHECKERS.items():
            found = judged(checker, right, wrong, dtype)
            apart = f"{found.apart} of {found.pairs}"
            rows.append((name, len(found.alarms), len(found.misses), apart, f"{found.seconds:.0f}"))
            names += [f"  {name}, false alarm: {case}" for case in found.alarms]
            names += [f"  {name}, miss: {case}" for case in found.misses]
            jax.clear_caches()
        print(text_table((dtype, "false alarms", "misses", "pairs told apart", "seconds"), rows) + "\n", flush=True)
        if options.names:
            print("\n".join(names) + "\n", flush=True)


if __name__ == "__main__":
    main()
