"""Tools that time steps, judged by their verdicts: what they call different that is equal, and what they overlook.

    pip install -e ".[all,peers]"
    python experiments/benchmarks_compared.py --json verdicts.json
    python experiments/benchmarks_compared.py --overhead

A comparison has two arms, compiled anew, each a step of small matrix products in a loop. In an A/A comparison both take
400 rounds of that loop, and any verdict but "indistinguishable" is false, though the run be called unsound. In the
others one arm, drawn by lot, takes 412 or 440 rounds: a verdict that does not say so is a miss, and one that says the
opposite goes the wrong way, too. All comparisons come in an order drawn by lot, and in each all tools take their turn,
in an order drawn by lot again; all of it once while nothing else is started, and once while another process keeps a
core busy at random. With four tools that takes about half an hour a load.

Each tool measures for the same seconds in all, half of them an arm, the first arm wholly before the second; only ours
takes them in turn. Compilation, and finding out how many calls a sample should have, count for none. The others call
the jitted step and wait for what it returns, as JAX's documentation has it; a call's own cost is about a twentieth of
the step. They give figures, no verdicts. So each has several rows, with what turns its figures into one:

- ``timeit``: ``autorange``, then ``repeat``; the medians, or the best as its documentation advises, differ in the three
  digits that ``python -m timeit`` prints.
- ``pytest-benchmark``: its fixture in a session of pytest, of which only ``--benchmark-max-time`` is set; the factor in
  its table, of two decimals, is not 1.00 for the medians, or for the minima that it sorts by.
- ``torch.utils.benchmark``: ``blocked_autorange``; the medians differ as ``Compare`` prints them with
  ``trim_significant_figures``; or in those digits that are significant for both, and neither measurement warns of its
  interquartile range; or they are more than 1 % apart, where ``colorize`` no longer shows both as the best.
- marked by ``*``: more than so much apart, which is half of what was planted. Ours is not told that.

``--overhead`` holds what ``time_step`` says of a fused step against a bare loop of a million of them.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from timers import FASTER, PLANTED, ROUNDS, SAME, SLOWER, TOOLS, Arms, Tool, rounds_of

import minijaxnet as mjn
from minijaxnet.bench.machine import machine
from minijaxnet.tables import figure, text_table

LONGER = {"A/A": 1, "3 %": 5, "10 %": 1}  # how many times the seconds of an A/A comparison
LOADS = ("none", "random")

# A process that works and sleeps at random. It ends when its pipe is closed, which the system does for a parent that
# is gone, however it went.
_BUSY = """
import os, sys, threading, time
import numpy as np
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
draw = np.random.default_rng(int(sys.argv[1]))
values = draw.random(2**17)
while True:
    end = time.perf_counter() + draw.uniform(0.03, 0.5)
    while time.perf_counter() < end:
        np.sort(values)
        sum(range(10_000))
    time.sleep(draw.uniform(0.03, 0.5))
"""


class Task(NamedTuple):
    """A comparison to make.

    Attributes:
        kind: a key of ``PLANTED``.
        truth: what is to be said of the second arm, against the first.
        seconds: to measure for.
    """

    kind: str
    truth: str
    seconds: float


# --- What is compared -------------------------------------------------------------------------------------------------


def arms_of(task: Task) -> Arms:
    """New arms, of the same starting point for all comparisons.

    Normal weights of standard deviation ``1.5 / sqrt(n)`` have eigenvalues beyond 1, so that x does not vanish, and few
    that are far beyond, so that tanh does not saturate.
    """
    draw = np.random.default_rng(0)
    weights = jnp.asarray(1.5 / 8 * draw.normal(size=(64, 64)), jnp.float32)
    x = jnp.asarray(draw.normal(size=(32, 64)), jnp.float32)
    more = round(ROUNDS * (1 + PLANTED[task.kind]))
    first, second = (more if task.truth == slow else ROUNDS for slow in (FASTER, SLOWER))
    return Arms(rounds_of(first), rounds_of(second), x, weights)


def plan(comparisons: int, planted: int, seconds: float, draw: np.random.Generator) -> list[Task]:
    """All comparisons, in an order drawn by lot; in about half of the planted ones the first arm is the slower."""
    counts = {kind: planted if share else comparisons for kind, share in PLANTED.items()}
    tasks = [
        Task(kind, str(draw.choice([SLOWER, FASTER])) if PLANTED[kind] else SAME, LONGER[kind] * seconds)
        for kind, count in counts.items()
        for _ in range(count)
    ]
    return [tasks[i] for i in draw.permutation(len(tasks))]


@contextlib.contextmanager
def load(kind: str, seed: int) -> Iterator[subprocess.Popen[bytes] | None]:
    """Meanwhile, with ``random``, another process works and sleeps, tens to hundreds of milliseconds each."""
    if kind == "none":
        yield None
        return
    process = subprocess.Popen([sys.executable, "-c", _BUSY, str(seed)], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# --- Carried out, and counted -----------------------------------------------------------------------------------------


def measured(tool: Tool, task: Task) -> dict[str, Any]:
    """The figures of one tool for new arms, and the verdicts by its rules; without one where it could not measure."""
    try:
        figures = tool.measure(arms_of(task), task.seconds)
    except (RuntimeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}", "verdicts": dict.fromkeys(tool.rules, "none")}
    if "seconds" in figures:
        figures["ratio"] = {name: second / first for name, (first, second) in figures["seconds"].items()}
    return figures | {"verdicts": {row: rule(figures) for row, rule in tool.rules.items()}}


def tallied(records: Sequence[Mapping[str, Any]], tool: str, row: str) -> tuple[int, ...]:
    """How many verdicts of a row are false in A/A, miss what was planted, kind by kind, and go the wrong way."""
    verdicts = [(record["kind"], record["truth"], record["tools"][tool]["verdicts"][row]) for record in records]
    wrong = [kind for kind, truth, said in verdicts if said in (SLOWER, FASTER) and said != truth]
    missed = [kind for kind, truth, said in verdicts if said != truth]
    false = wrong.count("A/A")
    return false, *(missed.count(kind) for kind, share in PLANTED.items() if share), len(wrong) - false


def table(title: str, records: Sequence[Mapping[str, Any]], tools: Sequence[str], absent: Sequence[str]) -> str:
    """A row for each rule of each tool, and what could not be believed or measured."""
    counts = {kind: sum(record["kind"] == kind for record in records) for kind in PLANTED}
    missed = [f"missed {kind} of {counts[kind]}" for kind in PLANTED if PLANTED[kind]]
    rows, notes = [], ["* told what was planted: the threshold is half of it"]
    for tool in tools:
        if tool in absent:
            rows.append((tool, "not installed", *[""] * (len(missed) + 1)))
            continue
        rows += [(row, *tallied(records, tool, row)) for row in TOOLS[tool].rules]
        found = [(record["kind"], record["tools"][tool]) for record in records]
        for what, kinds in (
            ("unsound", [kind for kind, taken in found if not taken.get("sound", True)]),
            ("failed", [kind for kind, taken in found if "error" in taken]),
        ):
            if kinds:
                notes.append(f"{tool}: {what}: {', '.join(f'{kinds.count(k)} of {n} {k}' for k, n in counts.items())}")
    columns = ("tool, and what makes a verdict of its figures", f"false of {counts['A/A']} A/A", *missed, "wrong way")
    return "\n".join([text_table(columns, rows, title=title), *notes])


def carried_out(
    kind: str, tasks: Sequence[Task], tools: Sequence[str], seed: int, save: Callable[[list[Any]], None]
) -> list[dict[str, Any]]:
    """Make all comparisons under a load; ``save`` is called after each with all that there is.

    Raises:
        RuntimeError: the load ended before they did.
    """
    records, draw = [], np.random.default_rng(seed)
    with load(kind, seed) as busy:
        for number, task in enumerate(tasks, 1):
            order = [tools[int(i)] for i in draw.permutation(len(tools))]
            found = {tool: measured(TOOLS[tool], task) for tool in order}
            if busy is not None and busy.poll() is not None:
                raise RuntimeError(f"the load ended with {busy.returncode} while tools were measuring")
            records.append({**task._asdict(), "tools": found})
            save(records)
            said = "; ".join(f"{tool} {next(iter(found[tool]['verdicts'].values()))}" for tool in tools)
            print(f"load {kind}, {number} of {len(tasks)}, {task.kind}: {task.truth} is true; {said}", flush=True)
            jax.clear_caches()  # hundreds of programs that are not used again
    return records


# --- What time_step adds to a step ------------------------------------------------------------------------------------


def overhead(repetitions: int, seconds: float, steps: int = 1_000_000) -> str:
    """A table: ``time_step``'s fused step, and one of a bare loop of so many, timed in turns.

    What a step reports is carried from step to step by ``time_step``, and by the first bare loop. The second drops it,
    and XLA then does not compute it: less work, shown for what it is worth.
    """
    from step_speed import lesson

    work = lesson()
    descent = mjn.gradient_descent(work.objective, work.learning_rate)
    state = jax.device_put(descent.init(work.params))
    report = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(descent.step, state, work.batch)[1])

    @jax.jit
    def kept(state: Any, report: Any, batch: Any) -> Any:
        return lax.fori_loop(0, steps, lambda _, carry: descent.step(carry[0], batch), (state, report))

    @jax.jit
    def dropped(state: Any, report: Any, batch: Any) -> Any:
        return lax.fori_loop(0, steps, lambda _, state: descent.step(state, batch)[0], state)

    def bare(loop: Callable[..., Any]) -> float:
        start = time.perf_counter()
        jax.block_until_ready(loop(state, report, work.batch))
        return (time.perf_counter() - start) / steps

    ways: dict[str, Callable[[], float]] = {
        "time_step, fused": lambda: mjn.time_step(descent, work.params, work.batch, seconds=seconds).fused_s.median,
        "bare loop": lambda: bare(kept),
        "bare loop, reports dropped": lambda: bare(dropped),
    }
    for loop in (kept, dropped):
        bare(loop)  # compiles
    samples = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, seconds_of_step in ways.items():
            samples[name].append(seconds_of_step())
    base = np.array(samples["bare loop"])
    rows = [
        (name, figure(1e9 * float(np.median(taken))), f"{np.median(np.array(taken) / base):.3f}")
        for name, taken in samples.items()
    ]
    return text_table((f"2-2-1, {repetitions} times in turn", "ns a step", "times bare loop"), rows)


def main() -> None:
    """Print a table a load, or with ``--overhead`` what ``time_step`` adds to a step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tools", default=",".join(TOOLS), help="some of %(default)s")
    parser.add_argument("--comparisons", type=int, default=100, help="of equal arms (default: %(default)s)")
    parser.add_argument("--planted", type=int, default=10, help="comparisons of each slowdown (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one, those of 3 %% five times as many")
    parser.add_argument("--load", choices=(*LOADS, "both"), default="both", help="beside it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn by lot (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to save every figure and verdict")
    parser.add_argument("--overhead", action="store_true", help="only hold time_step against a bare loop")
    parser.add_argument("--repetitions", type=int, default=7, help="of --overhead (default: %(default)s)")
    options = parser.parse_args()
    for name, least in (("comparisons", 1), ("planted", 1), ("repetitions", 1), ("seed", 0)):
        if (got := getattr(options, name)) < least:
            parser.error(f"--{name}: got {got}; expected at least {least}")
    if not 0 < options.seconds < math.inf:
        parser.error(f"--seconds: got {options.seconds:g}; expected a positive number")
    tools = options.tools.split(",")
    if unknown := set(tools) - set(TOOLS):
        parser.error(f"--tools: got {', '.join(sorted(unknown))}; expected some of {', '.join(TOOLS)}")
    if options.overhead:
        print(overhead(options.repetitions, options.seconds), flush=True)
        return

    needs = {tool: TOOLS[tool].needs for tool in tools}
    absent = [tool for tool, package in needs.items() if package and importlib.util.find_spec(package) is None]
    saved: dict[str, Any] = {"seed": options.seed, "machine": machine(), "loads": {}}

    def save(kind: str, records: list[Any]) -> None:
        saved["loads"][kind] = records
        if options.json is not None:
            options.json.write_text(json.dumps(saved, indent=1), encoding="utf-8")

    for kind in LOADS if options.load == "both" else (options.load,):
        # The same comparisons in the same order under each load.
        tasks = plan(options.comparisons, options.planted, options.seconds, np.random.default_rng(options.seed))
        present = [tool for tool in tools if tool not in absent]
        records = carried_out(kind, tasks, present, options.seed, lambda found, kind=kind: save(kind, found))
        print("\n" + table(f"load: {kind}", records, tools, absent) + "\n", flush=True)


if __name__ == "__main__":
    main()
