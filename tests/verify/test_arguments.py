"""What the gradient checker takes, and what it refuses, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.reports import check_grad_at, states, wrong_leaves

from minijaxnet import check_grad


def cubes(w):
    return jnp.sum(w**3)


def cubes_gradient(w):
    return 3 * w**2


ONES = np.ones(2, np.float32)

# --- Structure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "complaint"),
    [
        (lambda w: {"a": w["a"]}, "missing"),
        (lambda w: {**w, "c": w["a"]}, "too many"),
        (lambda w: w["a"], "expected"),
        (lambda w: {"a": w["a"][:1], "b": w["b"]}, r"\['a'\]: got float32\[1\]; expected float32\[2\]"),
        (lambda w: {"a": w["a"], "b": w["b"].astype(jnp.bfloat16)}, r"\['b'\]: got bfloat16\[3\]; expected float32"),
        (lambda w: (1.0, w), "expected"),
    ],
    ids=["missing", "too many", "bare", "shape", "dtype", "value_and_grad without has_value"],
)
def test_a_gradient_of_another_structure_fails_structure_and_is_not_compared(gradient, complaint):
    args = ({"a": ONES, "b": np.ones(3, np.float32)},)
    report = check_grad(lambda w: jnp.sum(w["a"]) + jnp.sum(w["b"] ** 2), gradient, args)
    assert not report.ok
    assert states(report) == {"structure": "fail", "algebra": "unchecked", "precision": "unchecked"}
    assert (report.leaves, report.worst) == ({}, None)
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(report.verdicts["structure"].reason)


# --- Which argument ---------------------------------------------------------------------------------------------------


def product(a, b):
    return jnp.sum(a) * jnp.sum(b**2)


@pytest.mark.parametrize(
    ("argnums", "expected"),
    [(0, "2"), (1, "3"), (-1, "3"), ((0, 1), "23"), ([0, 1], "23"), ((1, 0), "32"), ((-1,), "3")],
)
def test_argnums_choose_the_argument_or_several_in_any_order(argnums, expected):
    """As the expected structure shows, which needs nothing compiled."""

    def gradient(a, b):
        wrong = tuple(jnp.ones(int(n) + 5) for n in expected)
        return wrong if isinstance(argnums, tuple | list) else wrong[0]

    report = check_grad(product, gradient, (np.ones(2, np.float32), np.ones(3, np.float32)), argnums=argnums)
    assert (
        f"got float32[{int(expected[0]) + 5}]; expected float32[{expected[0]}]" in report.verdicts["structure"].reason
    )


def test_several_argnums_take_a_tuple_of_gradients_in_their_order():
    def gradient(a, b, factor):
        return factor * 2 * jnp.sum(a) * b, jnp.full_like(a, jnp.sum(b**2))

    points = {factor: (np.float32([1, 2]), np.float32([3, 5, 0.5]), np.float32(factor)) for factor in (1, 1.5)}
    reports = check_grad_at(lambda a, b, factor: product(a, b), gradient, points, argnums=(1, 0))
    assert reports[1].ok, str(reports[1])
    assert wrong_leaves(reports[1.5]) == {"b"}
    bare = check_grad(product, lambda a, b: b, points[1][:2], argnums=(1, 0))
    assert states(bare, "structure") == {"structure": "fail"}


@pytest.mark.parametrize("argnums", [2, (0, 2), -3, True, (0, True), "a", (0, 1.0), 1.0, None, (0, 0)], ids=str)
def test_argnums_that_name_no_argument_are_refused_by_name(argnums):
    with pytest.raises((TypeError, ValueError), match="argnums: "):
        check_grad(product, lambda a, b: (b, a), (ONES, ONES), argnums=argnums)


# --- What is refused --------------------------------------------------------------------------------------------------

IN_TREE = {"w": ONES, "n": np.arange(3)}
SECOND = {"a": [np.ones((2, 2)), np.diag([1.0, np.nan])]}


@pytest.mark.parametrize(
    ("loss", "gradient", "args", "options", "complaint"),
    [
        (lambda w: jnp.sum(w["w"]), lambda w: w, (IN_TREE,), {}, r"args\[0\]\['n'\]: got dtype int32; expected a real"),
        (
            lambda w: jnp.sum(1.0 * w),
            cubes_gradient,
            (np.ones(3, bool),),
            {},
            r"args\[0\]: got dtype bool; expected a real floating dtype",
        ),
        (cubes, cubes_gradient, (ONES,), {"order": 3}, "order: got 3; expected 1 or 2"),
        (cubes, cubes_gradient, (ONES,), {"order": True}, "order: got True; expected 1 or 2"),
        (cubes, cubes_gradient, ONES, {}, "args: got a .*; expected a tuple"),
        (lambda w: w**3, cubes_gradient, (ONES,), {}, "loss: got .*; expected a real floating scalar"),
        (lambda w: 3, cubes_gradient, (ONES,), {}, "loss: got .*; expected a real floating scalar"),
        (lambda w: (cubes(w), w), cubes_gradient, (ONES,), {}, "loss: got .*; expected a real floating scalar"),
        (cubes, cubes_gradient, (ONES,), {"has_value": True}, r"gradient: got a .*; expected \(value, gradient\)"),
        (cubes, lambda w: (1, 2, w), (ONES,), {"has_value": True}, r"gradient: got a .*; expected \(value, gradient\)"),
        (
            lambda w: jnp.float32(1),
            lambda w: (),
            ((),),
            {},
            r"args\[0\]: got a tree without leaves; expected something",
        ),
        (lambda w, b: cubes(w), cubes_gradient, (ONES, np.array([1, np.nan])), {}, r"args\[1\]: got NaN at \[1\]"),
        (lambda w, b: cubes(w), cubes_gradient, (np.nan, ONES), {}, r"args\[0\]: got NaN; expected"),
        (lambda w, b: cubes(w), cubes_gradient, (ONES, SECOND), {}, r"args\[1\]\['a'\]\[1\]: got NaN at \[1, 1\]"),
    ],
)
def test_what_cannot_be_checked_is_refused_by_name(loss, gradient, args, options, complaint):
    with pytest.raises((TypeError, ValueError), match=complaint):
        check_grad(loss, gradient, args, **options)


# --- What is taken ----------------------------------------------------------------------------------------------------


def test_numbers_leaves_without_elements_and_keys_are_arguments_as_well():
    numbers = {
        "python": 2.0,
        "numpy": np.float32(2),
        "array": np.array([2.0, 0.1]),
        "list": [2.0, 0.1],
        "none": np.ones((0, 3)),
    }

    def loss(w, key):
        return sum(cubes(leaf) for leaf in jax.tree.leaves(w))

    def gradient(w, key):
        factor = jnp.float32(jax.random.key_data(key)[1])
        return jax.tree.map(lambda leaf: (factor * cubes_gradient(leaf)).astype(leaf.dtype), w)

    points = {seed: (numbers, jax.random.key(seed)) for seed in (1, 2)}
    right, wrong = check_grad_at(loss, gradient, points).values()
    assert right.ok, str(right)
    assert wrong_leaves(wrong) == {*wrong.leaves} - {"['none']"}
    assert str(wrong)
