"""What a first check costs beside jitting both rules once, in processor seconds.

    python experiments/studies/check_cost.py --rounds 3
    python experiments/studies/check_cost.py attention rmsnorm

Each measurement is of a new process with nothing compiled, from the end of imports and data on: the seconds, user and
system, of all its threads. "Both jitted" is the rule by hand and autodiff's, each compiled and run once. The models are
in ``experiments/studies/checked``.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from checked import CASES, Case, case_of

from minijaxnet._tables import text_table

COLUMNS = ("case", "both jitted (s)", "check (s)", "ratio", "wall (s)", "verdict")


class Taken(NamedTuple):
    """Seconds of the processor and of the clock, and what was found."""

    processor: float
    wall: float
    verdict: str


def jitted(case: Case) -> str:
    """Both rules, each compiled and run once."""
    for rule in (case.by_hand, case.autodiff):
        jax.block_until_ready(jax.jit(rule)(*case.args))
    return ""


def checked(case: Case) -> str:
    """The check: right, or the leaves that are wrong."""
    report = case.check()
    wrong = [path for path, leaf in report.leaves.items() if not leaf.ok]
    return "right" if report.ok else f"NOT RIGHT: {', '.join(wrong) or report.verdicts}"


ARMS: dict[str, Callable[[Case], str]] = {"jitted": jitted, "check": checked}


def measure(name: str, arm: str) -> Taken:
    """One arm of a case, in this process."""
    case = case_of(name)
    jax.block_until_ready(case.args)
    processor, clock = time.process_time(), time.perf_counter()
    verdict = ARMS[arm](case)
    return Taken(time.process_time() - processor, time.perf_counter() - clock, verdict)


def in_process(name: str, arm: str) -> Taken:
    """One arm of a case, in a process of its own, without JAX's cache of compiled programs on disk."""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    call = [sys.executable, __file__, name, "--arm", arm]
    done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
    return Taken(*json.loads(done.stdout.splitlines()[-1]))


def row(name: str, rounds: int = 1) -> tuple[str, ...]:
    """A line of the table: medians over the rounds, in each of which the arms follow one another."""
    taken = [[in_process(name, arm) for arm in ARMS] for _ in range(rounds)]
    spent = np.array([[arm.processor for arm in one] for one in taken])
    seconds, ratio = np.median(spent, axis=0), np.median(spent[:, 1] / spent[:, 0])
    wall, verdict = np.median([check.wall for _, check in taken]), taken[-1][1].verdict
    return name, f"{seconds[0]:.2f}", f"{seconds[1]:.2f}", f"{ratio:.1f}", f"{wall:.2f}", verdict


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all, if left out: {'; '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is measured; medians are printed")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"got {', '.join(sorted(unknown))}; expected some of {'; '.join(CASES)}")
    if options.arm:
        print(json.dumps(measure(options.cases[0], options.arm)))
    else:
        print(text_table(COLUMNS, [row(name, options.rounds) for name in options.cases or CASES]))


if __name__ == "__main__":
    main()
