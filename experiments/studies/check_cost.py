"""What a first check costs beside jitting both rules once, in processor seconds.

    python experiments/studies/check_cost.py --rounds 3
    python experiments/studies/check_cost.py attention rmsnorm --peers

Each figure is of a new process with nothing compiled, from the end of imports and data to the end of what is measured:
the seconds, user and system, of all its threads. Both rules jitted: the rule by hand and autodiff's, each compiled and
run once. The models are in ``experiments/studies/checked``.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from checked import CASES, Case, case_of

from minijaxnet._tables import text_table

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "attention, by the command line"
COLUMNS = ("case", "jitted (s)", "check (s)", "ratio", "wall (s)", "verdict")


class Taken(NamedTuple):
    """What a process took, and what it found."""

    processor: float
    wall: float
    verdict: str


# --- What a process does ----------------------------------------------------------------------------------------------


def jitted(case: Case) -> str:
    """Both rules, each compiled and run once."""
    for rule in (case.by_hand, case.autodiff):
        jax.block_until_ready(jax.jit(rule)(*case.args))
    return ""


def checked_by_us(case: Case) -> str:
    """Our check: right, or the leaves that are wrong."""
    report = case.check()
    wrong = [path for path, leaf in report.leaves.items() if not leaf.ok]
    return "right" if report.ok else f"NOT RIGHT: {', '.join(wrong) or report.verdicts}"


def checked_by_jax(case: Case) -> str:
    """JAX's check."""
    try:
        case.peer()
    except AssertionError:
        return "fails"
    return "passes"


ARMS: dict[str, Callable[[Case], str]] = {"jitted": jitted, "check": checked_by_us, "peer": checked_by_jax}


def processor_seconds(*whose: int) -> float:
    """User and system seconds up to now, of this process with its threads, or of children that have ended."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, whose))


def measured(run: Callable[[], str], *whose: int) -> Taken:
    """A call, and what it took of the processor and by the clock."""
    processor, clock = processor_seconds(*whose), time.perf_counter()
    verdict = run()
    return Taken(processor_seconds(*whose) - processor, time.perf_counter() - clock, verdict)


def child(name: str, arm: str) -> None:
    """Carry out one arm of a case, and print what it took."""
    case = case_of(name)
    jax.block_until_ready(case.args)
    print(json.dumps(measured(lambda: ARMS[arm](case), resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


# --- The processes ----------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """This one, without JAX's cache of compiled programs on disk."""
    return {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONUNBUFFERED": "1"}


def process(name: str, arm: str) -> Taken:
    """One arm of a case in a process of its own."""
    call = [sys.executable, str(Path(__file__).resolve()), name, "--arm", arm]
    done = subprocess.run(call, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
    return Taken(*json.loads(done.stdout.splitlines()[-1]))


def command_line() -> Taken:
    """``minijaxnet check`` from its start to its end, and when its first verdict is there."""

    def run() -> str:
        start, first, line = time.perf_counter(), None, ""
        with tempfile.TemporaryDirectory() as runs:
            call = [
                sys.executable,
                "-m",
                "minijaxnet",
                "check",
                "experiments/studies/checked/attention.py",
                "--runs",
                runs,
            ]
            with subprocess.Popen(call, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True) as command:
                assert command.stdout is not None
                for printed in command.stdout:
                    if first is None and "right" in printed.lower():
                        first = time.perf_counter() - start
                    line = printed if printed.startswith("attention:") else line
        if first is None:
            return f"no verdict, exit code {command.returncode}"
        return f"{line.strip().removeprefix('attention: ')}; first verdict after {first:.1f} s"

    return measured(run, resource.RUSAGE_CHILDREN)


def row(name: str, rounds: int = 1, peers: bool = False) -> tuple[str, ...]:
    """A line of the table: medians over the rounds, in each of which the arms follow one another."""
    if name == COMMAND:
        taken = [command_line() for _ in range(rounds)]
        total, wall = np.median([(one.processor, one.wall) for one in taken], axis=0)
        return (name, "-", f"{total:.2f}", "-", f"{wall:.2f}", taken[-1].verdict, *(["-", "-"] if peers else []))
    arms = ("jitted", "check", "peer") if peers else ("jitted", "check")
    taken = [[process(name, arm) for arm in arms] for _ in range(rounds)]
    spent = np.array([[arm.processor for arm in one] for one in taken])
    seconds, ratio = np.median(spent, axis=0), np.median(spent[:, 1] / spent[:, 0])
    wall, last = np.median([one[1].wall for one in taken]), taken[-1]
    cells = (name, f"{seconds[0]:.2f}", f"{seconds[1]:.2f}", f"{ratio:.1f}", f"{wall:.2f}", last[1].verdict)
    return (*cells, f"{seconds[2]:.2f}", last[2].verdict) if peers else cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("cases", nargs="*", metavar="CASE", help=f"all, if left out: {'; '.join((*CASES, COMMAND))}")
    flags.add_argument("--rounds", type=int, default=1, help="how often each is measured; medians are shown")
    flags.add_argument("--peers", action="store_true", help="jax.test_util.check_grads, too")
    flags.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    told = flags.parse_args(arguments)
    if unknown := set(told.cases) - {*CASES, COMMAND}:
        flags.error(f"got {', '.join(sorted(unknown))}; expected some of {'; '.join((*CASES, COMMAND))}")
    if told.arm:
        return child(told.cases[0], told.arm)
    rows = [row(name, told.rounds, told.peers) for name in told.cases or (*CASES, COMMAND)]
    print(text_table((*COLUMNS, "check_grads (s)", "it says") if told.peers else COLUMNS, rows))


if __name__ == "__main__":
    main()
