"""The best weights by a measured number, and a fit that ends when it becomes no better."""

import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from kits.fits import watched_fit

import minijaxnet as mjn
from minijaxnet.goal import Goal, goal_of

# A weight goes down by 1 each step; it is best at 0, after five of them, and then becomes worse.
DESCENT = mjn.gradient_descent(lambda weight, batch: weight + 0 * jnp.sum(batch[0]), 1.0)
BATCH = (jnp.ones(1),)


def measure(params):
    return {"far": abs(float(params)), "score": -abs(float(params))}


def fit(steps=20, **options):
    return watched_fit(DESCENT, DESCENT.init(5.0), BATCH, steps=steps, log_every=1, measure=measure, **options)


@pytest.mark.parametrize("keep_best", ["score", "lowest far", "highest score"])
def test_the_best_is_kept_in_memory_and_on_disk(keep_best, tmp_path):
    result = fit(keep_best=keep_best, run_dir=tmp_path)
    assert result.status == mjn.OUT_OF_STEPS and result.steps_taken == 20
    assert (float(result.best.params), result.best.step) == (0.0, 5)
    assert float(mjn.load_params(tmp_path)) == 0.0
    assert result.best.value == 0.0


def test_it_stops_after_so_many_rows_that_are_no_better():
    result = fit(keep_best="lowest far", patience=3)
    assert result.status == mjn.STOPPED_EARLY and result.steps_taken == 8
    assert [row["step"] for row in result.rows] == [*range(9)]
    assert result.best.step == 5
    assert "STOPPED_EARLY after 8 steps" in str(result)
    assert np.isfinite(result.trace.loss[:8]).all() and np.isnan(result.trace.loss[8:]).all()


def test_the_first_of_equal_ones_stays_and_nan_is_never_better():
    found = watched_fit(
        DESCENT,
        DESCENT.init(5.0),
        BATCH,
        steps=9,
        log_every=1,
        keep_best="lowest a",
        measure=lambda params: {"a": np.nan},
    )
    assert found.best.step == 0
    assert not Goal("a", True).better(1.0, 1.0) and not Goal("a", False).better(float("nan"), 1.0)
    assert Goal("a", True).better(-1.0, float("nan"))


@pytest.mark.parametrize(("at", "killed"), [(2, True), (6, True), (7, False)])
def test_stopped_and_gone_on_with_it_ends_with_the_same(at, killed, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    options = {"keep_best": "lowest far", "patience": 3, "checkpoint_every": 2}
    expected = fit(run_dir=whole, **options)

    def stop(progress):
        if progress.step >= at:
            os.kill(os.getpid(), signal.SIGINT)

    first = fit(run_dir=broken, on_progress=stop, **options)
    assert first.interrupted
    if killed:  # before the last checkpoint
        sorted((broken / "checkpoints").iterdir())[-1].unlink()
    second = fit(run_dir=broken, resume=True, **options)
    assert second.rows == expected.rows and second.status == expected.status
    assert second.best._replace(params=float(second.best.params)) == expected.best._replace(
        params=float(expected.best.params)
    )
    assert (broken / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()


def test_at_another_rate_a_best_of_steps_that_are_not_taken_again_is_forgotten(tmp_path):
    def at(rate, **options):
        descent = mjn.gradient_descent(lambda weight, batch: weight + 0 * jnp.sum(batch[0]), rate)
        options |= {"log_every": 1, "measure": measure, "keep_best": "lowest far", "run_dir": tmp_path}
        return mjn.fit(descent, descent.init(5.0), BATCH, steps=6, **options)

    assert at(1.0, checkpoint_every=2).best.step == 5
    for newest in sorted((tmp_path / "checkpoints").iterdir())[1:]:
        newest.unlink()  # as if it had been killed after step 5: the oldest is of step 2
    result = at(0.25, resume=True)
    assert result.first_step == 2
    assert (float(result.best.params), result.best.step, result.best.value) == (2.0, 6, 2.0)
    assert float(mjn.load_params(tmp_path)) == 2.0


def test_where_it_was_interrupted_between_two_rows_no_best_is_sought(tmp_path):
    options = {"log_every": 4, "measure": measure, "keep_best": "lowest far", "patience": 2, "on_interrupt": "return"}
    sink = mjn.Sink(lambda row: None, progress=lambda it: it.step == 5 and os.kill(os.getpid(), signal.SIGINT))

    def at(**more):
        return mjn.fit(DESCENT, DESCENT.init(5.0), BATCH, steps=40, **options, **more)

    expected = at()
    first = at(run_dir=tmp_path, checkpoint_every=5, sink=sink)
    assert first.interrupted and first.steps_taken == 5 and first.best.step == 4
    assert first.rows[-1]["far"] == 0.0  # and would be the best
    second = at(run_dir=tmp_path, resume=True)
    assert (second.best.step, second.steps_taken) == (expected.best.step, expected.steps_taken) == (4, 12)


def test_a_best_that_cannot_be_read_is_sought_anew_and_that_is_said(tmp_path):
    fit(steps=9, keep_best="lowest far", run_dir=tmp_path, checkpoint_every=4)
    (tmp_path / "best.safetensors").write_bytes(b"nothing")
    result = fit(keep_best="lowest far", run_dir=tmp_path, resume=True)
    assert any("best weights of earlier steps" in note for note in result.notes)
    assert result.best.step == 9


def test_ctrl_c_raises_when_all_is_kept_and_says_how_to_go_on(tmp_path):
    def stop(progress):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="resume=True continues in"):
        fit(run_dir=tmp_path, on_progress=stop, on_interrupt="raise")
    assert list((tmp_path / "checkpoints").iterdir())
    with pytest.raises(KeyboardInterrupt, match="on_interrupt='return' would return the result"):
        fit(on_progress=stop, on_interrupt="raise")


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("test_loss", Goal("test_loss", False)),
        ("test_accuracy", Goal("test_accuracy", True)),
        ("val_F1", Goal("val_F1", True)),
        ("mae", Goal("mae", False)),
        ("highest mae", Goal("mae", True)),
        ("lowest score", Goal("score", False)),
    ],
)
def test_which_way_is_better(text, goal):
    assert goal_of(text, "by") == goal
