"""Tools that time steps, judged: the planted work is exact, and what the tools say is counted as it should be."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import timeit
from pathlib import Path

import benchmarks_compared
import jax
import numpy as np
import pytest
import timers
from benchmarks_compared import PLANTED, Task
from kits.marks import slow
from timers import FASTER, ROUNDS, SLOWER, Found, Tool

from minijaxnet.bench.blocks import compilations, fused, start_state
from minijaxnet.bench.flops import count

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
EQUAL = Task(0.0, True, 1.0)


def flops_of(arms) -> list[int]:
    state = arms.first.init(arms.params)
    counts = [count(jax.make_jaxpr(descent.step)(state, arms.batch)) for descent in (arms.first, arms.second)]
    assert not any(found.notes for found in counts)
    return [found.flops for found in counts]


# --- What is planted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("slower", [True, False])
def test_the_slower_arm_does_exactly_so_much_more_work(planted, slower):
    task = Task(planted, slower, 1.0)
    arms = benchmarks_compared.arms_of(task)
    first, second = flops_of(arms)
    assert (second / first if slower else first / second) == pytest.approx(1 + planted, rel=1e-12)
    assert task.truth == (None if not planted else SLOWER if slower else FASTER)
    assert arms.first.step is not arms.second.step, "two equal arms are functions of their own"


def test_a_step_is_its_rounds_one_after_the_other():
    arms = benchmarks_compared.arms_of(EQUAL)
    state, report = timers.rounds_of(3).step(arms.first.init(arms.params), arms.batch)
    x = np.asarray(arms.params)
    for _ in range(3):
        x = np.tanh(x @ np.asarray(arms.batch))
    np.testing.assert_allclose(state.params, x, rtol=1e-3, atol=1e-5)
    assert (int(state.step), report.loss) == (1, state.params[0, 0])


@pytest.mark.parametrize("planted", [0.005, *slow(0.0, 0.1)])
def test_xla_keeps_the_loop_with_all_its_rounds(planted):
    arms = benchmarks_compared.arms_of(Task(planted, True, 1.0))
    state = start_state(arms.second, arms.params, None)
    traced = jax.jit(arms.second.step).trace(state, arms.batch)
    for program in (arms.second.step, fused(traced)):
        given = (state, arms.batch) if program is arms.second.step else (state, arms.batch, 1)
        text = jax.jit(program).lower(*given).compile().as_text()
        rounds = round(ROUNDS * (1 + planted))
        assert f'"known_trip_count":{{"n":"{rounds}"}}' in text
        assert text.count(" dot(") == 1


def test_what_goes_from_step_to_step_neither_vanishes_nor_saturates():
    arms = benchmarks_compared.arms_of(EQUAL)
    state, step = arms.first.init(arms.params), jax.jit(arms.first.step)
    for _ in range(20):
        for _ in range(5):
            state, report = step(state, arms.batch)
        sizes = np.abs(np.asarray(state.params))
        assert np.all(np.isfinite(sizes))
        assert np.min(sizes) > 1e-12
        assert 0.2 < np.median(sizes) < 0.9
        assert np.mean(sizes > 0.999) < 0.01
        assert report.loss == state.params[0, 0]


# --- The comparisons to make ----------------------------------------------------------------------------------------


def test_a_plan_has_every_comparison_and_both_ways_round():
    tasks = benchmarks_compared.plan(30, 20, 2.0, np.random.default_rng(0))
    assert tasks == benchmarks_compared.plan(30, 20, 2.0, np.random.default_rng(0))
    assert tasks != benchmarks_compared.plan(30, 20, 2.0, np.random.default_rng(1))
    planted = [task.planted for task in tasks]
    assert {share: planted.count(share) for share in PLANTED} == {share: 20 if share else 30 for share in PLANTED}
    assert planted != sorted(planted) and {task.seconds for task in tasks} == {2.0}
    for share in PLANTED[1:]:
        assert 3 <= sum(task.slower for task in tasks if task.planted == share) <= 17


# --- Counted ----------------------------------------------------------------------------------------------------------


def record(planted, truth, **tools):
    found = {tool: value if isinstance(value, dict) else Found(*value)._asdict() for tool, value in tools.items()}
    return {"load": "none", "planted": planted, "slower": True, "seconds": 1.0, "truth": truth, "tools": found}


RECORDS = [
    *(record(0.0, None, minijaxnet=(1.0, "same"), timeit=(ratio,)) for ratio in [1.0] * 19 + [1.04]),
    record(0.0, None, minijaxnet=(1.0, "slower", False), timeit=(0.95,)),
    record(0.03, SLOWER, minijaxnet=(1.03, "slower"), timeit=(1.03,)),
    record(0.03, FASTER, minijaxnet=(0.97, "faster"), timeit=(1 / 1.05,)),
    record(0.03, FASTER, minijaxnet=(1.0, "slower"), timeit={"error": "ValueError: no time"}),
    record(0.03, FASTER, minijaxnet=(1.0, "undecided"), timeit=(1.05,)),
]


def test_a_tool_without_a_verdict_is_given_the_threshold_that_5_per_cent_of_its_equal_arms_exceed():
    assert benchmarks_compared.shares(RECORDS, "timeit") == {0.0: (1, 0, 21), 0.03: (1, 1, 3)}
    assert benchmarks_compared.shares(RECORDS, "minijaxnet") == {0.0: (1, 1, 21), 0.03: (2, 1, 4)}
    assert benchmarks_compared.shares(RECORDS, "torch") == {}


def test_the_table_and_the_picture_have_a_line_a_tool(tmp_path):
    other = [each | {"load": "random"} for each in RECORDS]
    lines = benchmarks_compared.table([*RECORDS, *other]).splitlines()
    rows = [line.split() for line in lines if line.startswith(("minijaxnet", "timeit"))]
    assert lines[0] == "1 s, quiet" and "1 s, another core busy" in lines
    assert rows[0] == ["minijaxnet", "1", "of", "21", "2", "of", "4", "1", "1"]
    assert rows[1] == ["timeit", "1", "of", "21", "1", "of", "3", "1", "0"]
    benchmarks_compared.drawn([*RECORDS, *other], tmp_path / "power.svg")
    text = (tmp_path / "power.svg").read_text()
    assert all(words in text for words in ("minijaxnet", "timeit", "1 s, another core busy", "planted slowdown"))


# --- The tools themselves -------------------------------------------------------------------------------------------


def test_a_call_is_compiled_before_it_is_timed_and_waits_for_all_that_it_returns(monkeypatch):
    arms = benchmarks_compared.arms_of(EQUAL)
    calls = timers.calls_of(arms)
    waited = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: waited.append(tree) or wait(tree))
    with compilations() as compiled:
        for call in calls:
            state, report = call()
            assert waited[-1] == (state, report)
    assert not compiled
    assert int(state.step) == 1


def test_timeit_gives_the_ratio_of_two_medians(monkeypatch):
    now, draw = [0.0], np.random.default_rng(0)
    calls = [lambda step_s=step_s: now.append(now[-1] + step_s * draw.uniform(1, 2)) for step_s in (1e-3, 2e-3)]
    monkeypatch.setattr(timers, "calls_of", lambda arms: calls)
    monkeypatch.setattr(timers.timeit, "Timer", functools.partial(timeit.Timer, timer=lambda: now[-1]))
    assert timers.by_timeit(None, 20).ratio == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("name", ["minijaxnet", *slow(*(name for name in timers.TOOLS if name != "minijaxnet"))])
def test_every_tool_measures_both_arms(name, monkeypatch, tmp_path, capsys):
    tool = timers.TOOLS[name]
    if tool.needs:
        pytest.importorskip(tool.needs)
    for variable in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):  # where it runs itself, it times nothing
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    found = benchmarks_compared.measured(tool, EQUAL._replace(seconds=0.01 if name == "minijaxnet" else 0.8))
    assert "error" not in found and found["ratio"] > 0
    assert (found["verdict"] is None) == (name != "minijaxnet")
    json.dumps(found)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_session_of_pytest_that_fails_says_why(monkeypatch):
    pytest.importorskip("pytest_benchmark")
    monkeypatch.setattr(timers, "_PYTEST", "def test_arm(calls):\n    raise OSError('no arms today')\n")
    with pytest.raises(RuntimeError, match=r"(?s)pytest ended with .*no arms today"):
        timers.by_pytest_benchmark(benchmarks_compared.arms_of(EQUAL), 0.1)


# --- The load ---------------------------------------------------------------------------------------------------------


def test_the_load_works_meanwhile_and_ends_after_whatever_happens():
    with benchmarks_compared.load("none", 0) as process:
        assert process is None
    for seed, error in enumerate((None, KeyboardInterrupt)):
        with contextlib.suppress(KeyboardInterrupt), benchmarks_compared.load("random", seed) as process:
            assert process.poll() is None
            if error:
                raise error
        assert process.poll() is not None
        assert process.stdin.closed


@pytest.mark.slow
def test_the_load_ends_with_a_parent_that_is_killed():
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import benchmarks_compared as b\n"
        "with b.load('random', 0) as busy:\n    print(busy.pid, flush=True)\n    time.sleep(600)\n"
    )
    call = [sys.executable, "-c", script, str(EXPERIMENTS)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"}) as parent:
        try:
            assert parent.stdout is not None
            assert int(parent.stdout.readline()) > 0
        finally:
            parent.kill()
        # It holds the same pipe: the end of it is that of both.
        assert parent.communicate(timeout=120)[0] == b""


def test_a_load_that_ended_too_soon_is_no_load(monkeypatch):
    @contextlib.contextmanager
    def dead(kind, seed):
        process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
        process.wait()
        yield process

    monkeypatch.setattr(benchmarks_compared, "load", dead)
    monkeypatch.setattr(benchmarks_compared, "TOOLS", FAKES)
    with pytest.raises(RuntimeError, match="the load ended with 3 while"):
        benchmarks_compared.carried_out("random", [EQUAL], ["oracle"], 0, lambda records: None)


# --- Carried out ------------------------------------------------------------------------------------------------------


def oracle(arms, seconds):
    state = arms.first.init(arms.params)
    first, second = (
        sum(count(jax.jit(d.step).trace(state, arms.batch).jaxpr).matrix.values()) for d in (arms.first, arms.second)
    )
    return Found(second / first)


def noisy(arms, seconds):
    raise ValueError("seconds: got 0.1; expected at least 1")


FAKES = {
    "oracle": Tool(None, oracle),
    "prejudiced": Tool(None, lambda arms, seconds: Found(1.0, SLOWER)),
    "noisy": Tool(None, noisy),
    "absent": Tool("no_such_package", noisy),
}


@pytest.mark.parametrize("load", ["none", *slow("both")])
def test_verdicts_are_counted_and_added_to_what_was_saved(load, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(benchmarks_compared, "TOOLS", FAKES)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # those of the other tests, too
    file, loads = tmp_path / "power.json", 2 if load == "both" else 1
    arguments = ["benchmarks_compared.py", "--tools", ",".join(FAKES), "--load", load, "--seconds", "0.1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--equal", "4", "--planted", "2", "--json", str(file)])
    benchmarks_compared.main()
    records = json.loads(file.read_text(encoding="utf-8"))
    assert len(records) == 16 * loads
    assert all(set(each["tools"]) == {"oracle", "prejudiced", "noisy"} for each in records)
    assert {each["tools"]["noisy"]["error"] for each in records} == {
        "ValueError: seconds: got 0.1; expected at least 1"
    }
    printed = capsys.readouterr().out
    assert "absent: not installed" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith("oracle ")]
    assert rows == [["oracle", "0", "of", "4", *["2", "of", "2"] * 6, "0", "0"]] * loads
    slower = sum(each["truth"] == SLOWER for each in records) // loads
    [prejudiced, *_] = [line.split() for line in printed.splitlines() if line.startswith("prejudiced ")]
    assert prejudiced[:4] == ["prejudiced", "4", "of", "4"] and int(prejudiced[-2]) == 12 - slower
    benchmarks_compared.main()
    assert len(json.loads(file.read_text(encoding="utf-8"))) == 32 * loads


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--tools stopwatch", "--tools: got stopwatch; expected some of minijaxnet, timeit, pytest-benchmark, torch"),
        ("--equal 0", "--equal: got 0; expected at least 1"),
        ("--planted -1", "--planted: got -1; expected at least 0"),
        ("--seed -1", "--seed: got -1; expected at least 0"),
        ("--repetitions 0", "--repetitions: got 0; expected at least 1"),
        ("--seconds nan", "--seconds: got nan; expected a positive number"),
        ("--seconds 0", "--seconds: got 0; expected a positive number"),
        ("--load heavy", "argument --load: invalid choice: 'heavy' (choose from"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks_compared.py", *arguments.split()])
    with pytest.raises(SystemExit):
        benchmarks_compared.main()
    assert said in capsys.readouterr().err


# --- What time_step adds ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_time_step_beside_a_bare_loop():
    pytest.importorskip("optax")
    table = benchmarks_compared.overhead(2, 0.1, steps=1_000)
    assert [line[:26].strip() for line in table.splitlines()[2:]] == [
        "time_step, fused",
        "bare loop",
        "bare loop, reports dropped",
    ]
    assert table.splitlines()[3].endswith("1.000")


def test_only_the_overhead_is_shown_if_that_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(benchmarks_compared, "overhead", lambda repetitions, seconds: f"{repetitions} and {seconds}")
    monkeypatch.setattr(sys, "argv", ["benchmarks_compared.py", "--overhead", "--repetitions", "3", "--seconds", "1"])
    benchmarks_compared.main()
    assert capsys.readouterr().out == "3 and 1.0\n"
