"""A run that was stopped, by whatever, and resumed comes to the same bits as one that was not."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import minijaxnet as mjn
from minijaxnet.run import fit
from minijaxnet.run.checkpoint_folder import checkpoints
from minijaxnet.run.lock import RunInUse, hold
from minijaxnet.run.log import read_rows

fit_module = sys.modules["minijaxnet.run.fit"]

NETWORK = mjn.mlp((3, 4, 1), activation=jnp.tanh)
OBJECTIVE = mjn.objective(NETWORK, mjn.mean_squared_error)
PARAMS = NETWORK.init(jax.random.key(0))
DATA = mjn.Batch(jax.random.normal(jax.random.key(1), (12, 3)), jax.random.normal(jax.random.key(2), (12, 1)))
ORDER = jax.random.key(3)


def noisy(params, batch, key):
    return OBJECTIVE(params, batch) * jax.random.uniform(key, minval=0.5, maxval=1.5)


def full_batch():
    descent = mjn.gradient_descent(OBJECTIVE, 0.05)
    return descent, descent.init(PARAMS), {}


def minibatches():
    descent = mjn.gradient_descent(OBJECTIVE, 0.05)
    return descent, descent.init(PARAMS), {"batch_size": 5, "key": ORDER}


def adam_in_minibatches():
    descent = mjn.optax_descent(OBJECTIVE, optax.adam(0.01))
    return descent, descent.init(PARAMS), {"batch_size": 5, "key": ORDER}


def with_draws():
    descent = mjn.gradient_descent(noisy, 0.05)
    return descent, descent.init(PARAMS, jax.random.key(4)), {"measure": lambda params: {"first": params[0]["bias"][0]}}


KINDS = pytest.mark.parametrize("kind", [full_batch, minibatches, adam_in_minibatches, with_draws])


def stopped_at(steps, signum=signal.SIGINT):
    return lambda progress: os.kill(os.getpid(), signum) if progress.step >= steps else None


def assert_same_run(result, whole, folder, whole_folder):
    state, expected = (r.state._replace(key=None) for r in (result, whole))
    chex.assert_trees_all_equal(state, expected, strict=True)
    assert result.rows == whole.rows and result.steps_taken == whole.steps_taken and result.status == whole.status
    assert (folder / "metrics.jsonl").read_bytes() == (whole_folder / "metrics.jsonl").read_bytes()
    taken = result.steps_taken - result.first_step
    np.testing.assert_array_equal(result.trace.loss[:taken], whole.trace.loss[result.first_step : result.steps_taken])


@pytest.fixture
def folders(tmp_path):
    found = tmp_path / "stopped", tmp_path / "whole"
    for folder in found:
        folder.mkdir()
    return found


@KINDS
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_and_resumed_it_comes_to_the_same_bits(kind, signum, folders, monkeypatch):
    monkeypatch.setattr(fit_module, "_CHUNK_S", 0.0)
    stopped, whole = folders
    descent, start, options = kind()
    options |= {"steps": 40, "log_every": 6}
    first = fit(descent, start, DATA, run_dir=stopped, on_progress=stopped_at(17, signum), **options)
    assert first.interrupted == signum and first.steps_taken == 17
    second = fit(descent, start, DATA, run_dir=stopped, resume=True, on_progress=stopped_at(29, signum), **options)
    assert (second.first_step, second.steps_taken) == (17, 29)
    last = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    assert_same_run(last, fit(descent, start, DATA, run_dir=whole, **options), stopped, whole)
    steps = [row["step"] for row in last.rows]
    assert steps == [0, 6, 12, 18, 24, 30, 36, 40]


@KINDS
def test_a_run_that_is_done_resumes_to_itself(kind, folders):
    stopped, whole = folders
    descent, start, options = kind()
    options |= {"steps": 20, "log_every": 6}
    fit(descent, start, DATA, run_dir=stopped, **options)
    again = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    assert again.first_step == 20
    assert_same_run(again, fit(descent, start, DATA, run_dir=whole, **options), stopped, whole)


class Killed(BaseException):
    """What ends a process in the middle of something, for a test: nothing after it is done."""


@pytest.mark.parametrize("at", [1, 4, 7, 13, 26])
def test_ended_in_between_it_goes_on_from_the_last_checkpoint(at, folders, monkeypatch):
    monkeypatch.setattr(fit_module, "_CHUNK_S", 0.0)
    stopped, whole = folders
    descent, start, options = minibatches()
    options |= {"steps": 30, "log_every": 4, "checkpoint_every": 5}

    def end(progress):
        if progress.step == at:
            raise Killed

    with pytest.raises(Killed):
        fit(descent, start, DATA, run_dir=stopped, on_progress=end, **options)
    last = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    assert last.first_step == (at - 1) // 5 * 5
    assert_same_run(last, fit(descent, start, DATA, run_dir=whole, **options), stopped, whole)


def test_checkpoints_come_by_steps_or_by_time_and_three_stay(folders, monkeypatch):
    monkeypatch.setattr(fit_module, "_CHUNK_S", 0.0)
    by_steps, by_time = folders
    descent, start, _ = full_batch()
    fit(descent, start, DATA, steps=23, run_dir=by_steps, checkpoint_every=5)
    assert [step for step, _ in checkpoints(by_steps / "checkpoints")] == [23, 20, 15]
    fit(descent, start, DATA, steps=9, run_dir=by_time, checkpoint_s=0.0)
    assert [step for step, _ in checkpoints(by_time / "checkpoints")] == [9, 8, 7]


def test_a_damaged_checkpoint_is_passed_over_with_a_note(folders):
    stopped, whole = folders
    descent, start, options = full_batch()
    options |= {"steps": 20, "log_every": 4, "checkpoint_every": 5}
    expected = fit(descent, start, DATA, run_dir=whole, **options)
    fit(descent, start, DATA, run_dir=stopped, **options)
    newest = checkpoints(stopped / "checkpoints")[0][1]
    newest.write_bytes(newest.read_bytes()[:-1])
    last = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    assert last.first_step == 15 and len(last.notes) == 1 and newest.name in last.notes[0]
    assert_same_run(last, expected, stopped, whole)


def test_a_torn_line_and_lines_after_the_checkpoint_are_written_anew(folders):
    stopped, whole = folders
    descent, start, options = full_batch()
    options |= {"steps": 20, "log_every": 2, "checkpoint_every": 10}
    expected = fit(descent, start, DATA, run_dir=whole, **options)
    fit(descent, start, DATA, run_dir=stopped, **options)
    checkpoints(stopped / "checkpoints")[0][1].unlink()
    path = stopped / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    last = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    assert last.first_step == 10
    assert_same_run(last, expected, stopped, whole)


@pytest.mark.parametrize("text", ["", "\n", "{}\n", '{"step": "1"}\n', '{"step": 1}'])
def test_rows_that_are_not_whole_are_none(text, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": null}\n' + text)
    [row] = read_rows(tmp_path / "metrics.jsonl")
    assert row["step"] == 0 and np.isnan(row["loss"])


# --- Divergence ------------------------------------------------------------------------------------------------------


def steep(weight, batch):
    """A bowl of curvature 2, whose slope is NaN beyond 100: from a rate of 1 on a descent gets there."""
    return jnp.where(jnp.abs(weight) > 100, jnp.nan, 1.0) * weight**2


def halved(state, times):
    descent = mjn.gradient_descent(steep, 1.6 / 2**times)
    return descent, state._replace(optimizer=descent.init(state.params).optimizer)


def test_a_descent_that_diverged_goes_back_and_on_at_a_smaller_rate(tmp_path):
    descent = mjn.gradient_descent(steep, 1.6)  # each step makes the weight -2.2 times as large
    options = {"steps": 30, "log_every": 2, "checkpoint_every": 2, "run_dir": tmp_path}
    result = fit(descent, descent.init(jnp.float32(1)), DATA, on_divergence=halved, **options)
    assert result.status == mjn.OUT_OF_STEPS and abs(float(result.state.params)) < 1e-3
    [event] = [row for row in result.rows if "event" in row]
    assert event == {"step": 4, "event": "went back", "diverged_at": 6}
    assert [row["step"] for row in result.rows if "event" not in row] == [*range(0, 30, 2), 30]
    assert read_rows(tmp_path / "metrics.jsonl") == result.rows
    assert np.isfinite(result.trace.loss).all() and int(result.state.step) == 30


@pytest.mark.parametrize(("log_every", "back"), [(1, 5), (4, 0), (30, 0)])
def test_it_goes_back_without_a_folder_too_to_the_last_mark_that_was_surely_good(log_every, back):
    descent = mjn.gradient_descent(steep, 1.6)
    start = descent.init(jnp.float32(1))
    result = fit(descent, start, DATA, steps=30, log_every=log_every, on_divergence=halved)
    assert result.status == mjn.OUT_OF_STEPS
    assert [row for row in result.rows if "event" in row] == [{"step": back, "event": "went back", "diverged_at": 6}]


def test_what_always_diverges_ends(tmp_path):
    descent = mjn.gradient_descent(steep, 1.6)
    tries = []

    def same(state, times):
        tries.append(times)
        return descent, state

    result = fit(descent, descent.init(jnp.float32(1)), DATA, steps=30, on_divergence=same, run_dir=tmp_path)
    assert result.status == mjn.DIVERGED and tries == list(range(1, 33))


@pytest.mark.parametrize("at", [5, 9])
def test_resumed_before_or_after_it_went_back_it_comes_to_the_same_bits(at, folders, monkeypatch):
    monkeypatch.setattr(fit_module, "_CHUNK_S", 0.0)
    stopped, whole = folders
    descent = mjn.gradient_descent(steep, 1.6)
    start = descent.init(jnp.float32(1))
    options = {"steps": 30, "log_every": 3, "checkpoint_every": 4, "on_divergence": halved}
    expected = fit(descent, start, DATA, run_dir=whole, **options)
    first = fit(descent, start, DATA, run_dir=stopped, on_progress=stopped_at(at), **options)
    assert len([row for row in first.rows if "event" in row]) == (at > 6)
    last = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    assert_same_run(last, expected, stopped, whole)


def test_going_back_to_before_the_step_it_was_resumed_at_is_the_same(folders, monkeypatch):
    stopped, whole = folders
    descent = mjn.gradient_descent(steep, 1.6)
    start = descent.init(jnp.float32(1))
    options = {"steps": 30, "log_every": 4, "on_divergence": halved}
    expected = fit(descent, start, DATA, run_dir=whole, **options)
    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "_CHUNK_S", 0.0)
        fit(descent, start, DATA, run_dir=stopped, on_progress=stopped_at(5), **options)
    monkeypatch.setattr(fit_module, "_CHUNK_S", 1e6)
    last = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    assert last.first_step == 0
    assert_same_run(last, expected, stopped, whole)


def test_a_diverged_end_is_no_checkpoint_and_resumes_to_the_same_end(folders):
    stopped, whole = folders
    descent = mjn.gradient_descent(steep, 1.6)
    start = descent.init(jnp.float32(1))
    options = {"steps": 30, "log_every": 3, "checkpoint_every": 4}
    first = fit(descent, start, DATA, run_dir=stopped, **options)
    assert first.status == mjn.DIVERGED and first.steps_taken == 6
    assert [step for step, _ in checkpoints(stopped / "checkpoints")] == [4]
    last = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    whole_result = fit(descent, start, DATA, run_dir=whole, **options)
    assert last.first_step == 4 and last.steps_taken == whole_result.steps_taken == 6
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_the_marks_to_go_back_to_are_those_of_the_whole_run(folders, monkeypatch):
    stopped, whole = folders
    monkeypatch.setattr(fit_module, "_CHUNK_S", 0.0)
    descent = mjn.gradient_descent(steep, 1.6)
    start = descent.init(jnp.float32(1))
    options = {"steps": 30, "log_every": 1, "on_divergence": halved}
    expected = fit(descent, start, DATA, run_dir=whole, **options)
    fit(descent, start, DATA, run_dir=stopped, on_progress=stopped_at(6), **options)
    last = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    assert [row["step"] for row in last.rows if "event" in row] == [5]
    assert_same_run(last, expected, stopped, whole)


def test_an_optimizer_whose_rate_is_not_in_its_state_goes_on_at_the_smaller_one(folders, monkeypatch):
    stopped, whole = folders
    monkeypatch.setattr(fit_module, "_CHUNK_S", 0.0)
    descent = mjn.optax_descent(steep, optax.sgd(1.6))
    start = descent.init(jnp.float32(1))

    def retry(state, times):
        return mjn.optax_descent(steep, optax.sgd(1.6 / 2**times)), state

    options = {"steps": 30, "log_every": 3, "checkpoint_every": 4, "on_divergence": retry}
    expected = fit(descent, start, DATA, run_dir=whole, **options)
    first = fit(descent, start, DATA, run_dir=stopped, on_progress=stopped_at(9), **options)
    assert any("event" in row for row in first.rows)
    last = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    assert_same_run(last, expected, stopped, whole)


def test_no_checkpoint_is_newer_than_where_it_went_back_to(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "_CHUNK_S", 0.0)
    seen, keeper = [], sys.modules["minijaxnet.run.keeper"].Keeper
    retry = keeper.retry

    def look_after(self, diverged_at):
        found = retry(self, diverged_at)
        seen.append([step for step, _ in checkpoints(tmp_path / "checkpoints")])
        return found

    monkeypatch.setattr(keeper, "retry", look_after)
    descent = mjn.gradient_descent(steep, 1.6)
    options = {"log_every": 4, "checkpoint_s": 0.0, "on_divergence": halved, "run_dir": tmp_path}
    fit(descent, descent.init(jnp.float32(1)), DATA, steps=30, **options)
    assert seen == [[0]]


def test_rows_are_on_the_disk_before_a_checkpoint_of_what_comes_after_them(tmp_path, monkeypatch):
    """Otherwise a power cut may leave the checkpoint and not the rows."""
    log, keeper = sys.modules["minijaxnet.run.log"], sys.modules["minijaxnet.run.keeper"]
    happened = []
    write, sync, save = log.Log._write, log.Log.sync, keeper.save_checkpoint
    monkeypatch.setattr(log.Log, "_write", lambda *a: (happened.append("write"), write(*a))[1])
    monkeypatch.setattr(log.Log, "sync", lambda *a: (sync(*a), happened.append("sync"))[0])
    monkeypatch.setattr(keeper, "save_checkpoint", lambda *a, **b: (happened.append("save"), save(*a, **b))[1])
    descent = mjn.gradient_descent(steep, 1.6)
    options = {"log_every": 2, "checkpoint_every": 4, "on_divergence": halved, "run_dir": tmp_path}
    fit(descent, descent.init(jnp.float32(1)), DATA, steps=30, **options)
    assert happened.count("save") > 3 and happened[-1] == "sync"
    for at, what in enumerate(happened):
        if what == "save":
            before = [earlier for earlier in happened[:at] if earlier != "save"]
            assert before[-1] == "sync", at


@pytest.mark.parametrize(("bad", "goes_on"), [(3, 0), (11, 20)])
def test_rows_that_are_lost_are_seen_again(bad, goes_on, folders):
    stopped, whole = folders
    descent, start, options = minibatches()
    options |= {"steps": 27, "log_every": 2, "checkpoint_every": 5}
    expected = fit(descent, start, DATA, run_dir=whole, **options)
    fit(descent, start, DATA, run_dir=stopped, **options)
    path = stopped / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:bad], b"?" + lines[bad], *lines[bad + 1 :]]))
    last = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    assert last.notes == [f"the row of step {2 * bad} is lost: it goes on from step {goes_on}, not 27"]
    assert last.first_step == goes_on
    assert_same_run(last, expected, stopped, whole)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_a_run_that_another_holds_is_refused_and_left_alone(tmp_path):
    descent, start, _ = full_batch()
    fit(descent, start, DATA, steps=5, run_dir=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with hold(tmp_path), pytest.raises(RunInUse, match="holds this run"):
        fit(descent, start, DATA, steps=9, run_dir=tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"resume": True}, ValueError, "resume: got True without run_dir; expected the folder"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every: got 0; expected at least 1"),
        ({"checkpoint_every": 1.5}, TypeError, "checkpoint_every: got 1.5; expected an int"),
        ({"checkpoint_s": -1.0}, ValueError, r"checkpoint_s: got -1\.0; expected seconds"),
        ({"checkpoint_s": float("nan")}, ValueError, "checkpoint_s: got nan; expected seconds"),
        ({"checkpoint_s": "1"}, ValueError, "checkpoint_s: got '1'; expected seconds"),
    ],
)
def test_what_cannot_be_meant_is_named(options, error, words):
    descent, start, _ = full_batch()
    with pytest.raises(error, match=words):
        fit(descent, start, DATA, steps=5, **options)


def test_a_folder_with_checkpoints_is_not_begun_anew(tmp_path):
    descent, start, _ = full_batch()
    fit(descent, start, DATA, steps=5, run_dir=tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(FileExistsError, match="there is a run in this folder; expected a new one, or resume=True"):
        fit(descent, start, DATA, steps=5, run_dir=tmp_path)
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [5]


def test_checkpoints_of_another_descent_are_refused(tmp_path):
    descent, start, _ = full_batch()
    fit(descent, start, DATA, steps=5, run_dir=tmp_path)
    other = mjn.optax_descent(OBJECTIVE, optax.adam(0.01))
    with pytest.raises(ValueError, match=r"optimizer.*expected"):
        fit(other, other.init(PARAMS), DATA, steps=5, run_dir=tmp_path, resume=True)


def test_a_run_that_went_back_is_not_resumed_without_its_way_back(tmp_path):
    descent = mjn.gradient_descent(steep, 1.6)
    start = descent.init(jnp.float32(1))
    fit(descent, start, DATA, steps=30, on_divergence=halved, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"marks.*expected nothing"):
        fit(descent, start, DATA, steps=30, run_dir=tmp_path, resume=True)


# --- SIGKILL ---------------------------------------------------------------------------------------------------------

KILLED = textwrap.dedent("""
    import sys
    import jax, jax.numpy as jnp, minijaxnet as mjn
    from test_resume import minibatches, DATA
    fit = sys.modules["minijaxnet.run.fit"]
    fit._CHUNK_S = 0.002
    descent, start, options = minibatches()
    print("begins", flush=True)
    fit.fit(descent, start, DATA, steps=200_000, log_every=50, checkpoint_s=0.0, run_dir=sys.argv[1],
            resume=sys.argv[2] == "resume", **options)
""")


def newest(folder):
    below = folder / "checkpoints"
    return max((step for step, _ in checkpoints(below)), default=0) if below.is_dir() else 0


def test_killed_again_and_again_it_still_comes_to_the_same_bits(folders):
    stopped, whole = folders
    descent, start, options = minibatches()
    options |= {"steps": 200_000, "log_every": 50}
    draw = np.random.default_rng(0)
    reached = []
    for attempt in range(2):
        how = "resume" if attempt else "start"
        command = [sys.executable, "-c", KILLED, stopped, how]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None and process.stdout.readline() == b"begins\n"
        while newest(stopped) <= max(reached, default=0):
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=draw.uniform(0, 0.3))
        process.kill()
        process.wait()
        process.stdout.close()
        reached.append(newest(stopped))
    assert reached == sorted(reached) and reached[-1] > 0
    last = fit(descent, start, DATA, run_dir=stopped, resume=True, **options)
    assert last.first_step == reached[-1]
    assert_same_run(last, fit(descent, start, DATA, run_dir=whole, **options), stopped, whole)


def test_a_checkpoint_is_due_so_long_after_the_last_one(tmp_path, monkeypatch):
    module, clock = sys.modules["minijaxnet.run.keeper"], [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    keeper = module.Keeper(tmp_path, every=None, seconds=10, resume=False, retry=None, mark_every=5)
    descent, state, _ = full_batch()
    keeper.begin(descent, state, 0)
    clock[0] = 10.0
    assert keeper.is_due(3)
    keeper.keep(3, state)
    clock[0] = 15.0
    assert not keeper.is_due(4)
    clock[0] = 20.0
    assert keeper.is_due(4)


def test_a_step_that_is_looked_at_twice_is_one_mark(tmp_path):
    module = sys.modules["minijaxnet.run.keeper"]
    descent, state, _ = full_batch()
    keeper = module.Keeper(None, every=None, seconds=10, resume=False, retry=lambda s, n: (descent, s), mark_every=5)
    keeper.begin(descent, state, 0)
    for step in (5, 10, 10):
        keeper.look(step, state)
    assert keeper.retry(11)[0] == 5
