"""Tools that time steps, compared: the planted work is exact, and what the tools find is counted as it should be."""

import contextlib
import functools
import json
import subprocess
import sys
import timeit

import benchmarks_compared
import jax
import numpy as np
import pytest
import timers
from benchmarks_compared import PLANTED, Task
from kits.marks import slow
from timers import FASTER, ROUNDS, SLOWER, Found, Tool

from minijaxnet.bench.flops import count

EQUAL = Task(0.0, True, 1.0)


def flops_of(arms) -> list[int]:
    state = arms.first.init(arms.params)
    return [count(jax.make_jaxpr(descent.step)(state, arms.batch)).flops for descent in (arms.first, arms.second)]


# --- What is planted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("slower", [True, False])
def test_the_slower_arm_does_exactly_so_much_more_work(planted, slower):
    task = Task(planted, slower, 1.0)
    first, second = flops_of(benchmarks_compared.arms_of(task))
    assert (second / first if slower else first / second) == pytest.approx(1 + planted, rel=1e-12)
    assert task.truth == (None if not planted else SLOWER if slower else FASTER)


@pytest.mark.parametrize("planted", [0.005, *slow(0.0, 0.1)])
def test_xla_keeps_the_loop_with_all_its_rounds(planted):
    arms = benchmarks_compared.arms_of(Task(planted, True, 1.0))
    text = jax.jit(arms.second.step).lower(arms.second.init(arms.params), arms.batch).compile().as_text()
    assert f'"known_trip_count":{{"n":"{round(ROUNDS * (1 + planted))}"}}' in text
    assert text.count(" dot(") == 1


def test_what_goes_from_step_to_step_neither_vanishes_nor_saturates():
    arms = benchmarks_compared.arms_of(EQUAL)
    state, step = arms.first.init(arms.params), jax.jit(arms.first.step)
    for _ in range(50):
        state, _ = step(state, arms.batch)
        sizes = np.abs(np.asarray(state.params))
        assert np.all(np.isfinite(sizes))
        assert 0.2 < np.median(sizes) < 0.9


def test_a_plan_has_every_comparison_both_ways_round():
    tasks = benchmarks_compared.plan(30, 20, 2.0, np.random.default_rng(0))
    planted = [task.planted for task in tasks]
    assert {share: planted.count(share) for share in PLANTED} == {share: 20 if share else 30 for share in PLANTED}
    assert planted != sorted(planted)
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


def test_a_tool_without_a_verdict_gets_the_threshold_that_5_per_cent_of_its_equal_arms_exceed(tmp_path):
    assert benchmarks_compared.shares(RECORDS, "timeit") == {0.0: (1, 0, 21), 0.03: (1, 1, 3)}
    assert benchmarks_compared.shares(RECORDS, "minijaxnet") == {0.0: (1, 1, 21), 0.03: (2, 1, 4)}
    assert benchmarks_compared.shares(RECORDS, "torch") == {}
    both = [*RECORDS, *(each | {"load": "random"} for each in RECORDS)]
    lines = benchmarks_compared.table(both).splitlines()
    rows = [line.split() for line in lines if line.startswith(("minijaxnet", "timeit"))]
    assert lines[0] == "1 s, quiet" and "1 s, another core busy" in lines
    assert rows[:2] == [
        ["minijaxnet", "1", "of", "21", "2", "of", "4", "1", "1"],
        ["timeit", "1", "of", "21", "1", "of", "3", "1", "0"],
    ]
    benchmarks_compared.draw_table(both, tmp_path / "power.svg")
    text = (tmp_path / "power.svg").read_text()
    assert all(words in text for words in ("minijaxnet", "timeit", "1 s, another core busy", "planted slowdown"))


# --- The tools and the load -------------------------------------------------------------------------------------------


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
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_the_load_works_meanwhile_and_ends_after_whatever_happens():
    for seed, error in enumerate((None, KeyboardInterrupt)):
        with contextlib.suppress(KeyboardInterrupt), benchmarks_compared.load("random", seed) as process:
            assert process.poll() is None
            if error:
                raise error
        assert process.poll() is not None


def noisy(arms, seconds):
    raise ValueError("seconds: got 0.1; expected at least 1")


FAKES = {
    "oracle": Tool(None, lambda arms, seconds: Found(flops_of(arms)[1] / flops_of(arms)[0])),
    "prejudiced": Tool(None, lambda arms, seconds: Found(1.0, SLOWER)),
    "noisy": Tool(None, noisy),
    "absent": Tool("no_such_package", noisy),
}


def test_verdicts_are_counted_and_added_to_what_was_saved(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(benchmarks_compared, "TOOLS", FAKES)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # those of the other tests, too
    file = tmp_path / "power.json"
    arguments = ["benchmarks_compared.py", "--tools", ",".join(FAKES), "--load", "none", "--seconds", "0.1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--equal", "4", "--planted", "2", "--json", str(file)])
    benchmarks_compared.main()
    records = json.loads(file.read_text(encoding="utf-8"))
    assert len(records) == 16
    assert {each["tools"]["noisy"]["error"] for each in records} == {
        "ValueError: seconds: got 0.1; expected at least 1"
    }
    printed = capsys.readouterr().out
    assert "absent: not installed" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith(("oracle ", "prejudiced "))]
    assert rows[0] == ["oracle", "0", "of", "4", *["2", "of", "2"] * 6, "0", "0"]
    slower = sum(each["truth"] == SLOWER for each in records)
    assert rows[1][:4] == ["prejudiced", "4", "of", "4"] and int(rows[1][-2]) == 12 - slower
    benchmarks_compared.main()
    assert len(json.loads(file.read_text(encoding="utf-8"))) == 32


def test_a_load_that_ended_too_soon_is_no_load(monkeypatch):
    @contextlib.contextmanager
    def dead(kind, seed):
        with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
            process.wait()
            yield process

    monkeypatch.setattr(benchmarks_compared, "load", dead)
    monkeypatch.setattr(benchmarks_compared, "TOOLS", FAKES)
    with pytest.raises(RuntimeError, match="the load ended with 3 while"):
        benchmarks_compared.run_tasks("random", [EQUAL], ["oracle"], 0, lambda record: None)
