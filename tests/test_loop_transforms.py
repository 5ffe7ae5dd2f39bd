"""The loop under vmap, jit and jvp, with keys, and in every dtype."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.descents import PARAMS, POINTS, as_in, bowl, descend_from, halving, squared_distance
from kits.marks import SLOW

import minijaxnet as mjn

KEY = jax.random.wrap_key_data(np.array([0, 11], np.uint32))
EPS = float(np.finfo(np.float32).eps)


def one_of(tree, index):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


# --- vmap -------------------------------------------------------------------------------------------------------------

# Slow ones, some that come to rest, some that diverge; none of those between, where a rounding may grow to anything.
RATES = np.array([1e-3, 0.01, 0.02, 1e10, 1e20, 1e38, np.inf, np.nan], np.float32)
STEPS = 120


def run_at_rate(rate, params=PARAMS, until_flat=2.0):
    return descend_from(params, rate, steps=STEPS, until_flat=until_flat)


@pytest.fixture(scope="module")
def replicas():
    return jax.device_get(jax.jit(jax.vmap(run_at_rate))(RATES))


def test_under_vmap_each_replica_descends_as_if_it_were_alone(replicas):
    states, traces = replicas
    assert set(traces.status.tolist()) == {mjn.FLAT, mjn.OUT_OF_STEPS, mjn.DIVERGED}, (
        "the rates should make every ending happen"
    )
    for i, rate in enumerate(RATES[:-2]):
        state, trace = run_at_rate(rate)
        assert state.step == trace.steps_taken
        assert (traces.steps_taken[i], traces.status[i]) == (trace.steps_taken, trace.status)
        chex.assert_trees_all_close(one_of(states.params, i), state.params, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(traces.loss[i], trace.loss, rtol=1e-4)
        np.testing.assert_allclose(traces.gradient_norm[i], trace.gradient_norm, rtol=1e-3)
    for i in (-1, -2):  # a rate that is not finite diverges before its first step
        assert (traces.status[i], traces.steps_taken[i]) == (mjn.DIVERGED, 0)
        chex.assert_trees_all_equal(one_of(states.params, i), PARAMS)


def test_under_vmap_a_replica_that_stopped_keeps_its_last_finite_state_while_others_go_on(replicas):
    states, traces = replicas
    chex.assert_tree_all_finite(states.params)
    assert traces.steps_taken.min() < traces.steps_taken.max()
    np.testing.assert_array_equal(states.step, traces.steps_taken)
    taken = np.arange(STEPS) < traces.steps_taken[:, None]
    np.testing.assert_array_equal(np.isfinite(traces.loss), taken)
    np.testing.assert_array_equal(np.isnan(traces.loss), ~taken)
    np.testing.assert_array_equal(np.isnan(traces.gradient_norm), ~taken)


def run_in_bowl(start, rate, until_flat, target):
    descent = mjn.gradient_descent(bowl, rate, has_aux=True)
    return mjn.descend(descent, descent.init(start), target, steps=9, until_flat=until_flat)[1]


def test_vmap_goes_over_start_until_flat_and_batch_as_well():
    replicas = np.float32([[1, 0.25, 0.5, 0], [3, 0.25, 2, 1], [3, 0.125, 0, -1]])
    traces = jax.jit(jax.vmap(run_in_bowl))(*replicas.T)
    for i, replica in enumerate(replicas):
        chex.assert_trees_all_equal(one_of(traces, i), run_in_bowl(*replica))
    assert len(np.unique(traces.steps_taken)) == 3


def equations_in(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations_in(inner)


def test_under_vmap_no_step_touches_the_whole_history():
    # Where the condition of a loop differs between replicas, vmap selects every carry at each step: time squared in the
    # number of steps. So no select in the loop's body may be as long as the history.
    steps = 1_000
    run = jax.vmap(jax.vmap(lambda rate: descend_from(PARAMS, rate, steps=steps)[1].loss))
    jaxpr = jax.make_jaxpr(run)(np.ones((2, 3), np.float32)).jaxpr
    loops = [e for e in equations_in(jaxpr) if e.primitive.name == "while"]
    assert loops, "the descent is a loop"
    for each in loops:
        long = [v.aval.shape for v in each.invars if max(v.aval.shape, default=0) >= steps]
        assert long, "the history is among what the loop carries"
        assert each.params["cond_jaxpr"].out_avals[0].shape == ()
        selects = [e for e in equations_in(each.params["body_jaxpr"].jaxpr) if e.primitive.name == "select_n"]
        assert selects, "replicas freeze one by one, by a select of their state"
        assert all(max(e.outvars[0].aval.shape, default=0) < steps for e in selects)


# --- jit, jvp, closures -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_jvp_through_a_descent_agrees_with_a_central_difference():
    with jax.enable_x64(True):
        params = as_in("float64", PARAMS)

        def last_loss_and_weight(x):
            start = jax.tree.map(lambda leaf: leaf * (1 + x), params)
            state, trace = descend_from(start, 0.02 * (1 + x), steps=50)
            return trace.loss[-1] + state.params[0]["weights"][0, 1]

        _, tangent = jax.jvp(last_loss_and_weight, (jnp.float64(0.1),), (jnp.float64(1.0),))
        h = 1e-5  # the difference errs by h^2 of the third derivative and by eps / h: 1e-10 each, of values near 1
        difference = (last_loss_and_weight(0.1 + h) - last_loss_and_weight(0.1 - h)) / (2 * h)
        assert abs(float(difference)) > 0.1
        assert float(tangent) == pytest.approx(float(difference), rel=1e-7)


def test_the_jvp_of_a_stopped_replica_is_finite():
    def rest(rate):
        state, _ = descend_from(np.ones(2, np.float32), rate, squared_distance, 0.0, steps=20, until_flat=0.5)
        return state.params

    rates = np.float32([0.1, 0.25])
    _, tangents = jax.jit(lambda rates: jax.jvp(jax.vmap(rest), (rates,), (jnp.ones(2),)))(rates)
    # After n steps the weight is (1 - 2 rate)^n.
    expected = [[-2 * n * (1 - 2 * r) ** (n - 1)] * 2 for n, r in ((8, 0.1), (3, 0.25))]
    np.testing.assert_allclose(tangents, expected, rtol=1e-5)


def test_reverse_mode_is_refused_by_jax_with_a_reason():
    with pytest.raises(ValueError, match=r"Reverse-mode differentiation does not work for lax\.while_loop"):
        jax.eval_shape(jax.grad(lambda w: mjn.descend(halving(), halving().init(w), 0.0, steps=3)[1].loss[-1]), 1.0)


def to_target(target):
    return descend_from(0.0, 0.25, lambda w, b: (w - target) ** 2, (), steps=50)[0].params


@pytest.mark.parametrize(
    "mapped",
    [lambda f: lambda targets: [jax.jit(f)(target) for target in targets], SLOW(jax.vmap)],
    ids=["jit", "vmap"],
)
def test_an_objective_may_close_over_what_jit_and_vmap_trace(mapped):
    targets = np.float32([3, -1, 0.5])
    np.testing.assert_allclose(mapped(to_target)(targets), targets, rtol=1e-6)


# --- Keys -------------------------------------------------------------------------------------------------------------


def drawn(weight, batch, key):
    """A number of the key beside the weight."""
    return weight + jax.random.key_data(key)[-1] % 1024 / 1024


def losses(key):
    descent = mjn.gradient_descent(drawn, 1e-6)  # hardly moves, so that a loss differs by what is drawn alone
    return mjn.descend(descent, descent.init(1.0, key), (), steps=40)[1].loss


def test_what_is_drawn_is_reproducible_and_differs_by_key_and_by_step_and_under_vmap_too():
    of_key, other = losses(KEY), losses(jax.random.key(12))
    np.testing.assert_array_equal(of_key, losses(jax.random.key(11)))
    assert (of_key != other).any()
    assert len(np.unique(np.round(of_key, 3))) > 5
    keys = jax.random.wrap_key_data(np.array([[0, 12], [0, 11]], np.uint32))
    np.testing.assert_allclose(jax.jit(jax.vmap(losses))(keys), [other, of_key], rtol=64 * EPS)


def sampled(weight, batch, key):
    """Every other step, by chance, there is no gradient at all."""
    return jnp.square(weight) * (jax.random.key_data(key)[-1] % 2)


@pytest.mark.parametrize(
    "run", [mjn.descend, SLOW(jax.jit(mjn.descend, static_argnames=("descent", "steps")))], ids=["host", "jit"]
)
def test_until_flat_of_0_does_not_stop_a_descent_whose_gradient_is_only_a_sample(run):
    descent = mjn.gradient_descent(sampled, 0.1)
    for options in ({}, {"until_flat": 0.0}) if run is mjn.descend else ({"until_flat": 0.0},):
        _, trace = run(descent, descent.init(1.0, KEY), (), steps=30, **options)
        assert (trace.steps_taken, trace.status) == (30, mjn.OUT_OF_STEPS)
        assert 0 < (np.asarray(trace.gradient_norm) == 0).sum() < 30
    _, trace = run(descent, descent.init(1.0, KEY), (), steps=30, until_flat=1e-6)
    assert trace.status == mjn.FLAT


# --- Dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_params_and_losses_keep_their_dtype_and_the_norm_is_float32_at_least(dtype):
    with jax.enable_x64(dtype == "float64"):
        params, batch = as_in(dtype, (PARAMS, POINTS))
        state, trace = descend_from(params, 0.01, batch=batch, steps=50)
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(dtype)}
        assert trace.loss.dtype == dtype
        assert trace.gradient_norm.dtype == jnp.promote_types(dtype, jnp.float32)
        assert trace.status == mjn.OUT_OF_STEPS
        assert trace.loss[-1] < 0.7 * trace.loss[0]


def test_a_mixed_tree_keeps_each_leafs_dtype():
    with jax.enable_x64(True):
        params = {dtype: np.ones(2, dtype) for dtype in ("float16", "bfloat16", "float32", "float64")}

        def squares(params, batch):
            return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(params))

        state, trace = descend_from(params, 0.25, squares, (), steps=3)
        chex.assert_trees_all_equal(
            state.params, jax.tree.map(lambda leaf: leaf / leaf.dtype.type(8), params), strict=True
        )
        assert (trace.loss.dtype, trace.gradient_norm.dtype) == (np.float32, np.float64)


def test_under_jaxs_settings_that_look_for_errors_nothing_is_taken_for_one():
    objective = mjn.objective(mjn.mlp((3, 2)), mjn.softmax_cross_entropy)
    by_hand = mjn.mlp_gradient((3, 2), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)
    params = ({"weights": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)},)
    batch = jnp.ones((4, 3)), jnp.zeros(4, jnp.int32)
    flat = mjn.gradient_descent(lambda weight, batch: (weight - batch) ** 2, 0.5)
    with jax.debug_nans(True), jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for loss in (objective, mjn.with_gradient(objective, by_hand)):
            descent = mjn.gradient_descent(loss, 0.1)
            assert mjn.descend(descent, descent.init(params), batch, steps=2)[1].steps_taken == 2
        starts = np.float32([1.0, 2.0, 3.0])
        swept = mjn.sweep(lambda start: mjn.descend(flat, flat.init(start), 1.0, steps=9)[1], {"start": starts})
        assert swept.output.steps_taken.tolist() == [0, 1, 1]


def test_a_traced_flat_norm_that_is_nan_takes_no_step():
    descent = mjn.gradient_descent(lambda weight, batch: (weight - batch) ** 2, 0.1)
    run = jax.jit(lambda flat: mjn.descend(descent, descent.init(3.0), 1.0, steps=5, until_flat=flat)[1])
    assert (run(jnp.nan).status, run(jnp.nan).steps_taken) == (mjn.DIVERGED, 0)
    assert run(0.0).status == mjn.OUT_OF_STEPS


def test_no_steps_at_a_traced_rate_that_is_nan_are_out_of_steps_and_one_step_has_diverged():
    def status(rate, steps):
        descent = mjn.gradient_descent(lambda weight, batch: (weight - batch) ** 2, rate)
        return mjn.descend(descent, descent.init(3.0), 1.0, steps=steps)[1].status

    run = jax.jit(status, static_argnums=1)
    assert (run(jnp.nan, 0), run(jnp.nan, 1)) == (mjn.OUT_OF_STEPS, mjn.DIVERGED)
