"""The gradient corpus is what it says: its right rules are right, its wrong ones wrong where and as they say.

Judged here without the checker that the corpus is for: in float64 against ``jax.grad`` of the plain function, element
by element; at a kink against the slopes of both sides; where autodiff fails, against numbers worked out by hand.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpora import AUTODIFF_SUSPECT, DTYPES, KINDS, RIGHT, SUBJECTS, SURROGATES, WRONG, VjpCase

from minijaxnet.verify.compilation import quick_options

# For what changes with the corpus only.
pytestmark = pytest.mark.slow


# Rounding in float64, relative to the largest element of a leaf; and the least that a slip must stand out.
SAME = 1e-12
STANDS_OUT = 1e-10


def is_float(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def leaves_of(tree):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf, np.float64) for path, leaf in paths}


def pull(fun, args, seed=0, scale=1.0):
    """The slope of ``<cotangent, fun(args)>``, at random; and what ``fun`` returns when differentiated."""
    leaves, tree = jax.tree.flatten(args)
    floats = {str(i): leaf for i, leaf in enumerate(leaves) if is_float(leaf)}

    def weighed(floats):
        out = fun(*jax.tree.unflatten(tree, [floats.get(str(i), leaf) for i, leaf in enumerate(leaves)]))
        draw = np.random.default_rng([seed, 1])  # not the numbers that the arguments were drawn as
        parts = [leaf for leaf in jax.tree.leaves(out) if is_float(leaf)]
        cotangents = [jnp.asarray(scale * draw.normal(size=leaf.shape), leaf.dtype) for leaf in parts]
        return sum(jnp.sum(c * part) for c, part in zip(cotangents, parts, strict=True)), out

    slope, out = jax.grad(weighed, has_aux=True)(floats)
    return jax.tree.unflatten(tree, [slope.get(str(i)) for i in range(len(leaves))]), out


def both(case, args, seed=0, scale=1.0):
    """(by the rule, by autodiff of the plain function), each (gradient, value); the value may be None."""
    if isinstance(case, VjpCase):
        return pull(case.fun, args, seed, scale), pull(case.plain, args, seed, scale)
    hand = case.gradient(*args)
    value, gradient = jax.value_and_grad(case.loss, argnums=case.argnums, has_aux=case.has_aux)(*args)
    value = value[0] if case.has_aux else value
    return (hand[1], hand[0]) if case.has_value else (hand, None), (gradient, value)


def second(case, args):
    """Both again, differentiated once more in a random direction of every floating argument."""
    leaves, tree = jax.tree.flatten(args)
    draw = np.random.default_rng(7)
    floats = [leaf for leaf in leaves if is_float(leaf)]
    directions = [jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype) for leaf in floats]

    def slopes(side, *floats):
        given = iter(floats)
        full = jax.tree.unflatten(tree, [next(given) if is_float(leaf) else leaf for leaf in leaves])
        return both(case, full)[side][0]

    if not isinstance(case, VjpCase):
        return tuple(jax.jvp(functools.partial(slopes, side), floats, directions)[1] for side in (0, 1))

    def along(side, floats):
        given = iter(directions)
        return sum(jnp.sum(next(given) * leaf) for leaf in jax.tree.leaves(slopes(side, *floats)))

    return tuple(
        jax.tree.unflatten(tree, [next(found) if is_float(leaf) else None for leaf in leaves])
        for side in (0, 1)
        for found in [iter(jax.grad(functools.partial(along, side))(floats))]
    )


def compiled_quickly(fun):
    """Run once on small arguments: time saved in compilation is worth more than the fastest program."""
    return jax.jit(fun, compiler_options=quick_options())


def in_float64(cases, run=both):
    """Each case, its arguments, and what ``run`` makes of it: one program for all but those apart."""
    if any(getattr(case, "clears", False) for case in cases):
        jax.clear_caches()
    with jax.enable_x64(True):
        args = [wide(case.args(jnp.float64)) for case in cases]
        # What can't be traced; and what may call NumPy, which has float32 alone in another thread.
        apart = [not getattr(case, "traceable", True) or getattr(case, "reference", None) for case in cases]
        found = compiled_quickly(lambda args: {i: run(cases[i], args[i]) for i in range(len(cases)) if not apart[i]})(
            args
        )
        return [(case, args[i], run(case, args[i]) if apart[i] else found[i]) for i, case in enumerate(cases)]


def wide(tree):
    """By way of the host, where a conversion need not be compiled."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)) if is_float(leaf) else leaf, tree)


def differing(hand, truth, threshold, rounding=0.0):
    """The leaves, and in them the elements, that differ by more than ``threshold`` times the leaf's largest."""
    hand, truth = leaves_of(hand), leaves_of(truth)
    assert hand.keys() == truth.keys()
    found = {}
    for path, right in truth.items():
        assert hand[path].shape == right.shape, path
        largest = np.max(np.abs(right), initial=0, where=np.isfinite(right))
        with np.errstate(invalid="ignore"):
            same = (hand[path] == right) | (np.abs(hand[path] - right) <= threshold * largest + rounding)
        if not same.all():
            found[path] = [tuple(int(i) for i in index) for index in np.argwhere(~same)]
    return found


def values_differ(hand, truth):
    pairs = zip(leaves_of(hand).values(), leaves_of(truth).values(), strict=True)
    return any(not np.allclose(mine, right, rtol=1e-9, atol=1e-12) for mine, right in pairs)


def is_like(gradient, argument):
    """The same tree, shapes and dtypes. A Python number has no dtype of its own."""

    def same(mine, theirs):
        weak = isinstance(mine, float) or getattr(mine, "weak_type", False)
        return jnp.shape(mine) == jnp.shape(theirs) and (weak or jnp.result_type(mine) == jnp.result_type(theirs))

    if jax.tree.structure(gradient) != jax.tree.structure(argument):
        return False
    return all(map(same, jax.tree.leaves(gradient), jax.tree.leaves(argument)))


def of_like_structure(case, args):
    if isinstance(case, VjpCase):
        gradient = jax.eval_shape(lambda *args: pull(case.fun, args)[0], *args)
        return is_like(gradient, jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, args))
    gradient = jax.eval_shape(case.gradient, *args)
    return is_like(gradient[1] if case.has_value else gradient, args[case.argnums])


def of_kind(*kinds):
    return [case for case in WRONG if case.slip.kind in kinds]


# --- The corpus as a whole --------------------------------------------------------------------------------------------


def test_the_corpus_is_large_its_names_are_unique_and_every_kind_of_slip_is_there():
    assert len(RIGHT) >= 70 and len(WRONG) >= 75
    for cases in (RIGHT, WRONG, AUTODIFF_SUSPECT, [surrogate.case for surrogate in SURROGATES]):
        names = collections.Counter((type(case), case.name) for case in cases)
        assert not [name for name, count in names.items() if count > 1]
    assert all(case.slip is None for case in RIGHT + AUTODIFF_SUSPECT)
    assert {case.slip.kind for case in WRONG} == KINDS


def test_arguments_are_the_same_each_time_and_in_the_dtype_asked_for():
    def data(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    for case in {case.args: case for case in RIGHT + WRONG}.values():
        args, again = (jax.tree.map(data, case.args(jnp.bfloat16)) for _ in range(2))
        assert all(map(np.array_equal, jax.tree.leaves(args), jax.tree.leaves(again)))
        dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(args) if is_float(leaf)}
        assert dtypes in ({"bfloat16"}, {"bfloat16", "float32"}), case.name


# --- Right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_right_rule_is_autodiff_in_float64(subject):
    smooth = [case for case in SUBJECTS[subject].right_ones if not case.kink]
    for case, _, ((hand, value), (truth, own)) in in_float64(smooth):
        assert all(np.isfinite(leaf).all() for leaf in leaves_of(truth).values()), case.name
        assert not differing(hand, truth, SAME, case.rounding), case.name
        assert value is None or not values_differ(value, own), case.name
    for case, _, (again, truth) in in_float64([case for case in smooth if case.order == 2], second):
        assert any(leaf.any() for leaf in leaves_of(truth).values()), case.name
        assert not differing(again, truth, SAME, case.rounding), case.name


def test_a_rule_at_a_kink_lies_between_the_slopes_of_both_sides():
    """Each side's slope by a one-sided difference along every axis; beside the kink the rule is autodiff's."""
    step, kinks = 2.0**-30, [case for case in RIGHT if case.kink]

    def beside(case, args):
        draw = np.random.default_rng(1)
        return both(case, jax.tree.map(lambda x: x + 1e-3 * draw.normal(size=x.shape) if is_float(x) else x, args))

    for case, _, ((hand, _), (truth, _)) in in_float64(kinks, beside):
        assert not differing(hand, truth, SAME), case.name
    for case, args, ((hand, _), _) in in_float64(kinks):
        plain = getattr(case, "plain", None) or case.loss
        leaves, tree = jax.tree.flatten(args)

        def scalar(leaves, plain=plain, tree=tree):
            out = plain(*jax.tree.unflatten(tree, leaves))
            return jnp.sum(out if out.ndim == 0 else np.random.default_rng([0, 1]).normal(size=out.shape) * out)

        with jax.enable_x64(True):
            run, seen = jax.jit(scalar), 0
            for number, slope in enumerate(map(np.asarray, jax.tree.leaves(hand))):
                for index in np.ndindex(slope.shape):
                    sides = []
                    for sign in (-1, 1):
                        moved = [np.array(leaf) for leaf in leaves]
                        moved[number][index] += sign * step
                        sides.append(sign * float(run(moved) - run(leaves)) / step)
                    seen += abs(sides[0] - sides[1]) > 1e-3
                    assert min(sides) - 1e-5 <= slope[index] <= max(sides) + 1e-5, (case.name, index)
            assert seen, case.name


# --- Wrong ------------------------------------------------------------------------------------------------------------

BY_ITSELF = ("structure", "precision", "second order", "primal")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_wrong_rule_is_wrong_where_and_as_it_says(subject):
    cases = [case for case in SUBJECTS[subject].wrong_ones if case.slip.kind not in BY_ITSELF]
    may_not_fit = {"transposed", "broadcast"}
    for case in cases:
        assert of_like_structure(case, case.args(jnp.bfloat16)) or case.slip.kind in may_not_fit, case.name
    fitting = [
        case for case in cases if case.slip.kind not in may_not_fit or of_like_structure(case, case.args(jnp.float32))
    ]
    deaf = [case for case in fitting if case.slip.kind == "cotangent"]
    elsewhere = collections.defaultdict(dict)
    for seed, scale in ((1, 100.0), (2, 1e-2)) if deaf else ():
        for case, _, ((hand, _), (truth, _)) in in_float64(deaf, functools.partial(both, seed=seed, scale=scale)):
            elsewhere[case.name] |= differing(hand, truth, STANDS_OUT)
    for case, args, ((hand, _), (truth, _)) in in_float64(fitting):
        slip, found = case.slip, differing(hand, truth, STANDS_OUT, case.rounding) | elsewhere[case.name]
        assert found, f"{case.name}: it is right"
        assert slip.leaf is not None or len(found) > 1 or slip.kind == "factor", (case.name, found)
        assert slip.leaf is None or set(found) == {slip.leaf}, (case.name, found)
        assert slip.index is None or found[slip.leaf] == [slip.index], (case.name, found)
        if slip.kind == "one-sided":
            x = np.asarray(args[0])
            assert all(x[index] < 0 for indices in found.values() for index in indices), case.name
        hand, truth = leaves_of(hand), leaves_of(truth)
        for path in found:
            check_kind(slip, hand[path], truth[path])


def check_kind(slip, hand, truth):
    """That a slip is of the kind it claims, where the numbers can tell."""
    if slip.factor is not None:
        np.testing.assert_allclose(hand, slip.factor * truth, rtol=1e-9, atol=1e-11 * np.max(np.abs(truth)))
    match slip.kind:
        case "factor" | "relative" | "mean for sum" | "dropout scale":
            assert slip.factor is not None
        case "transposed":
            transposed = truth.T if truth.ndim == 2 else np.swapaxes(truth, 2, 3)
            np.testing.assert_allclose(hand, transposed, rtol=1e-9, atol=1e-12)
        case "nonfinite":
            assert np.isfinite(truth).all() and not np.isfinite(hand).all()
        case "element" | "one-sided" | "domain":
            differs = np.abs(hand - truth) > STANDS_OUT * np.max(np.abs(truth))
            assert 0 < differs.sum() < differs.size
        case _:
            pass


def test_a_slip_of_second_order_shows_only_there():
    cases = of_kind("second order")
    for case, _, ((hand, value), (truth, own)) in in_float64(cases):
        assert not differing(hand, truth, SAME), case.name
        assert value is None or not values_differ(value, own), case.name
    for case, _, (again, truth) in in_float64(cases, second):
        found = differing(again, truth, STANDS_OUT)
        assert found and (case.slip.leaf is None or set(found) == {case.slip.leaf}), (case.name, found)


def test_a_slip_in_the_value_leaves_the_gradient_right():
    for case, _, ((hand, value), (truth, own)) in in_float64(of_kind("primal")):
        assert not differing(hand, truth, SAME), case.name
        assert values_differ(value, own), case.name


def test_an_unstable_rule_is_right_in_float64_and_far_worse_than_autodiff_below():
    for case, _, ((hand, _), (truth, _)) in in_float64(of_kind("precision")):
        assert not differing(hand, truth, 1e-7), case.name
    for case in of_kind("precision"):
        run = compiled_quickly(functools.partial(both, case))
        for dtype in case.slip.dtypes:
            args, epsilon = case.args(jnp.dtype(dtype)), float(jnp.finfo(dtype).eps)
            (hand, _), (autodiff, _) = run(args)
            with jax.enable_x64(True):
                truth = leaves_of(run(wide(args))[1][0])
            hand, autodiff = leaves_of(hand), leaves_of(autodiff)
            bad = set()
            for path, right in truth.items():
                errors = (np.nan_to_num(np.abs(leaf[path] - right), nan=np.inf) for leaf in (hand, autodiff))
                mine, own = map(np.max, errors)
                bad |= {path} if mine > 30 * max(own, epsilon * np.max(np.abs(right))) else set()
            assert bad == (set(truth) if case.slip.leaf is None else {case.slip.leaf}), (case.name, dtype)


def test_a_gradient_of_another_structure_cannot_pass_for_its_argument():
    for case in of_kind("structure"):
        for dtype in DTYPES:
            with jax.enable_x64(dtype == "float64"):
                args = case.args(jnp.dtype(dtype))
                try:
                    alike = of_like_structure(case, args)
                except (TypeError, ValueError):
                    alike = False  # JAX says so itself
                assert alike or dtype in case.slip.dtypes, case.name
                if alike and dtype in case.slip.dtypes:  # None passes for a zero
                    (hand, _), (truth, _) = compiled_quickly(functools.partial(both, case))(args)
                    assert set(differing(hand, truth, STANDS_OUT)) == {case.slip.leaf}, case.name


# --- Wrong on purpose, and right where autodiff is not ----------------------------------------------------------------


def test_a_surrogate_has_the_slope_of_its_reference_and_not_of_itself():
    cases = [surrogate.case for surrogate in SURROGATES]

    def by_reference(case, args):
        return pull(case.reference, args)

    pairs = zip(in_float64(cases), in_float64(cases, by_reference), strict=True)
    for (case, _, ((hand, value), (own, own_value))), (_, _, (reference, reference_value)) in pairs:
        assert not differing(hand, reference, SAME), case.name
        assert not values_differ(value, own_value), case.name
        assert values_differ(value, reference_value), case.name
        assert differing(hand, own, STANDS_OUT), case.name


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_autodiff_fails_the_rule_is_right(dtype):
    with jax.enable_x64(dtype == "float64"):
        cases = [case for case in AUTODIFF_SUSPECT if dtype in case.dtypes]
        args = [case.args(jnp.dtype(dtype)) for case in cases]
        found = compiled_quickly(lambda args: list(map(both, cases, args)))(args)
        truths = [case.truth(*each) for case, each in zip(cases, args, strict=True)]
    for case, truth, ((hand, _), (autodiff, _)) in zip(cases, truths, found, strict=True):
        error = 16 * float(jnp.finfo(dtype).eps)
        assert differing(autodiff, truth, error), case.name
        assert not differing(hand, truth, error), case.name
