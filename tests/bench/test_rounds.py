"""Rounds of blocks by made-up clocks, so that nothing depends on how busy the machine is."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minijaxnet.bench import blocks as bench_blocks
from minijaxnet.bench import rounds
from minijaxnet.bench.rounds import BLOCK_S, LOOKS, WARM_CALLS, Block, block_length, calls_of, take_rounds

# --- Rounds -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def taken(monkeypatch):
    """Take rounds while each reading of the clock advances it by ``tick``: ``(risk, rounds)`` at each look."""

    def take(runs, seconds, tick=lambda look: 0.001, needed=lambda risk: 7):
        clock, looks = itertools.accumulate(map(tick, itertools.count())), []
        monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=clock.__next__))
        for risk, _, found, fixed_s in take_rounds(runs, lambda: 2e-6, needed, seconds):
            assert fixed_s.tolist() == [2e-6] * -(-len(found) // 8), "the fixed workload runs every few rounds"
            looks.append((risk, found))
        return looks

    return take


def always():
    return 1e-6


def test_each_run_has_its_turn_once_a_round_in_a_new_order():
    calls = []
    turns = rounds.in_turns([lambda name=name: calls.append(name) or 1e-6 for name in "abc"])
    for _ in range(100):
        next(turns)
    each = {"".join(calls[i : i + 3]) for i in range(0, len(calls), 3)}
    assert each == {"".join(order) for order in itertools.permutations("abc")}


def test_there_is_a_look_at_each_share_of_the_time_with_all_rounds_so_far(taken):
    ages = itertools.count(1)
    found = taken([lambda: next(ages), always], 1)
    assert [risk for risk, _ in found] == list(LOOKS.values())
    assert sum(LOOKS.values()) == pytest.approx(0.05), "of all looks together"
    for share, (_, times) in zip(LOOKS, found, strict=True):
        assert len(times) == pytest.approx(1000 * share, abs=3)
        assert sorted(times[:, 0]) == list(range(1, len(times) + 1))


def test_a_look_with_too_few_rounds_is_left_out_and_the_last_one_waits_for_them(taken):
    needed = {0.002: 50, 0.006: 40, 0.012: 30, 0.03: 20}.__getitem__
    assert [len(times) for _, times in taken([always], 1e-6, needed=needed)] == [20]
    assert [(risk, len(times)) for risk, times in taken([always], 0.1, needed=needed)] == [(0.012, 49), (0.03, 99)]


def test_no_round_is_begun_that_would_last_beyond_the_time(taken):
    assert len(taken([always], 20.5, lambda look: 1)[-1][1]) == 20
    hiccup = taken([always], 1, lambda look: 0.3 if look == 5 else 0.001)
    assert len(hiccup[-1][1]) > 650, "one long round does not end it early"


@pytest.mark.parametrize(("seconds", "accepted_s", "refused_s"), [(1, 4.4, 4.5), (4, 5.7, 5.8)])
def test_only_rounds_that_take_half_a_minute_more_and_ten_times_as_long_are_refused(
    taken, seconds, accepted_s, refused_s
):
    assert len(taken([always], seconds, lambda look: accepted_s)[-1][1]) == 7
    words = rf"seconds: got {seconds:g}; expected at least {7 * refused_s:.1f}, for the 7 rounds that an interval needs"
    with pytest.raises(ValueError, match=words):
        taken([always], seconds, lambda look: refused_s)


@pytest.mark.parametrize("busy", [{1}, {2, 3, 4, 5, 6, 7}])
def test_a_machine_that_is_busy_for_a_while_is_no_reason_to_refuse(taken, busy):
    # A minute each: seven such rounds would be refused, but one has shown that they need not take so long.
    assert len(taken([always], 1, lambda look: 60 if look in busy else 0.001)[-1][1]) == 7


# --- What a call costs ------------------------------------------------------------------------------------------------


def test_a_call_costs_the_same_for_all_but_an_arm_whose_call_surely_costs_more():
    draw = np.random.default_rng(0)
    calls_s = 80e-6 * (1 + draw.exponential(0.1, (200, 4)))
    calls_s[:, 1] += 20e-6
    same, more, first, second = calls_of(calls_s, [2, 3])
    assert same == first == second == np.median(calls_s[:, 2:])
    assert more - same == pytest.approx(20e-6, rel=0.1)
    assert len(set(calls_of(np.array([[1.0, 5.0, 1.0]] * 3), [0, 2]))) == 1, "of few calls none is sure"


# --- Blocks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(monkeypatch):
    """``(run, calls)``: a program that takes ``took(steps, call)`` seconds, and its numbers of steps."""

    def make(took):
        now, calls = [0.0], []

        def run(state, batch, steps):
            now[0] += took(steps, len(calls))
            calls.append(steps)

        monkeypatch.setattr(bench_blocks, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        return run, calls

    return make


@pytest.mark.parametrize("step_s", [1e-9, 1e-6, 5e-4, 3.0])
def test_a_block_is_one_step_or_as_many_as_are_long_against_the_call(program, step_s):
    run, calls = program(lambda steps, call: 1e-5 + steps * step_s)
    steps, took = block_length("a", run, (None, None))
    assert took == pytest.approx(1e-5 + steps * step_s)
    assert steps == 1 or BLOCK_S / 2 < steps * step_s < 2 * BLOCK_S
    assert len(calls) <= 16 and calls.count(steps) >= WARM_CALLS


def test_a_block_is_ten_calls_long_where_calls_are_slow(program):
    run, _ = program(lambda steps, call: 1e-3 + steps * 1e-6)
    assert 5e-3 < block_length("a", run, (None, None))[0] * 1e-6 < 20e-3


@pytest.mark.parametrize("delayed", [(3,), (3, 4), (4, 6)])
def test_a_delay_of_the_machine_does_not_leave_a_block_of_one_step(program, delayed):
    run, _ = program(lambda steps, call: 1e-5 + steps * 1e-7 + (call in delayed))
    assert block_length("a", run, (None, None))[0] * 1e-7 >= BLOCK_S / 2 - 1e-5


def test_no_block_has_more_steps_than_an_int32_holds(program):
    run, calls = program(lambda steps, call: 0.0)
    with pytest.raises(ValueError, match=r"arms\['a'\]: got a step that does nothing"):
        block_length("a", run, (None, None))
    assert max(calls) == bench_blocks._MOST_STEPS < 2**31


START = (jnp.zeros(4), jnp.ones(4))


@pytest.fixture
def watched():
    """Two programs of a block, and their calls: ``(which, address of the state, steps)``."""
    calls = []

    def program(which):
        loop = jax.jit(lambda state, batch, steps: state + batch * steps).lower(*START, 1).compile()

        def watch(state, batch, steps):
            calls.append((which, state.unsafe_buffer_pointer(), steps))
            return loop(state, batch, steps)

        watch.input_shardings = loop.input_shardings
        return watch

    return [program(which) for which in range(2)], calls


def test_each_block_has_new_copies_and_one_of_the_programs_both_of_them_warm(watched):
    programs, calls = watched
    block = Block(programs, START, 5)
    assert sum(steps == 1 for *_, steps in calls) == 2 * WARM_CALLS, "each program is warm"
    block._new_every = 1  # copying four numbers takes as long as adding them
    calls.clear()
    took = [block() for _ in range(200)]
    assert min(took) > 0 and len(block.calls_s) == 100
    assert [steps for *_, steps in calls] == [1, 0, 5, 1, 5] * 100, "a step that is not timed comes first"
    for each in range(0, 500, 5):
        (one,), (other,) = ({call[:2] for call in calls[k:n]} for k, n in ((each, each + 3), (each + 3, each + 5)))
        assert one[1] != START[0].unsafe_buffer_pointer() != other[1], "the same program and copies within a block"
    blocks = [call for call in calls if call[2] == 5]
    assert {which for which, *_ in blocks} == {0, 1}
    places = [place for _, place, _ in blocks]
    assert len(set(places)) > 8 and sum(a == b for a, b in itertools.pairwise(places)) < 20


def test_copies_that_take_long_are_made_less_often_and_few_are_kept_of_large_ones(watched, monkeypatch):
    programs, calls = watched
    block = Block(programs, START, 5)
    block._new_every = 10
    calls.clear()
    for _ in range(40):
        block()
    assert len({place for _, place, _ in calls}) <= 4
    monkeypatch.setattr(rounds, "_KEPT_BYTES", 3 * 32)
    block._new_every = 1
    for _ in range(20):
        block()
    assert len(block._copies) == 3
