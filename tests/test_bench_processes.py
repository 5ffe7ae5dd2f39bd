"""Comparisons in processes of their own: what is handed over, and what may be concluded from several."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minijaxnet as mjn
from minijaxnet import StepComparison, compare_steps
from minijaxnet.bench import ArmTiming, compare, processes


def bowl(weights, batch):
    return jnp.sum((weights - batch) ** 2)


def by_hand(weights, batch):
    return bowl(weights, batch), 2 * (weights - batch)


WEIGHTS = jnp.arange(9.0)
ARMS = {
    "plain": mjn.gradient_descent(bowl, 0.1),
    "by hand": mjn.gradient_descent(mjn.with_gradient(bowl, by_hand), 0.1),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_an_exported_arm_computes_what_it_did_here(tmp_path, dtype):
    def noisy(params, batch, key):
        return jnp.sum((params["w"] - batch[0]) ** 2 * (1 + jax.random.uniform(key, (3,), dtype))) + 0 * batch[1][0]

    with jax.enable_x64(dtype == "float64"):
        descent = mjn.gradient_descent(noisy, 0.01)
        state = descent.init({"w": jnp.arange(3, dtype=dtype)}, jax.random.key(5))
        batch = (jnp.asarray(0.5, dtype), jnp.arange(2))
        loop = compare._loop(descent.step, state, batch, "descent")
        processes._export(tmp_path, 0, "a", loop, state, batch)
        found = processes._run_of(tmp_path, 0)(7)
        expected = jax.tree.leaves(jax.jit(loop)(state, batch, 7))
        assert len(found) == len(expected)
        for got, want in zip(found, expected, strict=True):
            assert got.dtype == want.dtype and got.shape == want.shape
            plain = [jax.random.key_data(leaf) if processes.is_keys(leaf) else leaf for leaf in (got, want)]
            np.testing.assert_array_equal(*(np.asarray(leaf, np.float64) for leaf in plain))


def test_two_processes_measure_the_same_arms_and_say_how_often_each():
    found = compare_steps(ARMS, WEIGHTS, 0.0, baseline="plain", seconds=0.02, processes=2)
    assert len(found.rounds_each) == 2 and sum(found.rounds_each) == found.rounds >= 14
    assert list(found.arms) == ["plain", "by hand"] and found.arms["by hand"].compile_s > 0
    assert all(len(arm.samples_s) == found.rounds and np.all(arm.samples_s > 0) for arm in found.arms.values())
    assert len(found.control_s) == len(found.sentinel_s) == found.rounds
    assert f"{found.rounds} interleaved rounds in 2 processes" in str(found)
    assert found.to_dict()["rounds_each"] == list(found.rounds_each)


def comparison(*factors):
    """The arm's ratio to the baseline in each process, all rounds alike."""
    times = np.full(10 * len(factors), 1e-6)
    arms = {"a": ArmTiming(0.1, times), "b": ArmTiming(0.1, times * np.repeat(factors, 10))}
    return StepComparison("a", arms, times, times, (10,) * len(factors))


def test_a_verdict_has_to_hold_in_each_process():
    assert comparison(1.1, 1.2, 1.3).verdicts == {"b": "slower"}
    assert comparison(0.9, 0.8).verdicts == {"b": "faster"}
    assert comparison(1.1, 1.2, 0.99).verdicts == {"b": "indistinguishable"}
    ratio = comparison(1.1, 1.2, 0.99).ratios["b"]
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((0.99, 1.1, 1.2))


def test_what_a_process_refuses_of_its_share_of_the_time_is_refused_here(monkeypatch):
    class Done:
        returncode = 0

    def run(call, **options):
        folder = call[-1]
        seconds = json.loads(Path(folder, "order.json").read_text(encoding="utf-8"))["seconds"]
        refused = {"refused": f"seconds: got {seconds}; expected at least 9"}
        Path(folder, "found.json").write_text(json.dumps(refused), encoding="utf-8")
        return Done

    monkeypatch.setattr(processes.subprocess, "run", run)
    with pytest.raises(ValueError, match=r"seconds: got 0.5; expected at least 9, in each of 2 processes"):
        compare_steps(ARMS, WEIGHTS, 0.0, baseline="plain", seconds=1, processes=2)


def test_a_process_that_fails_says_its_last_words(monkeypatch):
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="processes: one of them failed: exit code 1"):
        compare_steps(ARMS, WEIGHTS, 0.0, baseline="plain", seconds=1, processes=2)


def test_without_flatbuffers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    with pytest.raises(ImportError, match=r'flatbuffers is not installed: pip install "minijaxnet\[bench\]"'):
        compare_steps(ARMS, WEIGHTS, 0.0, baseline="plain", seconds=1, processes=2)


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_processes_must_be_a_count(count, error):
    with pytest.raises(error, match=rf"processes: got {count}; expected"):
        compare_steps(ARMS, WEIGHTS, 0.0, baseline="plain", processes=count)
