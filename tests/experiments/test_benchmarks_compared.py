"""Tools that time steps, judged: the planted work is exact, and what the tools say is counted as it should be."""

import contextlib
import functools
import json
import math
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
from benchmarks_compared import Task
from kits.marks import slow
from timers import FASTER, PLANTED, SAME, SLOWER, Tool

from minijaxnet.bench import rounds
from minijaxnet.bench.blocks import compilations, fused, start_state
from minijaxnet.bench.flops import count

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def arms_of(kind: str, truth: str) -> timers.Arms:
    return benchmarks_compared.arms_of(Task(kind, truth, 1.0))


def flops_of(arms) -> list[int]:
    state = arms.first.init(arms.params)
    counts = [count(jax.make_jaxpr(descent.step)(state, arms.batch)) for descent in (arms.first, arms.second)]
    assert not any(found.notes for found in counts)
    return [found.flops for found in counts]


# --- What is planted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "truth", "ratio"),
    [
        ("A/A", SAME, (100, 100)),
        ("3 %", SLOWER, (100, 103)),
        ("3 %", FASTER, (103, 100)),
        ("10 %", SLOWER, (100, 110)),
        ("10 %", FASTER, (110, 100)),
    ],
)
def test_the_slower_arm_does_exactly_so_much_more_work(kind, truth, ratio):
    arms = arms_of(kind, truth)
    first, second = flops_of(arms)
    assert first * ratio[1] == second * ratio[0]
    assert arms.first.step is not arms.second.step, "two equal arms are functions of their own"


def test_a_step_is_its_rounds_one_after_the_other():
    arms = arms_of("A/A", SAME)
    state, report = timers.rounds_of(3).step(arms.first.init(arms.params), arms.batch)
    x = np.asarray(arms.params)
    for _ in range(3):
        x = np.tanh(x @ np.asarray(arms.batch))
    np.testing.assert_allclose(state.params, x, rtol=1e-3, atol=1e-5)
    assert (int(state.step), report.loss) == (1, state.params[0, 0])


@pytest.mark.parametrize("kind", ["3 %", *slow("A/A", "10 %")])
def test_xla_keeps_the_loop_with_all_its_rounds(kind):
    arms = arms_of(kind, SLOWER)
    state = start_state(arms.second, arms.params, None)
    traced = jax.jit(arms.second.step).trace(state, arms.batch)
    for program in (arms.second.step, fused(traced)):
        given = (state, arms.batch) if program is arms.second.step else (state, arms.batch, 1)
        text = jax.jit(program).lower(*given).compile().as_text()
        rounds = round(400 * (1 + PLANTED[kind]))
        assert f'"known_trip_count":{{"n":"{rounds}"}}' in text
        assert text.count(" dot(") == 1


def test_what_goes_from_step_to_step_neither_vanishes_nor_saturates():
    arms = arms_of("A/A", SAME)
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
    kinds = [task.kind for task in tasks]
    assert {kind: kinds.count(kind) for kind in PLANTED} == {"A/A": 30, "3 %": 20, "10 %": 20}
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)
    assert {(task.kind, task.seconds) for task in tasks} == {("A/A", 2.0), ("3 %", 10.0), ("10 %", 2.0)}
    for kind in ("3 %", "10 %"):
        truths = [task.truth for task in tasks if task.kind == kind]
        assert 5 <= truths.count(SLOWER) <= 15
        assert truths.count(SLOWER) + truths.count(FASTER) == 20
    assert {task.truth for task in tasks if task.kind == "A/A"} == {SAME}


# --- Rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "times", "verdict"),
    [
        (timers.printed, (1.000, 1.004), SAME),
        (timers.printed, (1.000, 1.006), SLOWER),
        (timers.printed, (1.02e-4, 1.01e-4), FASTER),
        (timers.factor, (1.000, 1.0049), SAME),
        (timers.factor, (1.000, 1.0051), SLOWER),
        (timers.factor, (1.0051, 1.000), FASTER),
        (timers.factor, (1.0, 1.0), SAME),
        (lambda times: timers.apart(times, 0.015), (1.0, 1.014), SAME),
        (lambda times: timers.apart(times, 0.015), (1.0, 1.016), SLOWER),
        (lambda times: timers.apart(times, 0.015), (1.016, 1.0), FASTER),
    ],
)
def test_a_rule_makes_a_verdict_on_the_second(rule, times, verdict):
    assert rule(times) == verdict


def verdicts_of(tool: str, figures: dict) -> list[str]:
    return [rule(figures) for rule in timers.TOOLS[tool].rules.values()]


def test_the_rows_of_each_tool():
    seconds = {"median": (1.0, 1.02), "best": (1.06, 1.0), "min": (1.06, 1.0)}
    assert verdicts_of("timeit", {"seconds": seconds}) == [SLOWER, FASTER, SLOWER, SAME, FASTER, FASTER]
    assert verdicts_of("pytest-benchmark", {"seconds": seconds}) == [SLOWER, FASTER, SLOWER, SAME, FASTER, FASTER]
    figures = {"seconds": seconds, "printed": (1.0, 1.02), "digits": (3, 3), "warned": False}
    assert verdicts_of("torch", figures) == [SLOWER, SLOWER, SLOWER, SLOWER, SAME]
    assert verdicts_of("torch", figures | {"warned": True}) == [SLOWER, SAME, SLOWER, SLOWER, SAME]
    assert verdicts_of("torch", figures | {"digits": (3, 2)}) == [SLOWER, SAME, SLOWER, SLOWER, SAME]
    assert verdicts_of("minijaxnet", {"verdict": SLOWER, "sound": False}) == [SLOWER]


# --- The tools themselves -------------------------------------------------------------------------------------------


def test_a_call_is_compiled_before_it_is_timed_and_waits_for_all_that_it_returns(monkeypatch):
    arms = arms_of("A/A", SAME)
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


def test_timeit_gives_the_time_of_one_call_of_each_arm(monkeypatch):
    now, draw = [0.0], np.random.default_rng(0)
    calls = [lambda step_s=step_s: now.append(now[-1] + step_s * draw.uniform(1, 2)) for step_s in (1e-3, 2e-3)]
    monkeypatch.setattr(timers, "calls_of", lambda arms: calls)
    monkeypatch.setattr(timers.timeit, "Timer", functools.partial(timeit.Timer, timer=lambda: now[-1]))
    found = timers.by_timeit(None, 20)["seconds"]
    assert found["median"] == pytest.approx([1.5e-3, 3e-3], rel=0.02)
    assert found["best"] == pytest.approx([1.5e-3, 3e-3], rel=0.1)
    assert max(np.divide(found["best"], found["median"])) < 1


@pytest.mark.parametrize("name", ["minijaxnet", *slow(*(name for name in timers.TOOLS if name != "minijaxnet"))])
def test_every_tool_measures_both_arms(name, monkeypatch, tmp_path, capsys):
    tool = timers.TOOLS[name]
    if tool.needs:
        pytest.importorskip(tool.needs)
    for variable in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):  # where it runs itself, it times nothing
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(rounds, "_BLOCK_S", 0.002)
    monkeypatch.chdir(tmp_path)
    found = benchmarks_compared.measured(tool, Task("A/A", SAME, 0.01 if name == "minijaxnet" else 0.8))
    assert "error" not in found
    assert set(found["verdicts"]) == set(tool.rules)
    assert set(found["verdicts"].values()) <= {SAME, SLOWER, FASTER}
    for statistic, pair in found.get("seconds", {}).items():
        assert len(pair) == 2 and min(pair) > 0
        assert found["ratio"][statistic] == pair[1] / pair[0]
    if name == "torch":
        assert len(found["printed"]) == len(found["digits"]) == 2
        for shown, seconds, digits in zip(found["printed"], found["seconds"]["median"], found["digits"], strict=True):
            # The table is in a unit of its own.
            unit = 10.0 ** (3 * round(math.log10(shown / seconds) / 3))
            assert shown == pytest.approx(unit * seconds, rel=10.0 ** (1 - digits))
            assert shown == float(f"{shown:.{digits}g}")
    json.dumps(found)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_session_of_pytest_that_fails_says_why(monkeypatch):
    pytest.importorskip("pytest_benchmark")
    monkeypatch.setattr(timers, "_PYTEST", "def test_arm(calls):\n    raise OSError('no arms today')\n")
    with pytest.raises(RuntimeError, match=r"(?s)pytest ended with .*no arms today"):
        timers.by_pytest_benchmark(arms_of("A/A", SAME), 0.1)


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
        benchmarks_compared.carried_out("random", [Task("A/A", SAME, 1.0)], ["oracle"], 0, lambda records: None)


# --- Carried out ------------------------------------------------------------------------------------------------------


def fake(measure) -> Tool:
    return Tool(None, measure, {"row": lambda figures: figures["verdict"]})


def oracle(arms, seconds):
    state = arms.first.init(arms.params)
    work = [sum(count(jax.jit(d.step).trace(state, arms.batch).jaxpr).matrix.values()) for d in arms[:2]]
    return {"seconds": {"flops": work}, "verdict": timers.apart(work, 0.0)}


def noisy(arms, seconds):
    raise ValueError("seconds: got 0.1; expected at least 1")


FAKES = {
    "oracle": fake(oracle),
    "prejudiced": fake(lambda arms, seconds: {"verdict": SLOWER}),
    "blind": fake(lambda arms, seconds: {"verdict": SAME, "sound": False}),
    "noisy": fake(noisy),
    "absent": fake(noisy)._replace(needs="no_such_package"),
}


@pytest.mark.parametrize("load", ["none", *slow("both")])
def test_verdicts_are_counted_and_saved(load, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(benchmarks_compared, "TOOLS", FAKES)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # those of the other tests, too
    arguments = ["benchmarks_compared.py", "--tools", ",".join(FAKES), "--load", load, "--seconds", "0.1"]
    file = tmp_path / "verdicts.json"
    monkeypatch.setattr(sys, "argv", [*arguments, "--comparisons", "4", "--planted", "3", "--json", str(file)])
    benchmarks_compared.main()
    loads = json.loads(file.read_text(encoding="utf-8"))["loads"]
    assert list(loads) == (["none", "random"] if load == "both" else ["none"])
    printed = capsys.readouterr().out
    for kind, records in loads.items():
        assert len(records) == 10
        assert all(set(record["tools"]) == {"oracle", "prejudiced", "blind", "noisy"} for record in records)
        assert {record["tools"]["oracle"]["verdicts"]["row"] == record["truth"] for record in records} == {True}
        ratios = {record["kind"]: record["tools"]["oracle"]["ratio"]["flops"] for record in records}
        assert ratios["A/A"] == 1 and min(ratios["3 %"], 1 / ratios["3 %"]) == pytest.approx(1 / 1.03)
        assert {record["tools"]["noisy"]["error"] for record in records} == {
            "ValueError: seconds: got 0.1; expected at least 1"
        }
        lines = printed.split(f"\nload: {kind}\n")[1].splitlines()
        assert lines[0].split("  ")[-4:] == ["false of 4 A/A", "missed 3 % of 3", "missed 10 % of 3", "wrong way"]
        faster = {kind: sum((r["kind"], r["truth"]) == (kind, FASTER) for r in records) for kind in ("3 %", "10 %")}
        assert [line.split()[1:] for line in lines[2:7]] == [
            ["0", "0", "0", "0"],
            ["4", *(str(count) for count in faster.values()), str(sum(faster.values()))],
            ["0", "3", "3", "0"],
            ["0", "3", "3", "0"],
            ["not", "installed"],
        ]
        assert "blind: unsound: 4 of 4 A/A, 3 of 3 3 %, 3 of 3 10 %" in lines
        assert "noisy: failed: 4 of 4 A/A, 3 of 3 3 %, 3 of 3 10 %" in lines
    assert printed.count("is true; oracle ") == 10 * len(loads)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--tools stopwatch", "--tools: got stopwatch; expected some of minijaxnet, timeit, pytest-benchmark, torch"),
        ("--comparisons 0", "--comparisons: got 0; expected at least 1"),
        ("--planted -1", "--planted: got -1; expected at least 1"),
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
