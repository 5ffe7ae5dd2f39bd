"""The gradient corpus is what it says: its right rules are right, its wrong ones wrong where and as they say.

Judged here without the checker that the corpus is for: in float64 against ``jax.grad`` of the plain function, element
by element; at a kink against the slopes of both sides; where autodiff fails, against numbers worked out by hand.
"""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpora import (
    AUTODIFF_SUSPECT,
    DTYPES,
    KINDS,
    RIGHT,
    SURROGATES,
    WORKING,
    WRONG,
    GradCase,
    VjpCase,
)

# A minute for what changes with the corpus only.
pytestmark = pytest.mark.slow

# Rounding in float64, relative to the largest element of a leaf; and the least that a slip must stand out.
SAME = 1e-12
STANDS_OUT = 1e-10
FIRST_ORDER, PRIMAL = {"second order"}, {"primal"}


def named(cases):
    kinds = {GradCase: "grad", VjpCase: "vjp"}
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=f"{kinds[type(case)]}: {case.name}") for case in cases]
    )


def is_float(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def in_float64(tree):
    """By way of the host, where a conversion need not be compiled."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)) if is_float(leaf) else leaf, tree)


def on_host(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


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


@functools.cache
def quick_options():
    """Options for quick compilation, if this XLA has them all."""
    options = {
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


def compile_quickly(fun):
    """Run once on small arguments: time saved in compilation is worth more than the fastest program."""
    return jax.jit(fun, compiler_options=quick_options())


def compiled(case, **options):
    if getattr(case, "traceable", True):
        return compile_quickly(lambda *args: both(case, args, **options))
    return lambda *args: both(case, args, **options)


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

    if isinstance(case, GradCase):
        return tuple(jax.jvp(functools.partial(slopes, side), floats, directions)[1] for side in (0, 1))

    def along(side, floats):
        given = iter(directions)
        return sum(jnp.sum(next(given) * leaf) for leaf in jax.tree.leaves(slopes(side, *floats)))

    return tuple(
        jax.tree.unflatten(tree, [next(found) if is_float(leaf) else None for leaf in leaves])
        for side in (0, 1)
        for found in [iter(jax.grad(functools.partial(along, side))(floats))]
    )


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
    pairs = zip(jax.tree.leaves(on_host(hand)), jax.tree.leaves(on_host(truth)), strict=True)
    return any(not np.allclose(mine, right, rtol=1e-9, atol=1e-12) for mine, right in pairs)


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


CLEARS = [case for case in RIGHT if getattr(case, "clears", False)]


@named([case for case in RIGHT if not case.kink and case not in CLEARS])
def test_a_right_rule_is_autodiff_in_float64_and_about_as_precise_in_the_dtype_at_work(case):
    run = compiled(case)
    with jax.enable_x64(True):
        args = in_float64(case.args(jnp.float64))
        (hand, value), (truth, plain_value) = run(*args)
        chex.assert_tree_all_finite(on_host(truth))
        assert not differing(hand, truth, SAME, case.rounding)
        assert value is None or not values_differ(value, plain_value)
        if case.order == 2:
            again, truth = compile_quickly(lambda *args: second(case, args))(*args)
            assert any(leaf.any() for leaf in leaves_of(truth).values())
            assert not differing(again, truth, SAME, case.rounding)
    for dtype in WORKING:
        epsilon = float(jnp.finfo(dtype).eps)
        for path, (mine, autos, largest) in leaf_errors(case, dtype, run).items():
            # A draw from the same key in another dtype is another draw.
            assert case.keyed or mine <= 6 * autos + 4 * epsilon * largest + case.rounding, (dtype, path, mine, autos)


@named([case for case in RIGHT if case.kink])
def test_a_rule_at_a_kink_lies_between_the_slopes_of_both_sides(case):
    """Each side's slope by a one-sided difference along every axis; beside the kink the rule is autodiff's."""
    step = 2.0**-30
    with jax.enable_x64(True):
        args = in_float64(case.args(jnp.float64))
        leaves, tree = jax.tree.flatten(args)
        if isinstance(case, VjpCase):
            slope, scalar = pull(case.fun, args)[0], None
            out = case.plain(*args)
            cotangent = np.random.default_rng([0, 1]).normal(size=out.shape)
            scalar = lambda *args: float(np.sum(cotangent * np.asarray(case.plain(*args))))  # noqa: E731
            slopes = dict(enumerate(jax.tree.leaves(slope)))
        else:
            scalar = lambda *args: float(case.loss(*args))  # noqa: E731
            slopes = dict(enumerate(jax.tree.leaves(case.gradient(*args))))
        kinks = 0
        for number, hand in slopes.items():
            for index in np.ndindex(hand.shape):
                sides = []
                for sign in (-1, 1):
                    moved = list(leaves)
                    moved[number] = leaves[number].at[index].add(sign * step)
                    change = scalar(*jax.tree.unflatten(tree, moved)) - scalar(*args)
                    sides.append(sign * change / step)
                kinks += abs(sides[0] - sides[1]) > 1e-3
                assert min(sides) - 1e-5 <= hand[index] <= max(sides) + 1e-5, index
        assert kinks
        draw = np.random.default_rng(1)
        beside = jax.tree.map(lambda leaf: leaf + 1e-3 * draw.normal(size=leaf.shape) if is_float(leaf) else leaf, args)
        (hand, _), (truth, _) = both(case, beside)
        assert not differing(hand, truth, SAME)


def change_mode(case):
    if case in CLEARS:
        jax.clear_caches()


def leaf_errors(case, dtype, run):
    """By leaf: the largest error in ``dtype``, the rule's and autodiff's, and the largest of the truth in float64."""
    args = case.args(jnp.dtype(dtype))
    change_mode(case)
    (hand, _), (autodiff, _) = run(*args)
    assert case.slip or is_like(hand, autodiff)
    hand, autodiff = leaves_of(hand), leaves_of(autodiff)
    change_mode(case)
    with jax.enable_x64(True):
        truth = leaves_of(run(*in_float64(args))[1][0])
    errors = {}
    for path, right in truth.items():
        largest = np.max(np.abs(right), initial=0)
        mine, autos = (np.nan_to_num(np.abs(leaf[path] - right), nan=np.inf) for leaf in (hand, autodiff))
        errors[path] = np.max(mine, initial=0), np.max(autos, initial=0), largest
    return errors


@named([case for case in RIGHT if case.kink or not getattr(case, "traceable", True)])
def test_a_right_rule_that_is_not_compared_above_has_the_structure_of_its_argument(case):
    for dtype in case.dtypes:
        with jax.enable_x64(dtype == "float64"):
            assert of_like_structure(case, case.args(jnp.dtype(dtype)))


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
    gradient = jax.eval_shape(case.gradient, *args) if case.traceable else case.gradient(*args)
    return is_like(gradient[1] if case.has_value else gradient, args[case.argnums])


# --- Wrong ------------------------------------------------------------------------------------------------------------


def wrong_where(case, args):
    """``differing`` of first order, over a few cotangents for a rule that has one."""
    found = {}
    tries = [(0, 1.0), (1, 100.0), (2, 1e-2)] if case.slip.kind == "cotangent" else [(0, 1.0)]
    for seed, scale in tries:
        (hand, _), (truth, _) = compiled(case, seed=seed, scale=scale)(*args)
        found |= differing(hand, truth, STANDS_OUT, case.rounding)
    return found, hand, truth


ALGEBRA = [case for case in WRONG if case.slip.kind not in {"structure", "precision", "second order", "primal"}]


@named(ALGEBRA)
def test_a_wrong_rule_is_wrong_where_and_as_it_says(case):
    slip = case.slip
    assert of_like_structure(case, case.args(jnp.bfloat16)) or slip.kind in ("transposed", "broadcast")
    with jax.enable_x64(True):
        args = in_float64(case.args(jnp.float64))
        if slip.kind in ("transposed", "broadcast") and not of_like_structure(case, args):
            return
        found, hand, truth = wrong_where(case, args)
        assert found, "it is right"
        if slip.leaf is None:
            assert len(found) > 1 or slip.kind == "factor", found
        else:
            assert set(found) == {slip.leaf}
        if slip.index is not None:
            assert found[slip.leaf] == [slip.index]
        if slip.kind == "one-sided":
            x = np.asarray(args[0])
            assert all(x[index] < 0 for indices in found.values() for index in indices)
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
        case "element":
            differs = np.abs(hand - truth) > STANDS_OUT * np.max(np.abs(truth))
            assert 0 < differs.sum() < differs.size
        case "one-sided" | "domain":
            differs = np.abs(hand - truth) > STANDS_OUT * np.max(np.abs(truth))
            assert 0 < differs.sum() < differs.size
        case _:
            pass


@named([case for case in WRONG if case.slip.kind == "second order"])
def test_a_slip_of_second_order_shows_only_there(case):
    with jax.enable_x64(True):
        args = in_float64(case.args(jnp.float64))
        (hand, value), (truth, plain_value) = compiled(case)(*args)
        assert not differing(hand, truth, SAME)
        assert value is None or not values_differ(value, plain_value)
        again, truth = compile_quickly(lambda *args: second(case, args))(*args)
    found = differing(again, truth, STANDS_OUT)
    assert found and (case.slip.leaf is None or set(found) == {case.slip.leaf}), found


@named([case for case in WRONG if case.slip.kind == "primal"])
def test_a_slip_in_the_value_leaves_the_gradient_right(case):
    with jax.enable_x64(True):
        args = in_float64(case.args(jnp.float64))
        (hand, value), (truth, plain_value) = compiled(case)(*args)
        assert not differing(hand, truth, SAME)
        assert values_differ(value, plain_value)


@named([case for case in WRONG if case.slip.kind == "precision"])
def test_an_unstable_rule_is_right_in_float64_and_far_worse_than_autodiff_below(case):
    run = compiled(case)
    with jax.enable_x64(True):
        (hand, _), (truth, _) = run(*in_float64(case.args(jnp.float64)))
        assert not differing(hand, truth, 1e-7)
    for dtype in case.slip.dtypes:
        epsilon = float(jnp.finfo(dtype).eps)
        errors = leaf_errors(case, dtype, run)
        bad = {p for p, (mine, autos, largest) in errors.items() if mine > 30 * max(autos, epsilon * largest)}
        assert bad == (set(errors) if case.slip.leaf is None else {case.slip.leaf}), (dtype, errors)


@named([case for case in WRONG if case.slip.kind == "structure"])
def test_a_gradient_of_another_structure_cannot_pass_for_its_argument(case):
    for dtype in DTYPES:
        with jax.enable_x64(dtype == "float64"):
            args = case.args(jnp.dtype(dtype))
            try:
                alike = of_like_structure(case, args)
            except (TypeError, ValueError):
                alike = False  # JAX says so itself
            assert alike or dtype in case.slip.dtypes
            if alike and dtype in case.slip.dtypes:
                # None passes for a zero.
                found, _, _ = wrong_where(case, args)
                assert set(found) == {case.slip.leaf}


# --- Wrong on purpose, and right where autodiff is not ----------------------------------------------------------------


@named([surrogate.case for surrogate in SURROGATES])
def test_a_surrogate_has_the_slope_of_its_reference_and_not_of_itself(case):
    with jax.enable_x64(True):
        args = case.args(jnp.float64)
        hand, value = pull(case.fun, args)
        reference, reference_value = pull(case.reference, args)
        own, own_value = pull(case.plain, args)
        assert not differing(hand, reference, SAME)
        assert not values_differ(value, own_value)
        assert values_differ(value, reference_value)
        assert differing(hand, own, STANDS_OUT)


@named(AUTODIFF_SUSPECT)
def test_where_autodiff_fails_the_rule_is_right(case):
    for dtype in case.dtypes:
        with jax.enable_x64(dtype == "float64"):
            args = case.args(jnp.dtype(dtype))
            (hand, _), (autodiff, _) = compiled(case)(*args)
            truth, error = case.truth(*args), 16 * float(jnp.finfo(dtype).eps)
        assert differing(autodiff, truth, error)
        assert not differing(hand, truth, error)


# The last, for what it makes JAX forget.
@named(CLEARS)
def test_a_right_rule_whose_trace_is_good_for_one_mode_is_right_in_each(case):
    jax.clear_caches()
    test_a_right_rule_is_autodiff_in_float64_and_about_as_precise_in_the_dtype_at_work(case)
    jax.clear_caches()
