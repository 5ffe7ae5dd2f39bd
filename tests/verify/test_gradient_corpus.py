"""The gradient corpus is what it says: its right rules are right, its wrong ones wrong where they say.

Checked here without the checker that the corpus is for: in float64 against ``jax.grad`` of the plain function, element
by element; at a kink against one-sided differences; where autodiff fails, against numbers worked out by hand.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpora import AUTODIFF_SUSPECT, DTYPES, KINDS, RIGHT, SUBJECTS, SURROGATES, WRONG, VjpCase

from minijaxnet.verify.compilation import quick_options

# For what changes with the corpus only.
pytestmark = pytest.mark.slow

# Rounding in float64, relative to the largest element of a leaf; and the least that a slip must stand out.
SAME, STANDS_OUT = 1e-12, 1e-10


def is_float(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def pull_back(fun, args, seed=0, scale=1.0):
    """The gradient of ``<cotangent, fun(args)>``, at random; and what ``fun`` returns when differentiated."""
    leaves, tree = jax.tree.flatten(args)
    floats = {str(i): leaf for i, leaf in enumerate(leaves) if is_float(leaf)}

    def weighted(floats):
        out = fun(*jax.tree.unflatten(tree, [floats.get(str(i), leaf) for i, leaf in enumerate(leaves)]))
        draw = np.random.default_rng([seed, 1])  # not the numbers that the arguments were drawn as
        parts = [leaf for leaf in jax.tree.leaves(out) if is_float(leaf)]
        cotangents = [jnp.asarray(scale * draw.normal(size=leaf.shape), leaf.dtype) for leaf in parts]
        return sum(jnp.sum(c * part) for c, part in zip(cotangents, parts, strict=True)), out

    gradient, out = jax.grad(weighted, has_aux=True)(floats)
    return jax.tree.unflatten(tree, [gradient.get(str(i)) for i in range(len(leaves))]), out


def both(case, args, **options):
    """By the rule and by autodiff of the plain function, each (gradient, value); the value may be None."""
    if isinstance(case, VjpCase):
        return pull_back(case.fun, args, **options), pull_back(case.plain, args, **options)
    hand = case.gradient(*args)
    value, gradient = jax.value_and_grad(case.loss, argnums=case.argnums, has_aux=case.has_aux)(*args)
    value = value[0] if case.has_aux else value
    return (hand[1], hand[0]) if case.has_value else (hand, None), (gradient, value)


def quickly(run):
    """Run once on small arguments: time saved in compilation is worth more than the fastest program."""
    return jax.jit(run, compiler_options=quick_options())


def in_float64(cases, run=both):
    """Each case, its arguments, and what ``run`` makes of it: one program for all but those apart."""
    if any(getattr(case, "clears", False) for case in cases):
        jax.clear_caches()
    wide = lambda x: jnp.asarray(np.asarray(x, np.float64)) if is_float(x) else x  # noqa: E731
    with jax.enable_x64(True):
        args = [jax.tree.map(wide, case.args(jnp.float64)) for case in cases]
        # What can't be traced; and what may call NumPy, which has float32 alone in another thread.
        apart = [not getattr(case, "traceable", True) or getattr(case, "reference", None) for case in cases]
        in_one = [i for i in range(len(cases)) if not apart[i]]
        found = quickly(lambda args: {i: run(cases[i], args[i]) for i in in_one})(args)
        return [(case, args[i], run(case, args[i]) if apart[i] else found[i]) for i, case in enumerate(cases)]


def differing(hand, truth, threshold, rounding=0.0):
    """The leaves, and in them the elements, that differ by more than ``threshold`` times the leaf's largest."""
    hand, truth = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (hand, truth))
    assert hand.keys() == truth.keys()
    found = {}
    for path, right in truth.items():
        mine, right = np.asarray(hand[path], np.float64), np.asarray(right, np.float64)
        assert mine.shape == right.shape, path
        largest = np.max(np.abs(right), initial=0, where=np.isfinite(right))
        with np.errstate(invalid="ignore"):
            same = (mine == right) | (np.abs(mine - right) <= threshold * largest + rounding)
        if not same.all():
            found[jax.tree_util.keystr(path)] = [tuple(map(int, index)) for index in np.argwhere(~same)]
    return found


def test_names_are_unique_and_every_kind_of_slip_is_there():
    for cases in (RIGHT, WRONG, AUTODIFF_SUSPECT, [surrogate.case for surrogate in SURROGATES]):
        assert max(collections.Counter((type(case), case.name) for case in cases).values()) == 1
    assert all(case.slip is None for case in RIGHT + AUTODIFF_SUSPECT)
    assert {case.slip.kind for case in WRONG} == KINDS


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_right_rule_is_autodiff_in_float64(subject):
    for case, _, ((hand, value), (truth, own)) in in_float64([c for c in SUBJECTS[subject].right if not c.kink]):
        assert not differing(hand, truth, SAME, case.rounding), case.name
        assert value is None or not differing(value, own, SAME), case.name


def test_a_rule_at_a_kink_lies_between_the_one_sided_differences():
    step = 2.0**-30
    for case, args, ((hand, _), _) in in_float64([case for case in RIGHT if case.kink]):
        plain, (leaves, tree), seen = getattr(case, "plain", None) or case.loss, jax.tree.flatten(args), 0

        def scalar(leaves, plain=plain, tree=tree):
            out = plain(*jax.tree.unflatten(tree, leaves))
            return jnp.sum(out if out.ndim == 0 else np.random.default_rng([0, 1]).normal(size=out.shape) * out)

        with jax.enable_x64(True):
            run = jax.jit(scalar)
            for number, gradient in enumerate(map(np.asarray, jax.tree.leaves(hand))):
                for index in np.ndindex(gradient.shape):
                    sides = []
                    for sign in (-1, 1):
                        moved = [np.array(leaf) for leaf in leaves]
                        moved[number][index] += sign * step
                        sides.append(sign * float(run(moved) - run(leaves)) / step)
                    seen += abs(sides[0] - sides[1]) > 1e-3
                    assert min(sides) - 1e-5 <= gradient[index] <= max(sides) + 1e-5, (case.name, index)
        assert seen, case.name


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_wrong_rule_is_wrong_where_it_says(subject):
    by_itself = ("structure", "precision", "second order", "primal")
    cases = [case for case in SUBJECTS[subject].wrong if case.slip.kind not in by_itself]
    # What is clipped, or dropped, shows with other cotangents.
    runs = [in_float64(cases, lambda *a, s=s: both(*a, **s) if isinstance(a[0], VjpCase) else both(*a)) for s in SCALES]
    for (case, _, ((hand, _), (truth, _))), *others in zip(*runs, strict=True):
        try:
            found = differing(hand, truth, STANDS_OUT, case.rounding)
        except AssertionError:  # of another shape, as what is transposed or not summed may be
            assert case.slip.kind in ("transposed", "broadcast"), case.name
            continue
        for _, _, ((other_hand, _), (other_truth, _)) in others:
            found |= differing(other_hand, other_truth, STANDS_OUT, case.rounding)
        assert found, f"{case.name}: it is right"
        assert case.slip.leaf is None or set(found) == {case.slip.leaf}, (case.name, found)
        assert case.slip.index is None or found[case.slip.leaf] == [case.slip.index], (case.name, found)


SCALES = [{}, {"seed": 1, "scale": 100.0}, {"seed": 2, "scale": 1e-2}]


def test_a_slip_that_is_not_in_the_gradient_leaves_it_right():
    kinds = ("second order", "primal")
    for case, _, ((hand, value), (truth, own)) in in_float64([case for case in WRONG if case.slip.kind in kinds]):
        assert not differing(hand, truth, SAME), case.name
        assert value is None or bool(differing(value, own, SAME)) == (case.slip.kind == "primal"), case.name


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_autodiff_fails_the_rule_is_right(dtype):
    with jax.enable_x64(dtype == "float64"):
        cases = [case for case in AUTODIFF_SUSPECT if dtype in case.dtypes]
        args = [case.args(jnp.dtype(dtype)) for case in cases]
        found = quickly(lambda args: list(map(both, cases, args)))(args)
        truths = [case.truth(*each) for case, each in zip(cases, args, strict=True)]
    error = 16 * float(jnp.finfo(dtype).eps)
    for case, truth, ((hand, _), (autodiff, _)) in zip(cases, truths, found, strict=True):
        assert differing(autodiff, truth, error), case.name
        assert not differing(hand, truth, error), case.name
