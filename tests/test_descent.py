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
from jax.flatten_util import ravel_pytree

import minijaxnet as mjn

NETWORK = mjn.mlp((2, 4, 1), activation=jnp.tanh)
MEAN_SQUARED_ERROR = mjn.objective(NETWORK, mjn.mean_squared_error)
PARAMS = NETWORK.init(jax.random.key(0))
POINTS = mjn.lesson_points()


def squared_distance(params, batch):
    return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32) - batch)) for leaf in jax.tree.leaves(params))


def noisy(params, batch, key):
    return MEAN_SQUARED_ERROR(params, batch) + jax.random.uniform(key)


jitted = functools.cache(jax.jit)  # steps of equal descents are equal: one compiled program serves all tests


def stacked(*trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


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


# --- The protocol, for every descent ---------------------------------------------------------------------------------


@each_descent
def test_init_keeps_the_params_and_starts_at_step_0(make):
    state = make(MEAN_SQUARED_ERROR).init(PARAMS)
    assert isinstance(state, mjn.DescentState)
    chex.assert_trees_all_equal(state.params, PARAMS, strict=True)
    assert (state.step, state.step.dtype, state.key) == (0, jnp.int32, None)
    key = jax.random.key(1)
    assert make(noisy).init(PARAMS, key).key is key
    assert make(noisy).init(PARAMS, key=key).key is key


@each_descent
def test_a_step_says_what_it_saw_before_it_moved(make):
    descent = make(MEAN_SQUARED_ERROR)
    state, info = jitted(descent.step)(descent.init(PARAMS), POINTS)
    loss, slope = jax.value_and_grad(MEAN_SQUARED_ERROR)(PARAMS, POINTS)
    assert isinstance(info, mjn.StepInfo)
    chex.assert_trees_all_close(
        (info.loss, info.gradient_norm),
        (loss, np.linalg.norm(ravel_pytree(slope)[0])),
        rtol=16 * np.finfo(np.float32).eps,
    )
    assert info.aux == ()
    assert state.step == 1
    assert MEAN_SQUARED_ERROR(state.params, POINTS) < loss


@each_descent
def test_a_step_keeps_structure_shapes_and_dtypes_of_the_state(make):
    descent = make(noisy)
    state = descent.init(PARAMS, jax.random.key(1))
    after, _ = jax.eval_shape(descent.step, state, POINTS)
    chex.assert_trees_all_equal_structs(state, after)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), after
    )
    weak = [leaf.weak_type for leaf in jax.tree.leaves((state.params, after.params))]
    assert not any(weak), "a weak type would compile the second step anew"


@each_descent
def test_a_step_is_pure(make):
    descent = make(MEAN_SQUARED_ERROR)
    state, step = descent.init(PARAMS), jitted(descent.step)
    before = jax.tree.map(np.asarray, state)
    first, second = step(state, POINTS), step(state, POINTS)
    chex.assert_trees_all_equal(first, second)
    chex.assert_trees_all_equal(state, before)


@each_descent
def test_a_step_under_vmap_is_each_step_alone(make):
    descent = make(MEAN_SQUARED_ERROR)
    starts = [descent.init(NETWORK.init(jax.random.key(seed))) for seed in range(3)]
    states, infos = jax.jit(jax.vmap(descent.step, in_axes=(0, None)))(stacked(*starts), POINTS)
    alone = [jitted(descent.step)(state, POINTS) for state in starts]
    expected_states, expected_infos = stacked(*alone)
    chex.assert_trees_all_close(infos, expected_infos, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(states.params, expected_states.params, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(states.step, np.ones(3, np.int32))


@each_descent
def test_descents_of_one_objective_share_a_step_and_so_a_compiled_program(make):
    one, other = make(MEAN_SQUARED_ERROR).step, make(mjn.objective(NETWORK, mjn.mean_squared_error)).step
    assert one == other
    assert hash(one) == hash(other)
    assert one != make(noisy).step
    assert one != make(MEAN_SQUARED_ERROR, has_aux=True).step


@each_descent
def test_the_objective_gets_the_key_of_its_step(make):
    def draws(params, batch, key):
        return squared_distance(params, batch), jax.random.key_data(key)

    descent, key = make(draws, has_aux=True), jax.random.key(5)
    state, step = descent.init({"w": jnp.ones(2)}, key), jitted(descent.step)
    for k in range(3):
        state, info = step(state, 0.0)
        chex.assert_trees_all_equal(info.aux, jax.random.key_data(jax.random.fold_in(key, k)))
        assert state.key == key


@each_descent
def test_what_the_objective_returns_beside_its_loss_is_handed_on(make):
    def with_aux(params, batch):
        return squared_distance(params, batch), {"sum": jnp.sum(params), "count": jnp.int32(7)}

    descent = make(with_aux, has_aux=True)
    _, info = jitted(descent.step)(descent.init(jnp.array([1.0, 2.0])), 0.0)
    chex.assert_trees_all_equal(info.aux, {"sum": jnp.float32(3), "count": jnp.int32(7)}, strict=True)


@each_descent
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.arange(2)}, r"params\['w'\]: got dtype int32"),
        ([1.0, np.complex64(1)], r"params\[1\]: got dtype complex64"),
        (np.array([True]), r"params: got dtype bool"),
        ((), r"params: got a tree without leaves"),
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
        (lambda params, batch: jnp.sum(params)[None], r"float32\[1\]"),
        (lambda params, batch: jnp.int32(1), r"int32\[\]"),
        (lambda params, batch: jnp.sum(params) * 1j, r"complex64\[\]"),
        (lambda params, batch: 1.0, r"float"),
        (lambda params, batch: None, r"NoneType"),
        (lambda params, batch: (jnp.sum(params), 1.0), r"tuple"),
    ],
)
def test_an_objective_that_returns_no_floating_scalar_is_refused(make, objective, got):
    descent = make(objective)
    with pytest.raises(TypeError, match=rf"objective: got {got}; expected the loss, a floating scalar"):
        jax.eval_shape(descent.step, descent.init(jnp.ones(2)), 0.0)


@each_descent
@pytest.mark.parametrize("result", [lambda loss: loss, lambda loss: (loss,), lambda loss: [loss, 1.0]])
def test_an_objective_without_the_aux_that_it_promised_is_refused(make, result):
    descent = make(lambda params, batch: result(squared_distance(params, batch)), has_aux=True)
    with pytest.raises(TypeError, match=r"objective: got \w+; expected \(loss, aux\), as has_aux=True says"):
        jax.eval_shape(descent.step, descent.init(jnp.ones(2)), 0.0)


# --- Gradient descent ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    weight=st.floats(-100, 100, width=32), target=st.floats(-100, 100, width=32), rate=st.floats(2**-20, 8, width=32)
)
def test_a_step_is_params_minus_learning_rate_times_slope(weight, target, rate):
    with jax.enable_x64(True):
        descent = mjn.gradient_descent(lambda w, batch: (w - batch) ** 2, rate)
        state, info = descent.step(descent.init(np.float64(weight)), np.float64(target))
        exact_slope = 2 * (Fraction(weight) - Fraction(target))
        exact = Fraction(weight) - Fraction(rate) * exact_slope
        # The slope, its product with the rate and the difference round once each.
        bound = 2 * 2.0**-52 * (abs(weight) + 2 * rate * (abs(weight) + abs(target)))
        assert abs(Fraction(float(state.params)) - exact) <= bound
        assert float(info.gradient_norm) == pytest.approx(abs(float(exact_slope)), rel=1e-15)


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.3])
def test_gradient_descent_follows_optax_sgd_for_1_000_steps(rate):
    # Both compute w - rate * slope, optax as w + (-rate) * slope: the same two roundings, unless a compiler contracts
    # one of them into a fused multiply-add, which saves a rounding of at most half an ulp of the update. Seldom does
    # that change the rounded weight, and then by one ulp. Were it to happen at every step, 1,000 such ulps of random
    # sign would add up to sqrt(1000) = 32 of them, as a descent contracts. Measured: 0.
    with jax.enable_x64(True):
        network = mjn.mlp((2, 8, 1), activation=jnp.tanh)
        objective = mjn.objective(network, mjn.mean_squared_error)
        batch = mjn.Batch(jax.random.normal(jax.random.key(2), (16, 2)), jax.random.normal(jax.random.key(3), (16, 1)))
        start = network.init(jax.random.key(1))

        def thousand_steps(descent):
            step = jitted(descent.step)
            return jax.lax.scan(lambda state, _: step(state, batch), descent.init(start), length=1_000)

        state, info = thousand_steps(mjn.gradient_descent(objective, rate))
        expected, expected_info = thousand_steps(mjn.optax_descent(objective, optax.sgd(rate)))
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected.params))
        bound = 32 * float(np.spacing(largest))
        chex.assert_trees_all_close(state.params, expected.params, rtol=0, atol=bound)
        # A loss moves with the weights by its slope, and rounds for itself.
        slopes = float(expected_info.gradient_norm.max())
        losses = (info.loss, expected_info.loss)
        chex.assert_trees_all_close(*losses, rtol=32 * 2.0**-52, atol=bound * slopes)
        assert info.loss[-1] < info.loss[0]


def test_the_update_is_made_in_each_leafs_own_dtype():
    with jax.enable_x64(True):
        params = {
            "half": jnp.array([1.0, -3.0], jnp.float16),
            "brain": jnp.array([1.0, -3.0], jnp.bfloat16),
            "single": jnp.array([1.0, -3.0], jnp.float32),
            "double": jnp.array([1.0, -3.0], jnp.float64),
        }

        def half_of_the_square(params, batch):  # its slope is the params themselves, exact in every dtype
            return sum(jnp.sum(jnp.square(leaf.astype(jnp.float64))) / 2 for leaf in jax.tree.leaves(params))

        for rate in (0.1, jnp.float32(0.1), jnp.float64(0.1)):
            descent = mjn.gradient_descent(half_of_the_square, rate)
            state, info = jitted(descent.step)(descent.init(params), ())
            for name, leaf in params.items():
                got = state.params[name]
                assert got.dtype == leaf.dtype
                own_rate = jnp.asarray(rate, leaf.dtype)
                chex.assert_trees_all_equal(got, leaf - own_rate * leaf)
            assert info.gradient_norm.dtype == jnp.float64


def test_a_step_past_the_range_of_a_dtype_stops_at_its_edge():
    for dtype, rate in ((jnp.float32, 3e38), (jnp.bfloat16, 3e38), (jnp.float16, 6e4)):
        descent = mjn.gradient_descent(lambda w, batch: jnp.sum(w * batch), rate)
        state, _ = jitted(descent.step)(descent.init(jnp.zeros(3, dtype)), jnp.array([100.0, -100.0, 0.0], dtype))
        edge = jnp.finfo(dtype).max
        chex.assert_trees_all_equal(state.params, jnp.array([-edge, edge, 0], dtype))


@pytest.mark.parametrize(("dtype", "rate"), [(jnp.float16, 1e5), (jnp.bfloat16, 3.4e38)])
def test_a_rate_past_the_range_of_a_leafs_dtype_leaves_its_params_finite(dtype, rate):
    descent = mjn.gradient_descent(lambda w, batch: jnp.sum(w * batch), rate)
    state, info = jitted(descent.step)(descent.init(jnp.ones(2, dtype)), jnp.array([1.0, 0.0], dtype))
    # Either the step stops at the edge or it says that it must not be taken.
    assert jnp.isfinite(state.params).all() or not jnp.isfinite(info.gradient_norm)


@pytest.mark.parametrize("rate", [jnp.inf, jnp.nan, -jnp.inf])
def test_a_traced_rate_that_is_not_finite_makes_a_step_that_must_not_be_taken(rate):
    def seen(rate):
        descent = mjn.gradient_descent(squared_distance, rate)
        return descent.step(descent.init(jnp.ones(2)), 0.0)[1]

    info = jax.jit(seen)(rate)
    assert not (jnp.isfinite(info.loss) and jnp.isfinite(info.gradient_norm))
    assert jnp.isfinite(jax.jit(seen)(0.1).loss)


@pytest.mark.parametrize("rate", [0, -0.0, -1e-9, -1, float("nan"), float("inf"), float("-inf"), np.float32(0)])
def test_a_rate_that_is_not_positive_and_finite_is_refused(rate):
    with pytest.raises(
        ValueError, match=r"gradient_descent: learning_rate: got .*; expected a positive, finite float32"
    ):
        mjn.gradient_descent(squared_distance, rate)
    with pytest.raises(ValueError, match=r"expected a positive, finite float32"):
        mjn.gradient_descent(squared_distance, jnp.float32(rate))


@pytest.mark.parametrize("rate", ["0.1", True, None, [0.1], (0.1,), 1j, np.True_, {"rate": 0.1}, lambda step: 0.1])
def test_a_rate_that_is_no_number_is_refused(rate):
    with pytest.raises(TypeError, match=r"gradient_descent: learning_rate: got .*; expected a positive number"):
        mjn.gradient_descent(squared_distance, rate)


@pytest.mark.parametrize("rate", [np.ones(2), jnp.ones(2), np.ones((1, 1)), jnp.ones(1), np.ones(0)])
def test_a_rate_that_is_several_numbers_is_refused(rate):
    with pytest.raises(
        ValueError, match=r"gradient_descent: learning_rate: got an array of shape \(.*\); expected one"
    ):
        mjn.gradient_descent(squared_distance, rate)


@pytest.mark.parametrize("rate", [1e39, 1e-50])
def test_a_rate_beyond_the_default_dtype_is_refused(rate):
    with pytest.raises(ValueError, match="learning_rate"):
        mjn.gradient_descent(squared_distance, rate)


@pytest.mark.parametrize("rate", [np.array(True), jnp.array(True), np.array(1j)])
def test_a_rate_in_an_array_of_no_real_numbers_is_refused(rate):
    with pytest.raises(TypeError, match="learning_rate"):
        mjn.gradient_descent(squared_distance, rate)


@pytest.mark.parametrize("rate", [1, 0.5, np.float32(0.5), np.float64(0.5), np.int32(1), np.array(0.5), jnp.array(0.5)])
def test_any_kind_of_number_serves_as_a_rate_and_all_are_kept_alike(rate):
    optimizer = mjn.gradient_descent(squared_distance, rate).init(1.0).optimizer
    assert (optimizer, optimizer.dtype, optimizer.weak_type) == (float(rate), jnp.float32, False)


# --- optax -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "momentum", "chain"])
def test_an_optax_descent_is_optax_by_hand(name):
    optimizer = OPTIMIZERS[name]
    descent = mjn.optax_descent(MEAN_SQUARED_ERROR, optimizer)
    step = jitted(descent.step)

    @jax.jit
    def by_hand(params, optimizer_state):
        slope = jax.grad(MEAN_SQUARED_ERROR)(params, POINTS)
        updates, optimizer_state = optimizer.update(slope, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    state, params, optimizer_state = descent.init(PARAMS), PARAMS, optimizer.init(PARAMS)
    for _ in range(20):
        state, _ = step(state, POINTS)
        params, optimizer_state = by_hand(params, optimizer_state)
    chex.assert_trees_all_close(state.params, params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(state.optimizer, optimizer_state, rtol=1e-4, atol=1e-6)


def test_lbfgs_gets_the_loss_and_the_objective_that_its_line_search_asks_for():
    descent = mjn.optax_descent(MEAN_SQUARED_ERROR, OPTIMIZERS["lbfgs"])
    state, step = descent.init(PARAMS), jitted(descent.step)
    losses = []
    for _ in range(30):
        state, info = step(state, POINTS)
        losses.append(float(info.loss))
    assert losses[-1] < 0.01 * losses[0]
    way = next(
        (i for i, loss in enumerate(losses) if loss < 1e-6 * losses[0]), len(losses)
    )  # from there on it is noise
    assert way > 5 and (np.diff(losses[:way]) <= 0).all(), "its line search lets no step go uphill"


def test_an_update_that_is_not_finite_makes_a_step_that_must_not_be_taken():
    broken = optax.GradientTransformation(
        lambda params: (), lambda slope, state, params=None: (jax.tree.map(lambda s: s / 0, slope), state)
    )
    descent = mjn.optax_descent(squared_distance, broken)
    _, info = descent.step(descent.init(jnp.ones(2)), 0.0)
    assert (info.loss, jnp.isnan(info.gradient_norm)) == (2, True)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_an_optax_descent_keeps_the_params_dtype(dtype):
    with jax.enable_x64(dtype is jnp.float64):
        descent = mjn.optax_descent(squared_distance, optax.adam(0.1))
        state, _ = jitted(descent.step)(descent.init(jnp.ones(2, dtype)), 0.0)
        assert state.params.dtype == dtype
        assert (state.params < 1).all()


@pytest.mark.parametrize("optimizer", [0.1, "sgd", optax.sgd, None, (lambda p: p, lambda g: g)])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises(TypeError, match=r"optax_descent: optimizer: got \w+; expected an optax.GradientTransformation"):
        mjn.optax_descent(squared_distance, optimizer)


def test_without_optax_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ImportError, match=r'pip install "minijaxnet\[optax\]"'):
        mjn.optax_descent(squared_distance, OPTIMIZERS["adam"])
