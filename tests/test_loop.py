"""The loop: what it computes, how often it is traced and compiled, how it ends, and what JAX may do with it."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minijaxnet as mjn
from minijaxnet import feeds, loop
from minijaxnet.bench.cost import folded_loop
from minijaxnet.descent import DescentState, StepInfo

NETWORK = mjn.mlp((2, 4, 1), activation=jnp.tanh)
OBJECTIVE = mjn.objective(NETWORK, mjn.mean_squared_error)
PARAMS = NETWORK.init(jax.random.key(0))
POINTS = mjn.lesson_points()
RELU_OBJECTIVE = mjn.objective(mjn.mlp((2, 2, 1), bias=False), mjn.mean_squared_error)
RELU_PARAMS = (
    {"weights": jnp.array([[2.0, 1.0], [1.0, 2.0]])},
    {"weights": jnp.array([[1.0], [1.0]])},
)
KEY = jax.random.key(11)
EPS = float(np.finfo(np.float32).eps)


def bowl(weight, batch):
    """At a rate of 1 / 4 each step halves the weight, without rounding; its slope is twice the weight."""
    return jnp.sum(jnp.square(weight)), weight


HALVING = mjn.gradient_descent(bowl, 0.25, has_aux=True)


def descend_from(params, rate, *, objective=OBJECTIVE, batch=POINTS, **options):
    descent = mjn.gradient_descent(objective, rate)
    return mjn.descend(descent, descent.init(params), batch, **options)


def one_of(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def stacked(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.fixture
def chunk_steps(monkeypatch):
    """Sets how many steps a chunk has at most."""
    return functools.partial(monkeypatch.setattr, feeds, "CHUNK_STEPS")


@contextlib.contextmanager
def compilations():
    """The names of the programs that XLA compiles meanwhile."""
    names = []

    def listen(event, duration, **details):
        if event.endswith("backend_compile_duration"):
            names.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class Traced:
    """An objective that counts how often it is traced."""

    def __init__(self, objective):
        self.objective, self.times = objective, 0

    def __call__(self, *arguments):
        self.times += 1
        return self.objective(*arguments)


# --- One trace, one compilation --------------------------------------------------------------------------------------


def test_one_trace_and_one_compilation_serve_any_number_of_steps_any_rate_and_any_flat_norm():
    descend_from(PARAMS, 1e-3, steps=10)  # compiles the helpers that other objectives share
    objective = Traced(OBJECTIVE)
    with compilations() as names:
        descend_from(PARAMS, 1e-3, objective=objective, steps=10)
        assert len(names) == 1
        for steps, rate, until_flat in (
            (1_000, 1e-3, 0.0),
            (40_000, 1e-4, 0.0),
            (1, 0.3, 0.5),
            (0, 0.3, 1),
            (7, np.float64(0.01), np.float32(0.1)),
            (2, jnp.float32(0.1), jnp.float32(0)),
        ):
            descend_from(PARAMS, rate, objective=objective, steps=steps, until_flat=until_flat)
        state, _ = descend_from(PARAMS, 1e-3, objective=objective, steps=5)
        mjn.descend(mjn.gradient_descent(objective, 0.2), state, POINTS, steps=5)
    assert len(names) == 1
    assert objective.times == 1


def test_one_trace_and_one_compilation_serve_any_number_of_epochs(chunk_steps):
    chunk_steps(64)
    descent = mjn.gradient_descent(OBJECTIVE, 1e-3)
    mjn.descend_epochs(descent, descent.init(PARAMS), POINTS, KEY, batch_size=2, epochs=1)
    objective = Traced(OBJECTIVE)
    with compilations() as names:
        for epochs, rate in ((1, 0.1), (40, 1e-4), (3, 0.2)):  # 80 steps are more than a chunk
            descent = mjn.gradient_descent(objective, rate)
            mjn.descend_epochs(descent, descent.init(PARAMS), POINTS, KEY, batch_size=2, epochs=epochs)
    assert (len(names), objective.times) == (1, 1)


def test_one_optax_optimizer_on_one_objective_is_traced_once():
    objective, optimizer = Traced(OBJECTIVE), optax.adam(1e-3)
    for steps in (3, 30):
        descent = mjn.optax_descent(objective, optimizer)
        mjn.descend(descent, descent.init(PARAMS), POINTS, steps=steps)
    assert objective.times == 1


def test_a_jitted_descent_is_traced_once_for_any_rate():
    objective = Traced(OBJECTIVE)

    @jax.jit
    def run(rate):
        return descend_from(PARAMS, rate, objective=objective, steps=8)[1].loss

    losses = [run(rate) for rate in (0.01, 0.1, 0.2)]
    assert objective.times == 1
    assert len({float(loss[-1]) for loss in losses}) == 3


# --- The same numbers, however they are asked for --------------------------------------------------------------------

DESCENTS = {
    "gradient descent": mjn.gradient_descent(OBJECTIVE, 0.02),
    "adam": mjn.optax_descent(OBJECTIVE, optax.adam(0.02)),
    "keyed": mjn.gradient_descent(lambda params, batch, key: OBJECTIVE(params, batch) * jax.random.uniform(key), 0.02),
}
each_descent = pytest.mark.parametrize("name", DESCENTS)


def start_of(name, params=PARAMS):
    return DESCENTS[name].init(params, KEY if name == "keyed" else None)


def key_data(state):
    return state if state.key is None else state._replace(key=jax.random.key_data(state.key))


@each_descent
def test_137_and_then_863_steps_are_1_000_bit_for_bit(name):
    descent = DESCENTS[name]
    whole, trace = mjn.descend(descent, start_of(name), POINTS, steps=1_000)
    state, first = mjn.descend(descent, start_of(name), POINTS, steps=137)
    state, second = mjn.descend(descent, state, POINTS, steps=863)
    chex.assert_trees_all_equal(key_data(state), key_data(whole), strict=True)
    for field in ("loss", "gradient_norm"):
        parts = np.concatenate([getattr(first, field), getattr(second, field)])
        np.testing.assert_array_equal(parts, getattr(trace, field), strict=True)
    assert whole.step == 1_000


@each_descent
def test_several_chunks_are_one_bit_for_bit(name, chunk_steps):
    expected = mjn.descend(DESCENTS[name], start_of(name), POINTS, steps=100)
    for most in (1, 13) if name == "gradient descent" else (13,):
        chunk_steps(most)
        state, trace = mjn.descend(DESCENTS[name], start_of(name), POINTS, steps=100)
        chex.assert_trees_all_equal((key_data(state), trace), (key_data(expected[0]), expected[1]), strict=True)


def test_a_step_that_records_much_makes_small_chunks_and_the_same_trace(monkeypatch):
    descent = mjn.gradient_descent(
        lambda w, batch: (jnp.sum(w**2), {"path": w, "square": w[None] ** 2}), 0.1, has_aux=True
    )
    expected = mjn.descend(descent, descent.init(jnp.ones(8)), (), steps=50)
    assert expected[1].aux["square"].shape == (50, 1, 8)
    row_bytes = 4 * (1 + 1 + 8 + 8)
    monkeypatch.setattr(loop, "CHUNK_BYTES", 5 * row_bytes)
    state = descent.init(jnp.ones(8))
    assert 1 <= loop.chunk_capacity(descent.step, feeds.OneBatch(), state, ()) <= 5
    chex.assert_trees_all_equal(mjn.descend(descent, state, (), steps=50), expected, strict=True)
    monkeypatch.setattr(loop, "CHUNK_BYTES", 1)
    chex.assert_trees_all_equal(mjn.descend(descent, state, (), steps=50), expected, strict=True)


def test_on_a_cpu_the_smallest_networks_with_bias_are_one_native_function():
    if jax.default_backend() != "cpu":
        pytest.skip("XLA does so on the CPU only")
    network = mjn.mlp((2, 2, 1))
    descent = mjn.gradient_descent(mjn.objective(network, mjn.mean_squared_error), 0.01)
    state, flat, status = descent.init(network.init(jax.random.key(0))), np.float32(0), np.int32(mjn.OUT_OF_STEPS)
    arguments = (descent.step, feeds.OneBatch(), 512, state, mjn.lesson_points(), 9, flat, status)
    assert folded_loop(loop.run_chunk.lower(*arguments).compile())


def test_more_steps_than_the_largest_chunk_are_all_taken_and_recorded():
    steps = 2 * feeds.CHUNK_STEPS + 5
    state, trace = descend_from(PARAMS, 1e-4, steps=steps)
    assert (state.step, trace.steps_taken, trace.status) == (steps, steps, mjn.OUT_OF_STEPS)
    assert trace.loss.shape == (steps,)
    chex.assert_tree_all_finite(trace.loss)
    assert (np.diff(trace.loss[::1000]) < 0).all()


@pytest.mark.parametrize(
    ("name", "x64"), [("gradient descent", False), ("gradient descent", True), ("adam", True), ("keyed", False)]
)
def test_the_loop_is_a_python_loop_of_jitted_steps_to_rounding(name, x64):
    # The same operations in the same order; a compiler may fuse them otherwise inside the loop. A descent contracts, so
    # that what one step rounds differently does not grow.
    with jax.enable_x64(x64):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64 if x64 else np.float32), PARAMS)
        descent = DESCENTS[name]
        state, step = start_of(name, params), jax.jit(descent.step)
        looped, trace = mjn.descend(descent, state, POINTS, steps=60)
        infos = []
        for _ in range(60):
            state, info = step(state, POINTS)
            infos.append(jax.tree.map(np.asarray, info))
        eps = float(jnp.finfo(looped.params[0]["weights"].dtype).eps)
        chex.assert_trees_all_close(looped.params, state.params, rtol=64 * eps, atol=64 * eps)
        assert looped.step == state.step == 60
        for field in ("loss", "gradient_norm"):
            expected = np.array([getattr(info, field) for info in infos])
            np.testing.assert_allclose(getattr(trace, field), expected, rtol=256 * eps)
            assert getattr(trace, field).dtype == expected.dtype


def test_row_k_is_what_step_k_saw_before_it_moved():
    descent = mjn.gradient_descent(OBJECTIVE, 0.02)
    state, trace = mjn.descend(descent, descent.init(PARAMS), POINTS, steps=6)
    value_and_norm = jax.jit(lambda p: (OBJECTIVE(p, POINTS), optax.tree.norm(jax.grad(OBJECTIVE)(p, POINTS))))
    for k in range(6):
        before, _ = mjn.descend(descent, descent.init(PARAMS), POINTS, steps=k)
        seen = (trace.loss[k], trace.gradient_norm[k])
        chex.assert_trees_all_close(seen, value_and_norm(before.params), rtol=32 * EPS)
    assert value_and_norm(state.params)[0] < trace.loss[-1]


def test_the_lesson_descends_from_a_loss_of_37_5():
    state, trace = descend_from(RELU_PARAMS, 1e-3, objective=RELU_OBJECTIVE, steps=1_000)
    assert trace.loss[0] == 37.5
    assert trace.loss[-1] < 7
    assert RELU_OBJECTIVE(state.params, POINTS) <= trace.loss[-1]


# --- How it ends -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(exponent=st.integers(0, 12), steps=st.integers(0, 12), between=st.floats(1, 1.9))
def test_a_descent_stops_before_the_first_step_whose_slope_is_at_most_until_flat(exponent, steps, between):
    # The norms are 2, 1, 1/2, 1/4, ...: at most between * 2^(1 - exponent) from step `exponent` on.
    until_flat = between * 2.0 ** (1 - exponent)
    state, trace = mjn.descend(HALVING, HALVING.init(1.0), (), steps=steps, until_flat=until_flat)
    taken = min(steps, exponent)
    assert trace.steps_taken == state.step == taken
    assert trace.status == (mjn.FLAT if exponent < steps else mjn.OUT_OF_STEPS)
    assert state.params == 2.0**-taken
    expected = np.where(np.arange(steps) < taken, 0.5 ** np.arange(steps), np.nan)
    np.testing.assert_array_equal(trace.aux, expected)
    np.testing.assert_array_equal(trace.gradient_norm, 2 * expected)
    np.testing.assert_array_equal(trace.loss, expected**2)


def test_a_descent_may_end_anywhere_in_a_chunk(chunk_steps):
    chunk_steps(4)
    for exponent in range(14):
        state, trace = mjn.descend(HALVING, HALVING.init(1.0), (), steps=13, until_flat=2.0 ** (1 - exponent))
        assert trace.steps_taken == state.step == min(exponent, 13)
        assert trace.status == (mjn.FLAT if exponent < 13 else mjn.OUT_OF_STEPS)
        assert np.isfinite(trace.loss).sum() == min(exponent, 13)
        assert state.params == 2.0 ** -min(exponent, 13)


@pytest.mark.parametrize("chunk", [1, 2, 4, 8, 2**15])
def test_a_descent_may_diverge_anywhere_in_a_chunk(chunk, chunk_steps):
    chunk_steps(chunk)

    def cliff(weight, batch):
        return weight + jnp.where(weight < -2.5, jnp.nan, 0)

    descent = mjn.gradient_descent(cliff, 1.0)
    state, trace = mjn.descend(descent, descent.init(2.0), (), steps=9)  # 2, 1, 0, -1, -2, then over the cliff at -3
    assert (trace.steps_taken, state.step, state.params, trace.status) == (5, 5, -3, mjn.DIVERGED)
    np.testing.assert_array_equal(trace.loss, [2, 1, 0, -1, -2, *[np.nan] * 4])


on_the_host_and_under_jit = pytest.mark.parametrize(
    "run", [mjn.descend, jax.jit(mjn.descend, static_argnames=("descent", "steps"))], ids=["host", "jit"]
)


@on_the_host_and_under_jit
def test_past_the_last_step_rows_are_nan_and_counts_0(run):
    def with_aux(weight, batch):
        return weight**2, {"float": weight, "int": jnp.int32(7), "pair": (weight, jnp.ones(3))}

    descent = mjn.gradient_descent(with_aux, 0.5, has_aux=True)  # one step to the minimum
    _, trace = run(descent, descent.init(3.0), (), steps=3)
    assert (trace.steps_taken, trace.status) == (1, mjn.FLAT)
    nan = np.nan
    expected = {
        "float": np.array([3, nan, nan], np.float32),
        "int": np.array([7, 0, 0], np.int32),
        "pair": (np.array([3, nan, nan], np.float32), np.repeat(np.array([[1], [nan], [nan]], np.float32), 3, 1)),
    }
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), jax.device_get(trace.aux), expected)
    np.testing.assert_array_equal(trace.loss, [9, nan, nan])
    np.testing.assert_array_equal(trace.gradient_norm, [6, nan, nan])


@on_the_host_and_under_jit
def test_aux_of_any_dtype_is_recorded_in_it(run):
    dtypes = (jnp.bool_, jnp.uint8, jnp.int32, jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64)
    aux = {jnp.dtype(dtype).name: jnp.ones((), dtype) for dtype in dtypes}
    descent = mjn.gradient_descent(lambda weight, batch: (weight**2, aux), 0.5, has_aux=True)
    _, trace = run(descent, descent.init(3.0), (), steps=3)
    assert {name: leaf.dtype.name for name, leaf in trace.aux.items()} == {name: name for name in aux}


@pytest.mark.parametrize("rate", [1e3, 1e10, 1e30, 1e38])
@pytest.mark.parametrize(
    "objective_and_params", [(OBJECTIVE, PARAMS), (RELU_OBJECTIVE, RELU_PARAMS)], ids=["tanh", "relu"]
)
def test_a_descent_that_diverges_keeps_finite_params_and_says_so(rate, objective_and_params):
    objective, params = objective_and_params
    state, trace = descend_from(params, rate, objective=objective, steps=100)
    chex.assert_tree_all_finite(state.params)
    taken = int(trace.steps_taken)
    assert trace.status in (mjn.DIVERGED, mjn.FLAT)  # relu may fall asleep on its way, and then all is flat
    assert (trace.status == mjn.DIVERGED) or objective is RELU_OBJECTIVE
    assert np.isfinite(trace.loss[:taken]).all()
    assert np.isnan(trace.loss[taken:]).all()
    assert state.step == taken < 100


@pytest.mark.parametrize("worst", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_is_no_flat_place(worst):
    def barrier(weight, batch):
        return jnp.where(weight > 1, worst, weight**2)

    _, trace = descend_from(2.0, 0.1, objective=barrier, batch=(), steps=3)
    assert trace.status == mjn.DIVERGED


def test_params_in_float16_stay_finite_at_a_rate_of_1e5():
    start = jnp.ones(2, jnp.float16)
    state, _ = descend_from(
        start, 1e5, objective=lambda w, b: jnp.sum(w * b), batch=jnp.array([1, 0], jnp.float16), steps=3
    )
    chex.assert_tree_all_finite(state.params)


def test_until_flat_of_0_stops_where_the_slope_vanishes_and_infinity_stops_at_once():
    state, trace = mjn.descend(HALVING, HALVING.init(0.0), (), steps=5)
    assert (state.step, trace.steps_taken, trace.status) == (0, 0, mjn.FLAT)
    state, trace = mjn.descend(HALVING, HALVING.init(1.0), (), steps=5, until_flat=float("inf"))
    assert (state.step, trace.status, state.params) == (0, mjn.FLAT, 1)


def test_no_steps_leave_everything_as_it_is():
    descent = mjn.gradient_descent(OBJECTIVE, 0.1)
    start = descent.init(PARAMS)
    for run in (mjn.descend, jax.jit(mjn.descend, static_argnames=("descent", "steps"))):
        state, trace = run(descent, start, POINTS, steps=0)
        chex.assert_trees_all_equal(state, start, strict=True)
        assert trace.loss.shape == trace.gradient_norm.shape == (0,)
        assert (trace.steps_taken, trace.status) == (0, mjn.OUT_OF_STEPS)
    state, trace = mjn.descend_epochs(descent, start, POINTS, KEY, batch_size=3, epochs=0)
    chex.assert_trees_all_equal(state, start, strict=True)
    assert trace.loss.shape == (0,)


# --- vmap ------------------------------------------------------------------------------------------------------------

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
    assert set(traces.status.tolist()) == set(mjn.Status), "the rates should make every ending happen"
    for i, rate in enumerate(RATES[:-2]):
        state, trace = run_at_rate(rate)
        assert (traces.steps_taken[i], traces.status[i]) == (trace.steps_taken, trace.status)
        assert states.step[i] == state.step == trace.steps_taken
        chex.assert_trees_all_close(one_of(states.params, i), state.params, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(traces.loss[i], trace.loss, rtol=1e-4)
        np.testing.assert_allclose(traces.gradient_norm[i], trace.gradient_norm, rtol=1e-3)


def test_under_vmap_a_rate_that_is_not_finite_diverges_before_its_first_step(replicas):
    states, traces = replicas
    for i in (-1, -2):
        assert (traces.status[i], traces.steps_taken[i], states.step[i]) == (mjn.DIVERGED, 0, 0)
        chex.assert_trees_all_equal(one_of(states.params, i), jax.device_get(PARAMS))


def test_under_vmap_a_replica_that_stopped_keeps_its_last_finite_state_while_others_go_on(replicas):
    states, traces = replicas
    chex.assert_tree_all_finite(states.params)
    assert traces.steps_taken.min() < traces.steps_taken.max()
    for i, taken in enumerate(traces.steps_taken):
        assert states.step[i] == taken
        assert np.isfinite(traces.loss[i, :taken]).all()
        assert np.isnan(traces.loss[i, taken:]).all()
        assert np.isnan(traces.gradient_norm[i, taken:]).all()


def test_vmap_goes_over_start_until_flat_and_batch_as_well():
    starts = stacked(*(NETWORK.init(jax.random.key(seed)) for seed in range(2)))
    batches = stacked(POINTS, mjn.Batch(POINTS.x, 2 * POINTS.y))

    def run(params, until_flat, batch):
        return descend_from(params, 0.02, batch=batch, steps=40, until_flat=until_flat)[1]

    traces = jax.jit(jax.vmap(run))(starts, jnp.array([1.0, 20.0]), batches)
    for i, until_flat in enumerate((1.0, 20.0)):
        alone = run(one_of(starts, i), until_flat, one_of(batches, i))
        assert (traces.steps_taken[i], traces.status[i]) == (alone.steps_taken, alone.status)
        np.testing.assert_allclose(traces.loss[i], alone.loss, rtol=1e-4)


def test_vmap_nests_in_any_order():
    starts, rates = jnp.array([1.0, 2.0, 8.0]), jnp.array([0.25, 0.125])

    def run(start, rate):
        descent = mjn.gradient_descent(bowl, rate, has_aux=True)
        return mjn.descend(descent, descent.init(start), (), steps=9, until_flat=0.5)[1]

    rates_inside = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(starts, rates)
    starts_inside = jax.vmap(jax.vmap(run, (0, None)), (None, 0))(starts, rates)
    chex.assert_shape(rates_inside.loss, (3, 2, 9))
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), starts_inside), rates_inside)
    for i, start in enumerate(starts):
        for j, rate in enumerate(rates):
            alone = run(start, rate)  # powers of a half and of three quarters, which do not round
            chex.assert_trees_all_equal(one_of(rates_inside, (i, j)), jax.tree.map(jnp.asarray, alone))
    assert len(np.unique(rates_inside.steps_taken)) > 3


def equations_in(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations_in(inner)


@pytest.mark.parametrize("transform", [jax.vmap, lambda f: jax.vmap(jax.vmap(f))], ids=["vmap", "vmap of vmap"])
def test_under_vmap_no_step_touches_the_whole_history(transform):
    # Where the condition of a loop differs between replicas, vmap selects every carry at each step: time squared in the
    # number of steps. So no select in the loop's body may be as long as the history.
    steps = 1_000
    rates = jnp.ones((2, 3) if transform is not jax.vmap else 3)
    run = transform(lambda rate: descend_from(PARAMS, rate, steps=steps)[1].loss)
    loops = [e for e in equations_in(jax.make_jaxpr(run)(rates).jaxpr) if e.primitive.name == "while"]
    assert loops, "the descent is a loop"
    for each in loops:
        long = [v.aval.shape for v in each.invars if max(v.aval.shape, default=0) >= steps]
        assert long, "the history is among what the loop carries"
        assert each.params["cond_jaxpr"].out_avals[0].shape == ()
        selects = [e for e in equations_in(each.params["body_jaxpr"].jaxpr) if e.primitive.name == "select_n"]
        assert selects, "replicas freeze one by one, by a select of their state"
        assert all(max(e.outvars[0].aval.shape, default=0) < steps for e in selects)


# --- jit, jvp, closures ----------------------------------------------------------------------------------------------


def test_a_jitted_descent_is_the_same_as_the_host_s():
    state, trace = run_at_rate(0.02)
    jitted_state, jitted_trace = jax.jit(run_at_rate)(0.02)
    chex.assert_trees_all_close(jitted_state, state, rtol=16 * EPS, atol=16 * EPS)
    chex.assert_trees_all_close(jitted_trace, trace, rtol=64 * EPS)
    assert (jitted_trace.steps_taken, jitted_trace.status) == (trace.steps_taken, trace.status)


@pytest.mark.parametrize(
    "through",
    [lambda f: f, lambda f: jax.jit(lambda x: jax.vmap(f)(jnp.asarray(x)[None])[0])],
    ids=["plain", "vmap in jit"],
)
def test_jvp_through_a_descent_agrees_with_a_central_difference(through):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS)

        @through
        def last_loss_and_weight(x):
            start = jax.tree.map(lambda leaf: leaf * (1 + x), params)
            state, trace = descend_from(start, 0.02 * (1 + x), steps=50)
            return trace.loss[-1] + state.params[0]["weights"][0, 1]

        _, slope = jax.jvp(last_loss_and_weight, (jnp.float64(0.1),), (jnp.float64(1.0),))
        h = 1e-5  # the difference errs by h^2 of the third derivative and by eps / h: 1e-10 each, of values near 1
        difference = (last_loss_and_weight(0.1 + h) - last_loss_and_weight(0.1 - h)) / (2 * h)
        assert abs(float(difference)) > 0.1
        assert float(slope) == pytest.approx(float(difference), rel=1e-7)


def test_the_jvp_of_a_stopped_replica_is_finite():
    def rest(rate):
        state, _ = descend_from(jnp.ones(2), rate, objective=lambda w, b: jnp.sum(w**2), steps=20, until_flat=0.5)
        return state.params

    rates = jnp.array([0.1, 0.25])
    _, slopes = jax.jvp(jax.vmap(rest), (rates,), (jnp.ones(2),))
    # After n steps the weight is (1 - 2 rate)^n.
    expected = [[-2 * n * (1 - 2 * r) ** (n - 1)] * 2 for n, r in ((8, 0.1), (3, 0.25))]
    np.testing.assert_allclose(slopes, expected, rtol=1e-5)


def test_a_sound_descent_passes_with_debug_nans():
    with jax.debug_nans(True):
        assert descend_from(1.0, 0.25, objective=lambda w, b: w**2, batch=(), steps=3)[1].steps_taken == 3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16, jnp.float64])
def test_a_descent_passes_under_strict_dtype_promotion(dtype):
    with jax.enable_x64(dtype is jnp.float64), jax.numpy_dtype_promotion("strict"):
        start = jnp.ones((), dtype)
        assert descend_from(start, 0.25, objective=lambda w, b: w**2, batch=(), steps=3)[1].steps_taken == 3


def test_reverse_mode_is_refused_by_jax_with_a_reason():
    with pytest.raises(ValueError, match=r"Reverse-mode differentiation does not work for lax\.while_loop"):
        jax.grad(lambda start: mjn.descend(HALVING, HALVING.init(start), (), steps=3)[1].loss[-1])(1.0)


def test_an_objective_may_close_over_what_jit_traces():
    @jax.jit
    def run(target):
        return descend_from(0.0, 0.25, objective=lambda w, b: (w - target) ** 2, batch=(), steps=50)[0].params

    for target in (3.0, -1.0):
        assert run(target) == pytest.approx(target)


def to_target(target):
    return descend_from(0.0, 0.25, objective=lambda w, b: (w - target) ** 2, batch=(), steps=50)[0].params


def test_an_objective_may_close_over_what_vmap_traces():
    targets = jnp.array([3.0, -1.0, 0.5])
    np.testing.assert_allclose(jax.vmap(to_target)(targets), targets, rtol=1e-6)


def test_an_objective_may_close_over_what_jvp_traces():
    end, slope = jax.jvp(to_target, (3.0,), (1.0,))
    assert (float(end), float(slope)) == (pytest.approx(3), pytest.approx(1))


# --- Keys ------------------------------------------------------------------------------------------------------------


def dropout(params, batch, key):
    kept = jax.random.bernoulli(key, 0.5, (4,))
    hidden = jnp.tanh(batch.x @ params[0]["weights"] + params[0]["bias"]) * kept * 2
    return mjn.mean_squared_error(hidden @ params[1]["weights"] + params[1]["bias"], batch.y)


def test_dropout_is_reproducible_and_differs_by_key_and_by_step():
    descent = mjn.gradient_descent(dropout, 1e-6)  # hardly moves, so that a loss differs by what is dropped alone

    def losses(key):
        return mjn.descend(descent, descent.init(PARAMS, key), POINTS, steps=40)[1].loss

    np.testing.assert_array_equal(losses(KEY), losses(jax.random.key(11)))
    assert (losses(KEY) != losses(jax.random.key(12))).any()
    assert len(np.unique(np.round(losses(KEY), 3))) > 5
    replicas = jax.jit(jax.vmap(losses))(jnp.stack([jax.random.key(12), KEY]))
    np.testing.assert_allclose(replicas[1], losses(KEY), rtol=64 * EPS)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(1), jax.random.key(1, impl="rbg")])
def test_any_kind_of_key_serves(key):
    descent = mjn.gradient_descent(lambda weight, batch, key: weight * jax.random.uniform(key), 0.01)
    state, trace = mjn.descend(descent, descent.init(1.0, key), (), steps=5)
    assert trace.steps_taken == 5
    assert (state.key == key).all()


def sampled(weight, batch, key):
    """Every other step, by chance, there is no slope at all."""
    return jnp.square(weight) * jax.random.bernoulli(key)


def test_until_flat_of_0_does_not_stop_a_descent_whose_slope_is_only_a_sample():
    descent = mjn.gradient_descent(sampled, 0.1)
    for run in (mjn.descend, jax.jit(mjn.descend, static_argnames=("descent", "steps"))):
        for options in ({}, {"until_flat": 0.0}):
            _, trace = run(descent, descent.init(1.0, KEY), (), steps=30, **options)
            assert (trace.steps_taken, trace.status) == (30, mjn.OUT_OF_STEPS)
            assert 0 < (trace.gradient_norm == 0).sum() < 30
        _, trace = run(descent, descent.init(1.0, KEY), (), steps=30, until_flat=1e-6)
        assert trace.status == mjn.FLAT


# --- Dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float64])
def test_params_and_losses_keep_their_dtype_and_the_norm_is_float32_at_least(dtype):
    with jax.enable_x64(dtype is jnp.float64):
        params, batch = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), (PARAMS, POINTS))
        state, trace = descend_from(params, 0.01, batch=batch, steps=50)
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(dtype)}
        assert trace.loss.dtype == dtype
        assert trace.gradient_norm.dtype == jnp.promote_types(dtype, jnp.float32)
        assert trace.status == mjn.OUT_OF_STEPS
        assert trace.loss[-1] < 0.7 * trace.loss[0]


def test_a_mixed_tree_keeps_each_leafs_dtype():
    with jax.enable_x64(True):
        params = {str(jnp.dtype(t)): jnp.ones(2, t) for t in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)}

        def squares(params, batch):
            return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(params))

        state, trace = descend_from(params, 0.25, objective=squares, batch=(), steps=3)
        chex.assert_trees_all_equal(state.params, jax.tree.map(lambda leaf: leaf / 8, params), strict=True)
        assert (trace.loss.dtype, trace.gradient_norm.dtype) == (np.float32, np.float64)


# --- State: left alone, checked, of any kind -------------------------------------------------------------------------


@each_descent
def test_the_caller_s_state_and_batch_are_left_as_they_are(name):
    state = start_of(name)
    before = jax.device_get(key_data(state))
    first = mjn.descend(DESCENTS[name], state, POINTS, steps=10)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, POINTS, PARAMS)))
    chex.assert_trees_all_equal(key_data(state), before)
    second = mjn.descend(DESCENTS[name], state, POINTS, steps=10)
    chex.assert_trees_all_equal(key_data(first[0]), key_data(second[0]))
    mjn.descend(DESCENTS[name], first[0], POINTS, steps=1)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(first[0]))


def test_leaves_that_share_a_buffer_are_no_trouble():
    weight = jnp.ones(3)
    state, _ = descend_from(
        {"a": weight, "b": weight}, 0.25, objective=lambda p, b: jnp.sum(p["a"] * p["b"]), batch=(), steps=2
    )
    chex.assert_trees_all_equal(state.params, {"a": jnp.full(3, 0.5625), "b": jnp.full(3, 0.5625)})


def own_step(state, batch):
    """Newton's step on a square root, with a running mean that only this descent knows of."""
    gap = state.params**2 - batch
    mean = 0.5 * (state.optimizer["mean"] + state.params)
    after = state._replace(
        params=state.params - gap / (2 * state.params), optimizer={"mean": mean}, step=state.step + 1
    )
    return after, StepInfo(gap**2, jnp.abs(4 * gap * state.params))


def own_init(params, key=None):
    return DescentState(params, {"mean": jnp.float32(0)}, jnp.int32(0), key)


def test_a_descent_of_one_s_own_works():
    descent = mjn.Descent(own_init, own_step)
    state, trace = mjn.descend(descent, descent.init(jnp.float32(3)), 2.0, steps=50, until_flat=1e-3)
    assert float(state.params) == pytest.approx(2**0.5, rel=1e-6)
    assert trace.status == mjn.FLAT
    assert 3 <= trace.steps_taken < 10
    assert trace.aux == ()
    replicas = jax.vmap(lambda target: mjn.descend(descent, descent.init(jnp.float32(3)), target, steps=9)[0].params)
    np.testing.assert_allclose(replicas(jnp.array([2.0, 5.0])), [2**0.5, 5**0.5], rtol=1e-6)


def test_a_state_of_python_numbers_is_no_trouble():
    descent = mjn.Descent(None, lambda s, b: (s._replace(params=s.params / 2), StepInfo(s.params, s.params)))
    state, trace = mjn.descend(descent, DescentState(8.0, (), 0), (), steps=3)
    assert state.params == 1
    np.testing.assert_array_equal(trace.loss, [8, 4, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s._replace(params={"w": s.params["w"].astype(jnp.bfloat16)}),
            r"\.params\['w'\]: got bfloat16\[3\]; expected float32\[3\]",
        ),
        (
            lambda s: s._replace(params={"w": s.params["w"][:2]}),
            r"\.params\['w'\]: got float32\[2\]; expected float32\[3\]",
        ),
        (
            lambda s: s._replace(optimizer={"mean": jnp.int32(0)}),
            r"\.optimizer\['mean'\]: got int32\[\]; expected float32",
        ),
        (lambda s: s._replace(optimizer={}), r"missing: \[\"\.optimizer\['mean'\]\"\]"),
        (lambda s: s._replace(params={"w": s.params["w"], "v": s.params["w"]}), r"too many: \[\"\.params\['v'\]\"\]"),
        (lambda s: s._replace(key=jax.random.key(0)), r"too many: \['\.key'\]"),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_a_step_that_changes_the_state_s_structure_shape_or_dtype_is_refused_with_the_place(change, message, jit):
    descent = mjn.Descent(own_init, lambda state, batch: (change(state), StepInfo(jnp.float32(1), jnp.float32(1))))

    def run(weight):
        return mjn.descend(descent, descent.init({"w": weight}), (), steps=3)

    with pytest.raises(TypeError, match=rf"step: the state it returns is not like the one it took: .*{message}"):
        (jax.jit(run) if jit else run)(jnp.ones(3))


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (StepInfo(jnp.ones(2), jnp.float32(1)), r"step: loss: got float32\[2\]; expected a floating scalar"),
        (StepInfo(jnp.float32(1), jnp.int32(1)), r"step: gradient_norm: got int32\[\]; expected a floating scalar"),
    ],
)
def test_a_step_that_sees_no_scalar_is_refused(info, message):
    descent = mjn.Descent(own_init, lambda state, batch: (state, info))
    with pytest.raises(TypeError, match=message):
        mjn.descend(descent, descent.init(jnp.ones(3)), (), steps=3)


@pytest.mark.parametrize(
    "step", [lambda s, b: (s, (jnp.float32(1), jnp.float32(1))), lambda s, b: s], ids=["a tuple", "only a state"]
)
def test_a_step_that_returns_no_step_info_is_refused(step):
    with pytest.raises(TypeError, match="step"):
        mjn.descend(mjn.Descent(own_init, step), own_init(jnp.ones(3)), (), steps=3)


# --- What is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "kind"),
    [(-1, ValueError), (1.5, TypeError), ("3", TypeError), (True, TypeError), (None, TypeError), (2.0, TypeError)],
)
def test_a_number_of_steps_that_is_none_is_refused(steps, kind):
    with pytest.raises(kind, match=r"steps: got .*; expected (an int|at least 0)"):
        descend_from(PARAMS, 0.1, steps=steps)


def test_a_traced_number_of_steps_is_refused():
    with pytest.raises(TypeError, match=r"steps: got .*; expected an int"):
        jax.jit(lambda steps: descend_from(PARAMS, 0.1, steps=steps))(3)


@pytest.mark.parametrize("steps", [np.int64(4), np.int8(4), jnp.int32(4)])
def test_any_integer_serves_as_a_number_of_steps(steps):
    assert descend_from(PARAMS, 0.1, steps=steps)[1].loss.shape == (4,)


@pytest.mark.parametrize(
    ("until_flat", "kind"),
    [
        (-0.5, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        ("0", TypeError),
        (True, TypeError),
        (np.ones(2), TypeError),
    ],
)
def test_a_flat_norm_that_is_none_is_refused(until_flat, kind):
    with pytest.raises(kind, match=r"until_flat: got .*; expected a gradient norm"):
        descend_from(PARAMS, 0.1, steps=3, until_flat=until_flat)


@pytest.mark.parametrize("until_flat", [None, [0.1]])
def test_a_flat_norm_that_is_no_number_is_refused(until_flat):
    with pytest.raises(TypeError, match="until_flat"):
        descend_from(PARAMS, 0.1, steps=3, until_flat=until_flat)


# --- Epochs ----------------------------------------------------------------------------------------------------------


def seen(weight, batch):
    """A loss whose slope is the same everywhere; the points that a step saw are its aux."""
    return weight, batch["id"]


SEEING = mjn.gradient_descent(seen, 1e-3, has_aux=True)


def ids_by_epoch(points, batch_size, epochs, key=KEY, state=None, data=None):
    data = {"id": np.arange(points), "x": np.ones((points, 2))} if data is None else data
    state, trace = mjn.descend_epochs(
        SEEING, SEEING.init(0.0) if state is None else state, data, key, batch_size=batch_size, epochs=epochs
    )
    return state, trace.aux.reshape(epochs, points // batch_size, batch_size)


@pytest.mark.parametrize(("points", "batch_size", "chunk"), [(13, 4, 2), (5, 5, 4), (1, 1, 2**15)])
def test_an_epoch_sees_each_point_at_most_once(points, batch_size, chunk, chunk_steps):
    chunk_steps(chunk)
    state, ids = ids_by_epoch(points, batch_size, epochs=6)
    per_epoch = points // batch_size
    assert state.step == 6 * per_epoch
    for epoch in ids:
        assert len(np.unique(epoch)) == per_epoch * batch_size
        assert set(epoch.ravel()) <= set(range(points))
    if points > 4:
        assert len({tuple(epoch.ravel()) for epoch in ids}) > 1, "orders differ by epoch"
    if points % batch_size:
        assert len({frozenset(epoch.ravel()) for epoch in ids}) > 1, "and so do the points that sit an epoch out"


def test_the_order_of_an_epoch_is_drawn_from_the_key_and_the_epoch():
    _, ids = ids_by_epoch(12, 4, epochs=3)
    for epoch, seen_ids in enumerate(ids):
        expected = feeds.shuffled(jax.random.fold_in(KEY, epoch), 12)
        np.testing.assert_array_equal(seen_ids.ravel(), expected)
    _, again = ids_by_epoch(12, 4, epochs=3)
    np.testing.assert_array_equal(ids, again)
    _, other = ids_by_epoch(12, 4, epochs=3, key=jax.random.key(12))
    assert (ids != other).any()


@pytest.mark.parametrize(("name", "chunk"), [("gradient descent", 4), ("adam", 2**15)])
def test_three_and_three_epochs_are_six_bit_for_bit(name, chunk, chunk_steps):
    rng = np.random.default_rng(0)
    data = mjn.Batch(rng.normal(size=(14, 2)).astype(np.float32), rng.normal(size=(14, 1)).astype(np.float32))
    epochs_of = functools.partial(mjn.descend_epochs, DESCENTS[name], data=data, key=KEY, batch_size=4)
    whole, trace = epochs_of(state=start_of(name), epochs=6)
    chunk_steps(chunk)
    state, first = epochs_of(state=start_of(name), epochs=3)
    state, second = epochs_of(state=state, epochs=3)
    chex.assert_trees_all_equal(key_data(state), key_data(whole), strict=True)
    np.testing.assert_array_equal(np.concatenate([first.loss, second.loss]), trace.loss)
    assert trace.loss.shape == (18,)


def test_epochs_that_start_in_the_middle_of_one_go_on_where_it_stands():
    _, whole = ids_by_epoch(12, 4, epochs=3)
    state, _ = ids_by_epoch(12, 4, epochs=1)
    _, rest = ids_by_epoch(12, 4, epochs=1, state=state._replace(step=jnp.int32(4)))
    np.testing.assert_array_equal(rest.ravel(), np.concatenate([whole[1, 1:], whole[2, :1]]).ravel())


def test_epochs_work_under_jit_and_vmap():
    def run(key):
        descent = DESCENTS["gradient descent"]
        return mjn.descend_epochs(descent, descent.init(PARAMS), POINTS, key, batch_size=3, epochs=4)[1]

    keys = jax.random.split(KEY, 2)
    together, jitted = jax.jit(jax.vmap(run))(keys), jax.jit(run)(keys[1])
    alone = run(keys[1])
    np.testing.assert_allclose(together.loss[1], alone.loss, rtol=64 * EPS)
    np.testing.assert_allclose(jitted.loss, alone.loss, rtol=64 * EPS)
    assert (together.loss[0] != together.loss[1]).any()


def test_epochs_do_not_stop_where_one_minibatch_is_flat_but_where_one_diverges():
    data = np.array([0.0, 0.0, 0.0, 1.0], np.float32)  # a batch of one zero has no slope

    def loss(weight, batch):
        return jnp.sum(batch) * weight

    descent = mjn.gradient_descent(loss, 0.1)
    state, trace = mjn.descend_epochs(descent, descent.init(1.0), data, KEY, batch_size=1, epochs=3)
    assert (state.step, trace.steps_taken, trace.status) == (12, 12, mjn.OUT_OF_STEPS)
    assert (trace.gradient_norm == 0).sum() == 9
    broken = np.where(data == 1, np.nan, data)
    state, trace = mjn.descend_epochs(descent, descent.init(1.0), broken, KEY, batch_size=1, epochs=3)
    bad = int(np.argmax(np.asarray(feeds.shuffled(jax.random.fold_in(KEY, 0), 4)) == 3))
    assert (state.step, trace.steps_taken, trace.status, state.params) == (bad, bad, mjn.DIVERGED, 1)


@pytest.mark.parametrize(
    ("batch_size", "kind", "message"),
    [
        (0, ValueError, r"batch_size: got 0; expected at least 1"),
        (-2, ValueError, r"batch_size: got -2; expected at least 1"),
        (5, ValueError, r"batch_size: got 5; expected at most 4, the points there are"),
        (2.0, TypeError, r"batch_size: got 2.0; expected an int"),
        ("2", TypeError, r"batch_size: got '2'; expected an int"),
        (True, TypeError, r"batch_size: got True; expected an int"),
        (None, TypeError, r"batch_size: got None; expected an int"),
    ],
)
def test_a_batch_size_that_is_none_is_refused(batch_size, kind, message):
    descent = DESCENTS["gradient descent"]
    with pytest.raises(kind, match=message):
        mjn.descend_epochs(descent, descent.init(PARAMS), POINTS, KEY, batch_size=batch_size, epochs=1)


@pytest.mark.parametrize(("epochs", "kind"), [(-1, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)])
def test_a_number_of_epochs_that_is_none_is_refused(epochs, kind):
    descent = DESCENTS["gradient descent"]
    with pytest.raises(kind, match=r"epochs: got .*; expected"):
        mjn.descend_epochs(descent, descent.init(PARAMS), POINTS, KEY, batch_size=2, epochs=epochs)


@pytest.mark.parametrize("data", [(np.ones((4, 2)), np.ones(3)), (np.ones(4), 1.0), (), np.ones((0, 2))])
def test_data_without_one_batch_axis_is_refused(data):
    descent = DESCENTS["gradient descent"]
    with pytest.raises(ValueError, match=r"data: got batch axes of length \[.*\]; expected one length, above 0"):
        mjn.descend_epochs(descent, descent.init(PARAMS), data, KEY, batch_size=1, epochs=1)


@pytest.mark.parametrize("two", [np.int64(2), np.int8(2), jnp.int32(2)])
def test_any_integer_serves_as_a_batch_size(two):
    def run(key):
        data = {"id": np.arange(6)}
        return mjn.descend_epochs(SEEING, SEEING.init(0.0), data, key, batch_size=two, epochs=two)[1].aux

    _, ids = ids_by_epoch(6, 2, epochs=2)
    np.testing.assert_array_equal(run(KEY), ids.reshape(6, 2))
    np.testing.assert_array_equal(jax.jit(run)(KEY), ids.reshape(6, 2))
