"""Descents: one protocol for ours and optax's, gradient descent against its equation and against optax."""

import functools
import sys
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits import descents
from kits.marks import SLOW

import minijaxnet as mjn

PARAMS, BATCH = {"a": np.float32([1, 2]), "b": (np.float32(3),)}, np.float32(0.5)


def squared_distance(params, batch):
    return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32) - batch)) for leaf in jax.tree.leaves(params))


def noisy(params, batch, key):
    return squared_distance(params, batch) + jax.random.uniform(key)


def telling(params, batch, key):
    """What an objective may return beside its loss, its key among it."""
    aux = {"key": jax.random.key_data(key), "sum": params["a"].sum(), "7": jnp.int32(7)}
    return squared_distance(params, batch), aux


jitted = functools.cache(jax.jit)  # steps of equal descents are equal: one compiled program serves all tests


def times_batch(params, batch):
    """Its gradient is the batch."""
    return sum(
        jax.tree.leaves(jax.tree.map(lambda w, gradient: jnp.sum(w * gradient).astype(jnp.float32), params, batch))
    )


OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "momentum": optax.sgd(1e-2, momentum=0.9),
    # The line search of optax's default compiles for seconds; this one asks for the same extra arguments.
    "lbfgs": optax.lbfgs(memory_size=2, linesearch=optax.scale_by_backtracking_linesearch(max_backtracking_steps=8)),
    "chain": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.scale_by_schedule(optax.cosine_decay_schedule(-1e-2, 100)),
    ),
    "plain": optax.scale(-1e-2),  # update(updates, state, params) and nothing more
}
DESCENTS = {
    "gradient_descent": lambda f, **options: mjn.gradient_descent(f, 1e-2, **options),
    **{
        name: lambda f, optimizer=optimizer, **options: mjn.optax_descent(f, optimizer, **options)
        for name, optimizer in OPTIMIZERS.items()
    },
}
each_descent = pytest.mark.parametrize("make", DESCENTS.values(), ids=DESCENTS.keys())
# Where each costs a program of its own.
each_of_a_kind = pytest.mark.parametrize(
    "make", [(pytest.param if name == "adam" else SLOW)(make, id=name) for name, make in DESCENTS.items()]
)


# --- The protocol, for every descent ----------------------------------------------------------------------------------


@each_descent
def test_init_keeps_the_params_and_starts_at_step_0(make):
    state = make(squared_distance).init(PARAMS)
    assert isinstance(state, mjn.DescentState)
    chex.assert_trees_all_equal(state.params, PARAMS, strict=True)
    assert (state.step, state.step.dtype, state.key) == (0, jnp.int32, None)
    key = jax.random.key(1)
    assert make(noisy).init(PARAMS, key).key is key
    assert make(noisy).init(PARAMS, key=key).key is key


@each_descent
def test_a_step_is_pure_and_says_what_it_saw_before_it_moved(make):
    descent = make(squared_distance)
    start, step = descent.init(PARAMS), jitted(descent.step)
    before = jax.tree.map(np.asarray, start)
    state, info = step(start, BATCH)
    assert isinstance(info, mjn.StepInfo)
    np.testing.assert_allclose((info.loss, info.gradient_norm), (8.75, 2 * 8.75**0.5), rtol=1e-6)
    assert info.aux == ()
    assert state.step == 1
    assert sum(np.sum((np.asarray(leaf) - BATCH) ** 2) for leaf in jax.tree.leaves(state.params)) < 8.75
    chex.assert_trees_all_equal(step(start, BATCH), (state, info))
    chex.assert_trees_all_equal(start, before)


@each_descent
def test_a_step_keeps_structure_shapes_and_dtypes_of_the_state(make):
    descent = make(noisy)
    state = descent.init(PARAMS, jax.random.key(1))
    after, _ = jax.eval_shape(descent.step, state, BATCH)
    chex.assert_trees_all_equal_structs(state, after)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    weak = [leaf.weak_type for leaf in jax.tree.leaves((state.params, after.params))]
    assert not any(weak), "a weak type would compile the second step anew"


@each_of_a_kind
def test_a_step_under_vmap_is_each_step_alone(make):
    descent = make(squared_distance)
    starts = [descent.init(params) for params in (PARAMS, jax.tree.map(lambda leaf: -2 * leaf, PARAMS))]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    states, infos = jax.jit(jax.vmap(descent.step, in_axes=(0, None)))(stacked, BATCH)
    alone = jax.tree.map(lambda *leaves: np.stack(leaves), *[jitted(descent.step)(state, BATCH) for state in starts])
    chex.assert_trees_all_close(infos, alone[1], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(states.params, alone[0].params, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(states.step, np.ones(2, np.int32))


@each_descent
def test_descents_of_one_objective_share_a_step_and_so_a_compiled_program(make):
    one, other = (make(mjn.objective(descents.NETWORK, mjn.mean_squared_error)).step for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != make(noisy).step
    assert one != make(descents.OBJECTIVE, has_aux=True).step


@each_of_a_kind
def test_the_objective_gets_the_key_of_its_step_and_what_it_returns_beside_its_loss_is_handed_on(make):
    descent, key = make(telling, has_aux=True), jax.random.key(5)
    state, step = descent.init(PARAMS, key), jitted(descent.step)
    for k in range(3):
        before = np.asarray(state.params["a"])
        state, info = step(state, BATCH)
        drawn = np.asarray(jax.random.key_data(jax.random.fold_in(key, k)))
        expected = {"key": drawn, "sum": before[0] + before[1], "7": np.int32(7)}
        chex.assert_trees_all_equal(info.aux, expected, strict=True)
        assert state.key == key


@each_descent
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": np.arange(2, dtype=np.int32)}, r"params\['w'\]: got dtype int32"),
        ([1.0, np.complex64(1)], r"params\[1\]: got dtype complex64"),
        ({"w": None}, r"params: got a tree without leaves"),
    ],
)
def test_params_that_cannot_take_a_step_are_refused(make, params, message):
    with pytest.raises(TypeError, match=message):
        make(squared_distance).init(params)


@each_descent
@pytest.mark.parametrize(
    ("objective", "got"),
    [
        (lambda params, batch: params, r"float32\[2\]"),
        (lambda params, batch: jnp.int32(1), r"int32\[\]"),
        (lambda params, batch: jnp.sum(params) * 1j, r"complex64\[\]"),
        (lambda params, batch: None, r"NoneType"),
        (lambda params, batch: (jnp.sum(params), 1.0), r"tuple"),
    ],
)
def test_an_objective_that_returns_no_floating_scalar_is_refused(make, objective, got):
    descent = make(objective)
    with pytest.raises(TypeError, match=rf"objective: got {got}; expected the loss, a floating scalar"):
        jax.eval_shape(descent.step, descent.init(np.ones(2, np.float32)), 0.0)


@each_descent
@pytest.mark.parametrize("result", [lambda loss: loss, lambda loss: (loss,)])
def test_an_objective_without_the_aux_that_it_promised_is_refused(make, result):
    descent = make(lambda params, batch: result(squared_distance(params, batch)), has_aux=True)
    with pytest.raises(TypeError, match=r"objective: got \w+; expected \(loss, aux\), as has_aux=True says"):
        jax.eval_shape(descent.step, descent.init(np.ones(2, np.float32)), 0.0)


# --- Gradient descent -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    weight=st.floats(-100, 100, width=32), target=st.floats(-100, 100, width=32), rate=st.floats(2**-20, 8, width=32)
)
def test_a_step_is_params_minus_learning_rate_times_gradient(weight, target, rate):
    with jax.enable_x64(True):
        descent = mjn.gradient_descent(descents.squared_distance, rate)
        state, info = jitted(descent.step)(descent.init(np.float64(weight)), np.float64(target))
        exact_gradient = 2 * (Fraction(weight) - Fraction(target))
        exact = Fraction(weight) - Fraction(rate) * exact_gradient
        # The gradient, its product with the rate and the difference round once each.
        bound = 2 * 2.0**-52 * (abs(weight) + 2 * rate * (abs(weight) + abs(target)))
        assert abs(Fraction(float(state.params)) - exact) <= bound
        assert float(info.gradient_norm) == pytest.approx(abs(float(exact_gradient)), rel=1e-15)


def test_gradient_descent_follows_optax_sgd_for_1_000_steps():
    # Both compute w - rate * gradient, optax as w + (-rate) * gradient: the same two roundings, unless a compiler
    # contracts one of them into a fused multiply-add, which saves a rounding of at most half an ulp of the update, and
    # seldom changes the weight, then by one ulp. At each of 1,000 steps, of random sign, that is sqrt(1000) = 32 ulps.
    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        batch = mjn.Batch(draw.normal(size=(16, 2)), draw.normal(size=(16, 1)))

        def thousand_steps(descent):
            state = descent.init(descents.as_in("float64", descents.PARAMS))
            return jax.jit(lambda state: jax.lax.scan(lambda s, _: descent.step(s, batch), state, length=1_000))(state)

        state, info = thousand_steps(mjn.gradient_descent(descents.OBJECTIVE, 0.1))
        expected, _ = thousand_steps(mjn.optax_descent(descents.OBJECTIVE, optax.sgd(0.1)))
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(jax.device_get(expected.params)))
        chex.assert_trees_all_close(state.params, expected.params, rtol=0, atol=32 * float(np.spacing(largest)))
        assert info.loss[-1] < info.loss[0]


def test_the_update_is_made_in_each_leafs_own_dtype():
    def half_of_the_square(params, batch):  # its gradient is the params themselves, exact in every dtype
        return sum(jnp.sum(jnp.square(leaf.astype(jnp.float64))) / 2 for leaf in jax.tree.leaves(params))

    with jax.enable_x64(True):
        params = {dtype: np.array([1, -3], dtype) for dtype in ("float16", "bfloat16", "float32", "float64")}
        for rate in (0.1, jnp.float32(0.1), jnp.float64(0.1)):
            descent = mjn.gradient_descent(half_of_the_square, rate)
            state, info = jitted(descent.step)(descent.init(params), ())
            for dtype, leaf in params.items():
                got = np.asarray(state.params[dtype])
                assert got.dtype == dtype
                np.testing.assert_array_equal(got, leaf - np.asarray(rate).astype(dtype) * leaf)
            assert info.gradient_norm.dtype == jnp.float64


def test_a_step_past_the_range_of_a_dtype_stops_at_its_edge():
    edges = {dtype: float(jnp.finfo(dtype).max) for dtype in ("float32", "bfloat16", "float16")}

    def stepped(rate, start, *gradient):
        descent = mjn.gradient_descent(times_batch, rate)
        params, gradients = (
            {dtype: np.array(numbers, dtype) for dtype in edges} for numbers in (3 * [start], gradient)
        )
        state, info = jitted(descent.step)(descent.init(params), gradients)
        return {dtype: np.asarray(leaf, np.float32) for dtype, leaf in state.params.items()}, float(info.gradient_norm)

    at_the_edge, _ = stepped(3e38, 0, 100, -100, 0)
    for dtype, edge in edges.items():
        np.testing.assert_array_equal(at_the_edge[dtype], np.float32([-edge, edge, 0]))
    np.testing.assert_array_equal(stepped(6e4, 0, 100, -100, 0)[0]["float16"], np.float32([-65504, 65504, 0]))
    # A rate past the range of a leaf's dtype: either the step stops at the edge or it says that it must not be taken.
    for rate, dtype in ((1e5, "float16"), (3.4e38, "bfloat16")):
        params, norm = stepped(rate, 1, 1, 0, 0)
        assert np.isfinite(params[dtype]).all() or not np.isfinite(norm)


NO_NUMBERS = ("0.1", True, None, [0.1], 1j, np.array(True), optax.constant_schedule(0.1))
NOT_POSITIVE_AND_FINITE = (0, -1e-9, np.nan, np.inf, np.float32(0), 1e39, 1e-50)
SEVERAL = (np.ones(2), np.ones((1, 1)), np.ones(0))


@pytest.mark.parametrize(
    ("rates", "kind", "message"),
    [
        (NOT_POSITIVE_AND_FINITE, ValueError, "got .*; expected a positive, finite float32"),
        (NO_NUMBERS, TypeError, "got .*; expected a positive number"),
        (SEVERAL, ValueError, r"got an array of shape \(.*\); expected one"),
    ],
)
def test_a_rate_that_is_none_is_refused(rates, kind, message):
    with np.errstate(over="ignore"):
        of_jax = [jnp.asarray(rate) for rate in rates if isinstance(rate, int | float | np.ndarray)]
    for rate in (*rates, *of_jax):
        with pytest.raises(kind, match=f"^gradient_descent: learning_rate: {message}"):
            mjn.gradient_descent(squared_distance, rate)
    for rate in (1, np.float64(0.5), np.int32(1), jnp.float32(0.5)):
        optimizer = mjn.gradient_descent(squared_distance, rate).init(1.0).optimizer
        assert (optimizer, optimizer.dtype, optimizer.weak_type) == (float(rate), jnp.float32, False)


# --- optax ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SLOW("adam"), SLOW("momentum"), "chain"])
def test_an_optax_descent_is_optax_by_hand(name):
    optimizer = OPTIMIZERS[name]
    descent = mjn.optax_descent(squared_distance, optimizer)
    step = jitted(descent.step)

    @jax.jit
    def by_hand(params, optimizer_state):
        gradient = jax.grad(squared_distance)(params, BATCH)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    state, params, optimizer_state = descent.init(PARAMS), PARAMS, optimizer.init(PARAMS)
    for _ in range(20):
        state, _ = step(state, BATCH)
        params, optimizer_state = by_hand(params, optimizer_state)
    chex.assert_trees_all_close(state.params, params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(state.optimizer, optimizer_state, rtol=1e-4, atol=1e-6)


def test_an_update_that_is_not_finite_makes_a_step_that_must_not_be_taken():
    broken = optax.GradientTransformation(
        lambda params: (), lambda gradient, state, params=None: (jax.tree.map(lambda s: s / 0, gradient), state)
    )
    descent = mjn.optax_descent(squared_distance, broken)
    _, info = jax.jit(descent.step)(descent.init(PARAMS), BATCH)
    assert (info.loss, info.accepted) == (8.75, False)


@pytest.mark.parametrize("optimizer", [0.1, "sgd", optax.sgd, None, (lambda p: p, lambda g: g)])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises(TypeError, match=r"optax_descent: optimizer: got \w+; expected an optax.GradientTransformation"):
        mjn.optax_descent(squared_distance, optimizer)


def test_without_optax_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ImportError, match=r'pip install "minijaxnet\[optax\]"'):
        mjn.optax_descent(squared_distance, OPTIMIZERS["adam"])
