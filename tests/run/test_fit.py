"""fit: the descent that ``descend`` is, checked, logged, interruptible; and what the run folder keeps."""

import json
import os
import signal
import sys
import threading
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.flax import load_file

import minijaxnet as mjn
from minijaxnet.pytrees import l2_norm, named_leaves
from minijaxnet.run import fit
from minijaxnet.run.folder import create_run_folder, environment, write_json, write_params

# The module; as an attribute of the package its name is the function's.
fit_module = sys.modules["minijaxnet.run.fit"]
folder_module = sys.modules["minijaxnet.run.folder"]
log_module = sys.modules["minijaxnet.run.log"]

NETWORK = mjn.mlp((3, 4, 1), activation=jnp.tanh)
OBJECTIVE = mjn.objective(NETWORK, mjn.mean_squared_error)
PARAMS = NETWORK.init(jax.random.key(0))
POINTS = 12
DATA = mjn.Batch(
    jax.random.normal(jax.random.key(1), (POINTS, 3)),
    jax.random.normal(jax.random.key(2), (POINTS, 1)),
)
DESCENT = mjn.gradient_descent(OBJECTIVE, 0.05)
START = DESCENT.init(PARAMS)
ORDER = jax.random.key(3)


def noisy(params, batch, key):
    return OBJECTIVE(params, batch) * jax.random.uniform(key, minval=0.5, maxval=1.5)


def bowl(weights, batch):
    """Flat at the mean of the batch; curvature 2."""
    return jnp.mean(jnp.sum((weights - batch.x) ** 2, axis=-1))


def assert_same_descent(result, expected):
    """Bit for bit the state and the trace of ``descend``."""
    state, trace = expected
    chex.assert_trees_all_equal(result.state._replace(key=None), state._replace(key=None), strict=True)
    assert (result.state.key is None) == (state.key is None)
    chex.assert_trees_all_equal(result.trace, jax.tree.map(np.asarray, trace), strict=True)


# --- The same descent ------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(0, 60), log_every=st.integers(1, 70))
def test_chunks_cut_anywhere_are_the_same_full_batch_descent(steps, log_every):
    result = fit(DESCENT, START, DATA, steps=steps, log_every=log_every)
    assert_same_descent(result, mjn.descend(DESCENT, START, DATA, steps=steps))


@pytest.mark.parametrize("log_every", [1, 7, 20])
@pytest.mark.parametrize("batch_size", [5, POINTS])
def test_chunks_cut_anywhere_are_the_same_minibatches(batch_size, log_every):
    epochs = 20 // (POINTS // batch_size) + 1
    steps = epochs * (POINTS // batch_size)
    result = fit(DESCENT, START, DATA, steps=steps, batch_size=batch_size, key=ORDER, log_every=log_every)
    assert_same_descent(result, mjn.descend_epochs(DESCENT, START, DATA, ORDER, batch_size=batch_size, epochs=epochs))


@pytest.mark.parametrize("chunk_s", [0.0, 1e6], ids=["step by step", "all at once"])
def test_the_length_of_a_chunk_leaves_no_mark(chunk_s, monkeypatch):
    monkeypatch.setattr(fit_module, "_CHUNK_S", chunk_s)
    seen = []
    result = fit(DESCENT, START, DATA, steps=30, log_every=1_000, on_progress=seen.append)
    assert len(seen) == 30 if chunk_s == 0 else len(seen) < 30
    assert_same_descent(result, mjn.descend(DESCENT, START, DATA, steps=30))


def test_two_fits_in_a_row_are_one_of_both_lengths_with_minibatches_too():
    for options in ({}, {"batch_size": 5, "key": ORDER}):
        first = fit(DESCENT, START, DATA, steps=7, **options)
        both = fit(DESCENT, first.state, DATA, steps=6, **options)
        whole = fit(DESCENT, START, DATA, steps=13, **options)
        chex.assert_trees_all_equal(both.state, whole.state, strict=True)
        chex.assert_trees_all_equal(both.trace.loss, whole.trace.loss[7:])


@pytest.mark.parametrize("log_every", [1, 7, 20])
def test_a_keyed_objective_draws_as_in_descend(log_every):
    descent = mjn.gradient_descent(noisy, 0.05)
    start = descent.init(PARAMS, jax.random.key(4))
    result = fit(descent, start, DATA, steps=22, log_every=log_every)
    assert_same_descent(result, mjn.descend(descent, start, DATA, steps=22))
    assert jnp.array_equal(jax.random.key_data(result.state.key), jax.random.key_data(start.key))
    # Another draw each step: the plain objective's loss times a factor that changes.
    factors = result.trace.loss[0] / OBJECTIVE(PARAMS, DATA), result.trace.loss[1] / OBJECTIVE(PARAMS, DATA)
    assert abs(factors[0] - factors[1]) > 0.01


def test_adam_of_optax_is_the_same_descent():
    descent = mjn.optax_descent(OBJECTIVE, optax.adam(0.01))
    start = descent.init(PARAMS)
    assert_same_descent(fit(descent, start, DATA, steps=22, log_every=7), mjn.descend(descent, start, DATA, steps=22))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_dtype_of_the_parameters_stays(dtype):
    with jax.enable_x64(dtype == "float64"):
        params, data = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), (PARAMS, DATA))
        start = DESCENT.init(params)
        result = fit(DESCENT, start, data, steps=22, log_every=7)
        assert {leaf.dtype for leaf in jax.tree.leaves(result.state.params)} == {jnp.dtype(dtype)}
        assert_same_descent(result, mjn.descend(DESCENT, start, data, steps=22))
        assert result.rows[-1]["loss"] < result.rows[0]["loss"]


def test_what_the_objective_returns_beside_its_loss_is_in_the_trace():
    descent = mjn.gradient_descent(lambda p, b: (bowl(p, b), {"first": p[0]}), 0.1, has_aux=True)
    start = descent.init(jnp.zeros(3))
    result = fit(descent, start, DATA, steps=15, log_every=4)
    assert_same_descent(result, mjn.descend(descent, start, DATA, steps=15))
    assert result.trace.aux["first"].shape == (15,)


def test_a_descent_of_your_own_fits():
    def step(state, batch):
        loss = jnp.mean((state.params - batch.x) ** 2)
        return state._replace(params=state.params - 0.5, step=state.step + 1), mjn.StepInfo(loss, jnp.float32(1))

    descent = mjn.Descent(lambda params, key=None: mjn.DescentState(params, (), jnp.int32(0), key), step)
    result = fit(descent, descent.init(jnp.float32(10)), DATA, steps=4)
    assert float(result.state.params) == 8


def test_any_rate_and_any_number_of_steps_share_one_compilation():
    traces = []

    def counted(params, batch):
        traces.append(1)
        return OBJECTIVE(params, batch)

    def run(rate, steps, log_every):
        descent = mjn.gradient_descent(counted, rate)
        fit(descent, descent.init(PARAMS), DATA, steps=steps, log_every=log_every)

    run(0.1, 5, 2)
    first = len(traces)
    assert first > 0
    run(0.2, 50, 7)
    run(0.01, 0, 1)
    assert len(traces) == first


# --- What the caller keeps, and what the caller is told --------------------------------------------------------------


def test_the_callers_state_and_data_survive():
    start, data = DESCENT.init(jax.tree.map(jnp.array, PARAMS)), jax.tree.map(jnp.array, DATA)
    first = fit(DESCENT, start, data, steps=10, log_every=3)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((start, data)))
    chex.assert_trees_all_equal(start.params, PARAMS)
    chex.assert_trees_all_equal(first.state, fit(DESCENT, start, data, steps=10, log_every=3).state)
    # A result is a state like any other: it may be used twice, too.
    fit(DESCENT, first.state, data, steps=3)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(first.state))


def test_numpy_data_is_as_good():
    result = fit(DESCENT, START, jax.tree.map(np.asarray, tuple(DATA)), steps=10)
    chex.assert_trees_all_equal(result.state.params, fit(DESCENT, START, DATA, steps=10).state.params)


def test_compiling_and_running_are_told_apart(monkeypatch):
    # A clock that ticks when it is read, and jumps by 100 each time the objective is traced.
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    def slow_to_trace(params, batch):
        now[0] += 100
        return OBJECTIVE(params, batch)

    monkeypatch.setattr(fit_module, "time", SimpleNamespace(perf_counter=clock))
    descent = mjn.gradient_descent(slow_to_trace, 0.05)
    result = fit(descent, descent.init(PARAMS), DATA, steps=10, log_every=5)
    assert result.compile_s > 0
    assert 0 < result.run_s < 100


def test_compile_time_holds_the_tracing_of_the_objective(monkeypatch):
    now = [0.0]

    def slow_to_trace(params, batch):
        now[0] += 100
        return OBJECTIVE(params, batch)

    monkeypatch.setattr(fit_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(fit_module, "_CHUNK_S", 0.0)
    descent = mjn.gradient_descent(slow_to_trace, 0.05)
    assert fit(descent, descent.init(PARAMS), DATA, steps=0).compile_s >= 100


def test_progress_counts_up_to_the_steps_taken():
    seen = []
    result = fit(DESCENT, START, DATA, steps=33, log_every=8, on_progress=seen.append)
    counts = [progress.step for progress in seen]
    assert counts == sorted(set(counts))
    assert counts[-1] == 33
    assert all(progress.steps == 33 and progress.steps_per_s > 0 for progress in seen)
    assert [progress.loss for progress in seen] == [float(result.trace.loss[step - 1]) for step in counts]


def test_no_steps_are_a_result():
    result = fit(DESCENT, START, DATA, steps=0)
    chex.assert_trees_all_equal(result.state, START)
    assert (int(result.trace.steps_taken), result.status) == (0, mjn.OUT_OF_STEPS)
    assert result.trace.loss.shape == (0,)
    assert [row["step"] for row in result.rows] == [0]
    assert result.rows[0]["loss"] == pytest.approx(float(OBJECTIVE(PARAMS, DATA)), rel=1e-6)
    assert result.compile_s > 0
    assert result.run_s == 0


# --- The log ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "log_every", "expected"),
    [(20, 7, [0, 7, 14, 20]), (21, 7, [0, 7, 14, 21]), (3, 1, [0, 1, 2, 3]), (3, 20, [0, 3]), (40, 20, [0, 20, 40])],
)
def test_rows_are_the_multiples_and_the_end_and_hold_the_objective_there(steps, log_every, expected):
    result = fit(DESCENT, START, DATA, steps=steps, log_every=log_every)
    assert [row["step"] for row in result.rows] == expected
    for row in result.rows:
        params = mjn.descend(DESCENT, START, DATA, steps=row["step"])[0].params
        loss, gradient = jax.value_and_grad(OBJECTIVE)(params, DATA)
        assert row["loss"] == pytest.approx(float(loss), rel=1e-5)
        assert row["gradient_norm"] == pytest.approx(float(l2_norm(gradient)), rel=1e-4)


def test_about_twenty_rows_are_logged_if_nothing_is_said():
    assert 20 <= len(fit(DESCENT, START, DATA, steps=1_000).rows) <= 22
    assert len(fit(DESCENT, START, DATA, steps=5).rows) == 6


@pytest.mark.parametrize("options", [{}, {"batch_size": 4, "key": ORDER}], ids=["full batch", "minibatches"])
def test_logged_losses_are_those_of_the_trace(options):
    result = fit(DESCENT, START, DATA, steps=20, log_every=6, **options)
    for row in result.rows[:-1]:
        assert row["loss"] == float(result.trace.loss[row["step"]])
        assert row["gradient_norm"] == float(result.trace.gradient_norm[row["step"]])


def test_measure_sees_the_parameters_of_its_row():
    def measure(params):
        return {"size": l2_norm(params), "first": float(params[0]["weights"][0, 0])}

    result = fit(DESCENT, START, DATA, steps=15, log_every=4, measure=measure)
    assert [row["step"] for row in result.rows] == [0, 4, 8, 12, 15]
    for row in result.rows:
        params = mjn.descend(DESCENT, START, DATA, steps=row["step"])[0].params
        assert row["size"] == float(l2_norm(params))
        assert row["first"] == float(params[0]["weights"][0, 0])
        assert all(isinstance(row[name], float) for name in ("loss", "gradient_norm", "size", "first"))


@pytest.mark.parametrize("rate", [0.05, 1e25], ids=["learns", "diverges"])
def test_the_metrics_file_holds_the_rows(rate, tmp_path):
    descent = mjn.gradient_descent(bowl, rate)
    result = fit(
        descent,
        descent.init(jnp.ones(3)),
        DATA,
        steps=30,
        log_every=4,
        measure=lambda params: {"size": l2_norm(params)},
        run_dir=tmp_path,
    )
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    # JSON has neither NaN nor infinity: null stands for them.
    expected = [{name: value if np.isfinite(value) else None for name, value in row.items()} for row in result.rows]
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == expected
    timed = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in timed] == [row["step"] for row in result.rows]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl", "timing.jsonl"]
    diverges = rate > 1
    assert (result.status == mjn.DIVERGED) == diverges
    assert (expected[-1]["loss"] is None) == diverges


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(DESCENT, START, DATA, steps=3)
    assert not list(tmp_path.iterdir())


def test_a_log_is_not_written_over(tmp_path):
    fit(DESCENT, START, DATA, steps=3, run_dir=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="there is a run in this folder; expected a new one"):
        fit(DESCENT, START, DATA, steps=3, run_dir=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.fixture
def logs(monkeypatch):
    """The files that fit opens for its rows."""
    opened = []

    class Kept(log_module.Log):
        def __init__(self, folder, **options):
            super().__init__(folder, **options)
            opened.append(self)

    monkeypatch.setattr(fit_module, "Log", Kept)
    yield opened
    for log in opened:
        log.__exit__(None)


def test_the_log_is_closed_at_the_end(tmp_path, logs):
    fit(DESCENT, START, DATA, steps=3, run_dir=tmp_path)
    assert [file.closed for log in logs for file in log._files.values()] == [True, True]


@pytest.mark.parametrize("part", ["measure", "on_progress"])
def test_the_log_is_closed_where_the_caller_raises(part, tmp_path, logs):
    def raises(_):
        raise ArithmeticError("the caller's")

    with pytest.raises(ArithmeticError, match="the caller's"):
        fit(DESCENT, START, DATA, steps=3, run_dir=tmp_path, **{part: raises})
    assert [file.closed for log in logs for file in log._files.values()] == [True, True]


@pytest.mark.parametrize("name", ["step", "loss", "gradient_norm"])
def test_a_measured_name_does_not_hide_a_number_of_fits_own(name):
    with pytest.raises(ValueError, match=f"measure: got the name '{name}'; expected another"):
        fit(DESCENT, START, DATA, steps=3, measure=lambda params: {name: -1.0})


# --- How it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_every", [1, 7, 20])
def test_it_stops_where_it_is_flat_and_says_so_once(log_every):
    descent = mjn.gradient_descent(bowl, 0.05)
    start = descent.init(jnp.full(3, 5.0))
    result = fit(descent, start, DATA, steps=500, until_flat=0.1, log_every=log_every)
    assert_same_descent(result, mjn.descend(descent, start, DATA, steps=500, until_flat=0.1))
    taken = int(result.trace.steps_taken)
    assert result.status == mjn.FLAT
    assert 0 < taken < 500
    logged = [row["step"] for row in result.rows]
    assert logged == sorted(set(logged))
    assert logged[-1] == taken
    assert result.rows[-1]["gradient_norm"] <= 0.1 < result.trace.gradient_norm[taken - 1]
    assert np.isnan(result.trace.loss[taken:]).all()


def test_flat_at_the_start_takes_no_step():
    descent = mjn.gradient_descent(bowl, 0.05)
    start = descent.init(jnp.mean(DATA.x, axis=0))
    result = fit(descent, start, DATA, steps=50, until_flat=1e-3, log_every=1)
    assert (result.status, int(result.trace.steps_taken)) == (mjn.FLAT, 0)
    assert [row["step"] for row in result.rows] == [0]
    chex.assert_trees_all_equal(result.state, start)


def test_a_sampled_slope_of_zero_is_no_end_but_a_small_one_asked_for_is():
    same = mjn.Batch(jnp.ones((6, 3)), jnp.ones((6, 1)))
    descent = mjn.gradient_descent(bowl, 0.05)
    start = descent.init(jnp.ones(3))
    assert fit(descent, start, same, steps=9).status == mjn.FLAT
    sampled = fit(descent, start, same, steps=9, batch_size=2, key=ORDER)
    assert (sampled.status, int(sampled.trace.steps_taken)) == (mjn.OUT_OF_STEPS, 9)
    asked = fit(descent, start, same, steps=9, batch_size=2, key=ORDER, until_flat=1e-6)
    assert (asked.status, int(asked.trace.steps_taken)) == (mjn.FLAT, 0)


@pytest.mark.parametrize("log_every", [1, 7, 20])
def test_a_rate_that_is_too_long_ends_diverged_at_its_last_finite_parameters(log_every):
    descent = mjn.gradient_descent(bowl, 100.0)
    start = descent.init(jnp.ones(3))
    result = fit(descent, start, DATA, steps=500, log_every=log_every)
    assert_same_descent(result, mjn.descend(descent, start, DATA, steps=500))
    taken = int(result.trace.steps_taken)
    assert result.status == mjn.DIVERGED
    assert 0 < taken < 500
    chex.assert_tree_all_finite(result.state.params)
    assert int(result.state.step) == taken
    assert np.isfinite(result.trace.loss[:taken]).all()
    last = result.rows[-1]
    assert last["step"] == taken
    assert not (np.isfinite(last["loss"]) and np.isfinite(last["gradient_norm"]))


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def interrupt_after(steps):
    def on_progress(progress):
        if progress.step >= steps:
            os.kill(os.getpid(), signal.SIGINT)

    return on_progress


@pytest.fixture
def own_handler():
    """A handler of the caller's own, so that a restored one can be told from Python's."""

    def handler(signum, frame):
        raise KeyboardInterrupt("the caller's handler")

    before = signal.signal(signal.SIGINT, handler)
    yield handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_it_with_what_was_learnt_so_far(own_handler, monkeypatch, tmp_path):
    monkeypatch.setattr(fit_module, "_CHUNK_S", 0.0)
    result = fit(DESCENT, START, DATA, steps=1_000, log_every=10, on_progress=interrupt_after(25), run_dir=tmp_path)
    assert result.interrupted
    assert result.status == mjn.OUT_OF_STEPS
    taken = int(result.trace.steps_taken)
    assert taken == 25
    chex.assert_tree_all_finite(result.state.params)
    chex.assert_trees_all_equal(result.state, mjn.descend(DESCENT, START, DATA, steps=25)[0])
    assert np.isfinite(result.trace.loss[:taken]).all()
    assert np.isnan(result.trace.loss[taken:]).all()
    assert [row["step"] for row in result.rows] == [0, 10, 20, 25]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert signal.getsignal(signal.SIGINT) is own_handler


def test_a_second_ctrl_c_raises_as_ever(own_handler):
    def twice(progress):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="the caller's handler"):
        fit(DESCENT, START, DATA, steps=1_000, on_progress=twice)
    assert signal.getsignal(signal.SIGINT) is own_handler


def test_the_handler_is_restored_however_it_ends(own_handler):
    fit(DESCENT, START, DATA, steps=5)
    assert signal.getsignal(signal.SIGINT) is own_handler

    def on_progress(progress):
        assert signal.getsignal(signal.SIGINT) is not own_handler
        raise ArithmeticError("no progress")

    with pytest.raises(ArithmeticError):
        fit(DESCENT, START, DATA, steps=5, on_progress=on_progress)
    assert signal.getsignal(signal.SIGINT) is own_handler
    assert not fit(DESCENT, START, DATA, steps=5).interrupted


def test_another_thread_can_fit_and_touches_no_handler(own_handler):
    results, handlers = [], []

    def work():
        results.append(
            fit(DESCENT, START, DATA, steps=20, on_progress=lambda _: handlers.append(signal.getsignal(signal.SIGINT)))
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    [result] = results
    assert not result.interrupted
    assert set(handlers) == {own_handler}
    assert_same_descent(result, mjn.descend(DESCENT, START, DATA, steps=20))


# --- What is refused -------------------------------------------------------------------------------------------------

FLAT_PREDICTIONS = mjn.Network(lambda key: jnp.zeros(3), lambda params, x: x @ params)
FLAT_DESCENT = mjn.gradient_descent(mjn.objective(FLAT_PREDICTIONS, mjn.mean_squared_error), 0.1)
CLASSIFIER = mjn.mlp((3, 2))
CLASSES = mjn.objective(CLASSIFIER, mjn.softmax_cross_entropy)
CLASS_DESCENT = mjn.gradient_descent(CLASSES, 0.1)
CLASS_START = CLASS_DESCENT.init(CLASSIFIER.init(jax.random.key(0)))
LABELS = jnp.arange(POINTS) % 2
BY_HAND_DESCENT = mjn.gradient_descent(
    mjn.with_gradient(CLASSES, mjn.mlp_gradient((3, 2), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)),
    0.1,
)
YES_NO = mjn.gradient_descent(mjn.objective(NETWORK, mjn.binary_cross_entropy), 0.1)


def with_x(x):
    return DATA._replace(x=x)


def with_y(y):
    return DATA._replace(y=y)


def state_of(params):
    return START._replace(params=params)


# name: (what differs from a good call, the kind of error, what its text holds)
REFUSED = {
    "y (n,) against predictions (n, 1)": (
        {"data": with_y(DATA.y[:, 0])},
        ValueError,
        r"targets: got shape \(12,\); expected \(12, 1\)",
    ),
    "y (n, 1) against predictions (n,)": (
        {"descent": FLAT_DESCENT, "state": FLAT_DESCENT.init(jnp.zeros(3))},
        ValueError,
        r"targets: got shape \(12, 1\); expected \(12,\)",
    ),
    "a column short": (
        {"data": with_x(DATA.x[:, :2])},
        ValueError,
        r"x: got shape \(12, 2\); expected a last axis of 3",
    ),
    "a column too many": ({"data": with_x(jnp.ones((12, 4)))}, ValueError, r"x: got shape \(12, 4\); expected .* 3"),
    "fewer y than x": ({"data": with_y(DATA.y[:5])}, ValueError, r"data\.y: got 5 points; expected 12.*data\.x"),
    "NaN in x": (
        {"data": with_x(DATA.x.at[2, 1].set(jnp.nan))},
        ValueError,
        r"data\.x\[2, 1\]: got nan .*; expected finite",
    ),
    "infinity in y": (
        {"data": with_y(DATA.y.at[4, 0].set(jnp.inf))},
        ValueError,
        r"data\.y\[4, 0\]: got inf.*expected finite",
    ),
    "NaN in NumPy data": (
        {"data": (np.full((12, 3), np.nan), np.ones((12, 1)))},
        ValueError,
        r"data\.x\[0, 0\]: got nan \(36 of 36 values",
    ),
    "no points": (
        {"data": (jnp.ones((0, 3)), jnp.ones((0, 1)))},
        ValueError,
        r"data\.x: got an empty data set; expected",
    ),
    "no pair": ({"data": DATA.x}, TypeError, r"data: got .*; expected a pair \(x, y\)"),
    "three parts": ({"data": (*DATA, 1)}, TypeError, r"data: got tuple of 3; expected a pair"),
    "text": ({"data": (np.full((12, 3), "a"), DATA.y)}, TypeError, r"data\.x: got dtype <U1; expected numbers"),
    "a bare number": ({"data": (1.0, 2.0)}, ValueError, r"data\.x: got a single number; expected an array"),
    "integer params": (
        {"state": state_of(jax.tree.map(lambda leaf: leaf.astype(int), PARAMS))},
        TypeError,
        r"state\.params\[0\]\['bias'\]: got dtype int32; expected a real floating dtype",
    ),
    "NaN in params": (
        {"state": state_of((PARAMS[0], {"weights": jnp.full((4, 1), jnp.nan), "bias": jnp.zeros(1)}))},
        ValueError,
        r"state\.params\[1\]\['weights'\]: got NaN or infinity; expected finite",
    ),
    "infinity in params": (
        {"state": state_of(jax.tree.map(lambda leaf: leaf + jnp.inf, PARAMS))},
        ValueError,
        r"state\.params\[0\].*: got NaN or infinity; expected finite",
    ),
    "a label too high": (
        {"descent": CLASS_DESCENT, "state": CLASS_START, "data": with_y(LABELS.at[4].set(2))},
        ValueError,
        r"labels\[4\]: got 2; expected a class of 2, from 0 to 1",
    ),
    "a negative label": (
        {"descent": CLASS_DESCENT, "state": CLASS_START, "data": with_y(LABELS.at[4].set(-1))},
        ValueError,
        r"labels\[4\]: got -1; expected a class of 2, from 0 to 1",
    ),
    "a label too high, by hand": (
        {"descent": BY_HAND_DESCENT, "state": CLASS_START, "data": with_y(LABELS.at[4].set(2))},
        ValueError,
        r"labels\[4\]: got 2; expected a class of 2, from 0 to 1",
    ),
    "a label that is neither yes nor no": (
        {"descent": YES_NO, "data": with_y(jnp.full((12, 1), 2.0))},
        ValueError,
        r"labels\[.*0, 0.*\]: got 2\.0; expected a probability, from 0 to 1",
    ),
    "labels in a column": (
        {"descent": CLASS_DESCENT, "state": CLASS_START, "data": with_y(LABELS[:, None])},
        ValueError,
        r"labels: got shape \(12, 1\); expected \(12, 2\)",
    ),
    "negative steps": ({"steps": -1}, ValueError, "steps: got -1; expected at least 0"),
    "half a step": ({"steps": 2.5}, TypeError, r"steps: got 2\.5; expected an int"),
    "steps in words": ({"steps": "ten"}, TypeError, "steps: got 'ten'; expected an int"),
    "steps true": ({"steps": True}, TypeError, "steps: got True; expected an int"),
    "negative flatness": ({"until_flat": -1.0}, ValueError, r"until_flat: got -1\.0; expected .* at least 0"),
    "flatness NaN": ({"until_flat": float("nan")}, ValueError, "until_flat: got nan; expected .* at least 0"),
    "flatness in words": ({"until_flat": "low"}, TypeError, "until_flat: got 'low'; expected a gradient norm"),
    "batch size 0": ({"batch_size": 0, "key": ORDER}, ValueError, "batch_size: got 0; expected at least 1"),
    "batch size negative": ({"batch_size": -4, "key": ORDER}, ValueError, "batch_size: got -4; expected at least 1"),
    "batch size float": ({"batch_size": 4.0, "key": ORDER}, TypeError, r"batch_size: got 4\.0; expected an int"),
    "batch size beyond the points": (
        {"batch_size": 13, "key": ORDER},
        ValueError,
        "batch_size: got 13; expected at most 12, the points there are",
    ),
    "minibatches without a key": ({"batch_size": 4}, TypeError, r"key: got None; expected a jax\.random\.key"),
    "rows every 0 steps": ({"log_every": 0}, ValueError, "log_every: got 0; expected at least 1"),
    "rows every half step": ({"log_every": 0.5}, TypeError, r"log_every: got 0\.5; expected an int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written_with_argument_got_and_expected(name, tmp_path):
    change, kind, text = REFUSED[name]
    call = {"descent": DESCENT, "state": START, "data": DATA, "steps": 3} | change
    descent, state, data = (call.pop(argument) for argument in ("descent", "state", "data"))
    with pytest.raises(kind, match=text):
        fit(descent, state, data, run_dir=tmp_path, **call)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_rate_that_no_descent_can_use_is_refused(rate):
    with pytest.raises(ValueError, match=f"learning_rate: got {rate}; expected a positive, finite float32"):
        mjn.gradient_descent(OBJECTIVE, rate)


def test_a_rate_in_words_is_refused():
    with pytest.raises(TypeError, match="learning_rate: got 'fast'; expected a positive number"):
        mjn.gradient_descent(OBJECTIVE, "fast")


def test_an_objective_that_is_a_plain_function_is_checked_by_its_own_shapes(tmp_path):
    descent = mjn.gradient_descent(lambda params, batch: mjn.mean_squared_error(batch.x @ params, batch.y), 0.1)
    with pytest.raises(ValueError, match=r"targets: got shape \(12, 1\); expected \(12,\)"):
        fit(descent, descent.init(jnp.zeros(3)), DATA, steps=3, run_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", [0, "a", 1.5], ids=str)
def test_a_key_that_is_none_is_named(key):
    with pytest.raises(TypeError, match=rf"^key: got a {type(key).__name__}; expected a jax\.random\.key"):
        fit(DESCENT, START, DATA, steps=3, batch_size=4, key=key)


def test_several_keys_are_named():
    with pytest.raises((TypeError, ValueError), match=r"^key: got .*; expected a jax\.random\.key"):
        fit(DESCENT, START, DATA, steps=3, batch_size=4, key=jax.random.split(ORDER))


# --- The run folder --------------------------------------------------------------------------------------------------


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    from datetime import UTC, datetime

    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    monkeypatch.setattr(folder_module, "datetime", SimpleNamespace(now=lambda zone: moment))
    folders = [create_run_folder(tmp_path / "deep" / "runs", "line") for _ in range(3)]
    assert [folder.name for folder in folders] == [f"line-20300102-030405{end}" for end in ("", "-2", "-3")]
    assert all(folder.is_dir() for folder in folders)


JSON_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(
    JSON_LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON)
def test_json_comes_back_as_it_went(content, tmp_path):
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_json_takes_arrays_and_has_null_for_what_is_not_finite(tmp_path):
    content = {"a": jnp.array([1.0, jnp.nan]), "b": np.float32(0.5), "c": float("-inf"), "d": (jnp.int32(3),), 5: True}
    write_json(tmp_path / "a.json", content)
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": [1.0, None], "b": 0.5, "c": None, "d": [3], "5": True}


def test_parameters_come_back_leaf_by_leaf(tmp_path):
    square = jnp.arange(6.0).reshape(2, 3)
    params = (
        {"weights": square.T, "bias": jnp.array(-0.0)},
        {"half": jnp.array([1.5, jnp.inf], jnp.bfloat16), "strided": jnp.arange(10.0)[::3], "none": jnp.zeros((0, 2))},
    )
    write_params(tmp_path / "p.safetensors", params)
    chex.assert_trees_all_equal(load_file(tmp_path / "p.safetensors"), named_leaves(params), strict=True)
    write_params(tmp_path / "bare.safetensors", jnp.float32(3))
    chex.assert_trees_all_equal(load_file(tmp_path / "bare.safetensors"), {"(leaf)": jnp.float32(3)}, strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.safetensors", "p.safetensors"]


def test_float64_parameters_lose_nothing(tmp_path):
    with jax.enable_x64(True):
        write_params(tmp_path / "p.safetensors", {"third": jnp.array([1 / 3])})
        [third] = load_file(tmp_path / "p.safetensors").values()
        assert third.dtype == jnp.float64
        assert float(third[0]) == 1 / 3


def test_the_environment_names_what_a_result_depends_on():
    found = environment()
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert found["x64"] is False
    assert len(found["devices"]) == len(jax.devices())
    json.dumps(found)
    with jax.enable_x64(True):
        assert environment()["x64"] is True
