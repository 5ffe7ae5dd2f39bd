"""Rounds of blocks by clocks of our own making, so that nothing hangs on how busy the machine is."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from minijaxnet import StepComparison
from minijaxnet.bench import ArmTiming, rounds
from minijaxnet.bench import blocks as bench_blocks
from minijaxnet.bench.intervals import fewest_samples
from minijaxnet.bench.rounds import block, take_rounds


@pytest.fixture
def taken(monkeypatch):
    """Take rounds while the clock goes on by ``tick(look)`` a look, and compare the arms with the first of them."""

    def take(blocks, seconds, tick=lambda look: 0.001):
        clock = itertools.accumulate(map(tick, itertools.count()))
        monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=clock.__next__))
        monkeypatch.setattr(rounds, "sentinel", lambda: lambda: 1e-6)
        baseline, *_ = blocks
        found = take_rounds(blocks, blocks[baseline], seconds=seconds)
        arms = {name: ArmTiming(0.1, samples) for name, samples in found.arms.items()}
        return StepComparison(baseline, arms, found.control, found.sentinel, {"cpu": "one"})

    return take


def noisy(factors, noise):
    return {name: lambda factor=factor: 1e-6 * factor * noise() for name, factor in factors.items()}


@pytest.mark.parametrize(("factor", "verdict"), [(1, "indistinguishable"), (0.5, "faster"), (2, "slower")])
def test_a_comparison_finds_what_was_put_into_the_times(taken, factor, verdict):
    draw = np.random.default_rng(0)
    found = taken(noisy({"plain": 1, "by hand": factor}, lambda: 1 + draw.exponential(0.3)), 1)
    assert found.sound and found.rounds >= 100
    assert found.verdicts == {"by hand": verdict}
    ratio = found.ratios["by hand"]
    assert ratio.low <= factor <= ratio.high
    assert found.control.low <= 1 <= found.control.high
    assert all(len(arm.samples_s) == found.rounds for arm in found.arms.values())


@pytest.mark.parametrize(("factor", "verdict"), [(1, "indistinguishable"), (1.2, "slower")])
def test_a_drift_that_all_share_leaves_no_trace(taken, factor, verdict):
    age = itertools.count()
    found = taken(noisy({"a": 1, "b": factor}, lambda: 1.01 ** next(age)), 1)  # 3 % slower each round
    assert found.arms["a"].samples_s[-1] > 10 * found.arms["a"].samples_s[0]
    assert found.sound and found.verdicts == {"b": verdict}


def test_each_arm_is_timed_once_a_round_and_the_baseline_twice(taken):
    calls = []
    found = taken({name: lambda name=name: calls.append(name) or 1e-6 for name in "ab"}, 0.5)
    each = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(each) == found.rounds
    assert {"".join(sorted(names)) for names in each} == {"aab"}
    assert set(each) == {"aab", "aba", "baa"}, "in a new order each round"


# --- As many rounds as an interval needs ------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["ab", "abc", "abcdefghij"])
def test_at_least_the_rounds_that_an_interval_needs_are_taken_however_short_the_time(taken, names):
    draw = np.random.default_rng(0)
    found = taken(noisy(dict.fromkeys(names, 1), draw.random), 1e-6)
    assert found.rounds == fewest_samples(len(names))
    low, high = found.ratios["b"].low, found.ratios["b"].high
    assert low <= found.ratios["b"].median <= high


def test_no_round_is_begun_that_would_last_beyond_the_time(taken):
    # Each takes 1 s, then one takes 3: after it there have to be 3 s left.
    assert taken({"a": lambda: 1e-6, "b": lambda: 1e-6}, 20, lambda look: 3 if look == 8 else 1).rounds == 15
    assert taken({"a": lambda: 1e-6, "b": lambda: 1e-6}, 20.5, lambda look: 1).rounds == 20


@pytest.mark.parametrize(
    ("seconds", "round_s", "needed_s"),
    [(1, 4.4, None), (1, 4.5, 31.5), (4, 5.7, None), (4, 5.8, 40.6), (0.01, 4.28, None), (0.01, 4.29, 30.0)],
)
def test_only_rounds_that_take_half_a_minute_more_and_ten_times_as_long_are_refused(taken, seconds, round_s, needed_s):
    arms = {"a": lambda: 1e-6, "b": lambda: 1e-6}
    if needed_s is None:
        assert taken(arms, seconds, lambda look: round_s).rounds == 7
        return
    words = rf"seconds: got {seconds:g}; expected at least {needed_s:.1f}, the 7 rounds that an interval needs"
    with pytest.raises(ValueError, match=words):
        taken(arms, seconds, lambda look: round_s)


@pytest.mark.parametrize("busy", [{1}, {2}, {1, 3, 5}, {2, 3, 4, 5, 6, 7}])
def test_a_machine_that_is_busy_for_a_while_is_no_reason_to_refuse(taken, busy):
    # A minute each: seven such rounds would be refused, but one has shown that they need not take so long.
    found = taken({"a": lambda: 1e-6, "b": lambda: 1e-6}, 1, lambda look: 60 if look in busy else 0.001)
    assert found.rounds == 7


# --- Blocks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(monkeypatch):
    """``(run, asked)``: what goes on by ``took(steps, call)`` seconds, and the numbers of steps it was asked for."""

    def make(took):
        now, asked = [0.0], []

        def run(steps):
            now[0] += took(steps, len(asked))
            asked.append(steps)

        monkeypatch.setattr(bench_blocks, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        return run, asked

    return make


@pytest.mark.parametrize("step_s", [1e-9, 3.7e-8, 1e-6, 5e-4, 0.015, 3.0])
def test_a_block_is_one_step_or_as_many_as_are_long_against_the_call(program, step_s):
    run, asked = program(lambda steps, call: 1e-5 + steps * step_s)
    timed = block("a", run)
    assert len(asked) <= 12
    assert timed() == pytest.approx(step_s, rel=2e-3)
    assert asked[-1] == 1 or asked[-1] * step_s < 2 * rounds._BLOCK_S


@pytest.mark.parametrize("hiccups", [(0,), (1,), (0, 1), (1, 3)])
def test_a_hiccup_of_the_machine_does_not_leave_a_block_of_one_step(program, hiccups):
    run, asked = program(lambda steps, call: 1e-5 + steps * 1e-7 + (call in hiccups))
    timed = block("a", run)
    assert timed() == pytest.approx(1e-7, rel=2e-3)
    assert asked[-1] * 1e-7 >= rounds._BLOCK_S / 2 - 1e-5


def test_no_block_has_more_steps_than_an_int32_holds(program):
    run, asked = program(lambda steps, call: 0.0)
    with pytest.raises(ValueError, match=r"arms\['a'\]: got a step that does nothing"):
        block("a", run)
    assert max(asked) == bench_blocks._MOST_STEPS < 2**31
    assert len(asked) < 12
