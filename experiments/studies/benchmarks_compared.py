"""Tools that time steps, compared by their power: how small a slowdown each finds, in how many seconds.

    pip install -e ".[all,peers]"
    python experiments/studies/benchmarks_compared.py --seconds 1 --json power.json
    python experiments/studies/benchmarks_compared.py --draw power.json --out power.svg

A comparison has two arms, compiled anew, each a step of small matrix products in a loop, of about 0.1 ms. One takes 200
rounds of that loop; the other one as many, or 0.5 to 10 per cent more, and which of them is the slower is random. In
each comparison all tools take their turn, in a random order: once while nothing else is started, and once while another
process keeps a core busy at random. Each tool measures for the same seconds, half of them for each arm, the first arm
before the second; only ours takes the arms in turn, and it may end early. Compilation is not counted, nor is the search
for the number of calls in a sample.

``compare_steps`` gives a verdict. The others give times, and the reader decides which difference counts. So each of
them gets the best rule there is: two medians differ if they are further apart than in 95 per cent of its comparisons
of equal arms, in this very run. ``--json`` adds to what is in the file.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from timers import FASTER, ROUNDS, SLOWER, TOOLS, Arms, Tool, rounds_of

from minijaxnet._tables import percent, text_table

PLANTED = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)  # how much more rounds the slower arm takes
LOADS = {"none": "quiet", "random": "another core busy"}
FALSE = 0.05  # the share of equal arms that a rule may call different

# A process that works and sleeps at random. It ends when its pipe is closed, as by the end of its parent.
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
        planted: how much more rounds the slower arm takes.
        slower: whether that is the second one; of equal arms neither is.
        seconds: to measure for.
    """

    planted: float
    slower: bool
    seconds: float

    @property
    def truth(self) -> str | None:
        """The right verdict on the second arm."""
        return None if not self.planted else SLOWER if self.slower else FASTER


# --- What is compared -------------------------------------------------------------------------------------------------


def arms_of(task: Task) -> Arms:
    """New arms, of the same starting point for all comparisons.

    Normal weights of standard deviation ``1.5 / sqrt(n)`` have eigenvalues beyond 1, so that x does not vanish, and few
    that are far beyond, so that tanh does not saturate.
    """
    draw = np.random.default_rng(0)
    weights = jnp.asarray(1.5 / math.sqrt(32) * draw.normal(size=(32, 32)), jnp.float32)
    x = jnp.asarray(draw.normal(size=(16, 32)), jnp.float32)
    counts = [ROUNDS, round(ROUNDS * (1 + task.planted))]
    first, second = counts if task.slower else counts[::-1]
    return Arms(rounds_of(first), rounds_of(second), x, weights)


def plan(equal: int, planted: int, seconds: float, draw: np.random.Generator) -> list[Task]:
    """All comparisons, in a random order; in about half of the planted ones the first arm is the slower."""
    counts = {share: planted if share else equal for share in PLANTED}
    tasks = [Task(share, bool(draw.integers(2)), seconds) for share, count in counts.items() for _ in range(count)]
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


# --- Measured, and counted --------------------------------------------------------------------------------------------


def measured(tool: Tool, task: Task) -> dict[str, Any]:
    """What one tool finds of new arms; or its error."""
    try:
        return tool.measure(arms_of(task), task.seconds)._asdict()
    except (RuntimeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def run_tasks(
    kind: str, tasks: Sequence[Task], tools: Sequence[str], seed: int, save: Callable[[dict[str, Any]], None]
) -> None:
    """Make all comparisons under a load, and save each.

    Raises:
        RuntimeError: the load ended before they did.
    """
    draw = np.random.default_rng(seed)
    with load(kind, seed) as busy:
        for number, task in enumerate(tasks, 1):
            order = [tools[int(i)] for i in draw.permutation(len(tools))]
            found = {tool: measured(TOOLS[tool], task) for tool in order}
            if busy is not None and busy.poll() is not None:
                raise RuntimeError(f"the load ended with {busy.returncode} while tools were measuring")
            save({"load": kind, **task._asdict(), "truth": task.truth, "tools": found})
            print(f"load {kind}, {number} of {len(tasks)}: {percent(task.planted)}", flush=True)
            jax.clear_caches()  # hundreds of programs that are not used again


def threshold(ratios: Sequence[float]) -> float:
    """How far from 1, as a logarithm, all but 5 per cent of the ratios of equal arms are at most.

    >>> round(threshold([1.0] * 95 + [1.1] * 5), 3)
    0.0
    """
    return float(np.quantile(np.abs(np.log(ratios)), 1 - FALSE, method="inverted_cdf"))


def verdict(found: Mapping[str, Any], least: float) -> str | None:
    """A tool's own verdict, or the one by a threshold on its ratio."""
    if found.get("verdict") is not None:
        return found["verdict"] if found["verdict"] in (SLOWER, FASTER) else None
    log = math.log(found["ratio"])
    return None if abs(log) <= least else SLOWER if log > 0 else FASTER


def shares(records: Sequence[Mapping[str, Any]], tool: str) -> dict[float, tuple[int, int, int]]:
    """``{planted: (how many were found, how many said the opposite, of how many)}``; at 0 false and unsound ones."""
    there = [(record, record["tools"][tool]) for record in records if "ratio" in record["tools"].get(tool, {})]
    equal = [found["ratio"] for record, found in there if not record["planted"]]
    least, counted = threshold(equal) if equal else 0.0, {}
    for planted in sorted({record["planted"] for record, _ in there}):
        said = [(verdict(found, least), r["truth"], found["sound"]) for r, found in there if r["planted"] == planted]
        if planted:
            found, odd = sum(a == truth for a, truth, _ in said), sum(a not in (truth, None) for a, truth, _ in said)
        else:
            found, odd = sum(a is not None for a, _, _ in said), sum(not sound for *_, sound in said)
        counted[planted] = (found, odd, len(said))
    return counted


def grouped(records: Sequence[Mapping[str, Any]]) -> dict[tuple[float, str], list[Mapping[str, Any]]]:
    """The records of each ``(seconds, load)``."""
    keys = sorted({(record["seconds"], record["load"]) for record in records})
    return {key: [record for record in records if (record["seconds"], record["load"]) == key] for key in keys}


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """A table for each time and load: a row a tool, what it found of each slowdown."""
    parts = []
    for (seconds, kind), some in grouped(records).items():
        rows = []
        for tool in TOOLS:
            if counted := shares(some, tool):
                cells = {planted: f"{found} of {count}" for planted, (found, _, count) in counted.items()}
                wrong = sum(odd for planted, (_, odd, _) in counted.items() if planted)
                rows.append((tool, *(cells.get(planted, "") for planted in PLANTED), wrong, counted[0.0][1]))
        columns = ("tool", "equal: false", *map(percent, PLANTED[1:]), "wrong way", "unsound")
        parts.append(text_table(columns, rows, title=f"{seconds:g} s, {LOADS[kind]}"))
    return "\n\n".join(parts)


def draw_table(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the share that each tool found of each planted slowdown, for each time and load."""
    from minijaxnet.report.style import SERIES, save, styled
    from minijaxnet.report.style import figure as new_figure

    groups = grouped(records)
    with styled():
        picture = new_figure(7.2, 2.9 * math.ceil(len(groups) / 2) + 0.5)
        panels = picture.subplots(math.ceil(len(groups) / 2), min(2, len(groups)), sharey=True, squeeze=False).ravel()
        for axes, ((seconds, kind), some) in zip(panels, groups.items(), strict=False):
            for tool, colour in zip(TOOLS, SERIES, strict=False):
                counted = shares(some, tool)
                y = [100 * found / count for found, _, count in counted.values()]
                ours = {"linewidth": 2.5, "zorder": 3} if tool == "minijaxnet" else {"linewidth": 1.2}
                x = [PLANTED.index(planted) for planted in counted]
                axes.plot(x, y, label=tool, color=colour, marker="o", markersize=3.5, **ours)
            axes.set_title(f"{seconds:g} s, {LOADS[kind]}")
            axes.set_xticks(range(len(PLANTED)), [f"{100 * planted:g}" for planted in PLANTED])
            axes.axhline(100 * FALSE, color="0.6", linewidth=0.8, linestyle=":")
            axes.set_xlabel("planted slowdown, per cent")
        for axes in panels[:: min(2, len(groups))]:
            axes.set_ylabel("found, per cent of comparisons")
        panels[0].legend()
        save(picture, path)


def main() -> None:
    """Make comparisons and print a table, or draw what is in a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tools", default=",".join(TOOLS), help="some of %(default)s")
    parser.add_argument("--equal", type=int, default=40, help="comparisons of equal arms (default: %(default)s)")
    parser.add_argument("--planted", type=int, default=10, help="comparisons of each slowdown (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one (default: %(default)s)")
    parser.add_argument("--load", choices=(*LOADS, "both"), default="both", help="beside it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to add all ratios and verdicts")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="only print and draw what is in such a file")
    parser.add_argument("--out", type=Path, default=Path("power.svg"), help="of --draw (default: %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.tools.split(",")) - set(TOOLS):
        parser.error(f"--tools: got {', '.join(sorted(unknown))}; expected some of {', '.join(TOOLS)}")
    if options.draw is not None:
        records = json.loads(options.draw.read_text(encoding="utf-8"))
        print(table(records))
        draw_table(records, options.out)
        return
    tools = []
    for tool in options.tools.split(","):
        package = TOOLS[tool].needs
        if package and importlib.util.find_spec(package) is None:
            print(f"{tool}: not installed", flush=True)
        else:
            tools.append(tool)
    file: Path | None = options.json
    records = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else []

    def save(record: dict[str, Any]) -> None:
        records.append(record)
        if file is not None:
            file.write_text(json.dumps(records, indent=1), encoding="utf-8")

    for kind in LOADS if options.load == "both" else (options.load,):
        # The same comparisons in the same order under each load.
        tasks = plan(options.equal, options.planted, options.seconds, np.random.default_rng(options.seed))
        run_tasks(kind, tasks, tools, options.seed, save)
    print("\n" + table(records), flush=True)


if __name__ == "__main__":
    main()
