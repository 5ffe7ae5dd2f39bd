"""Frameworks compared: one training step in ours, JAX, optax, Equinox, Flax NNX, PyTorch, NumPy and C, side by side.

    pip install -e ".[all,peers]"
    python experiments/studies/peers_compared.py --workloads 2-2-1,64-128-10 --seconds 10

Without the extra ``peers`` (or gcc), what is missing is a row that says so. Each peer has a process of its own, since
frameworks disturb one another within one; all are started first and then take turns, one at a time, in a new order
each round, while the others wait at their pipes. A row's figure is the median over rounds of its ratio to the raw
``lax.scan``, with the interval that order statistics give it, wide enough that all intervals of a table hold together
with 95 % confidence. The scan enters twice, in two processes: what it differs by from itself is no difference.

Everyone has all cores during its turn, with threads that wait as they please; a turn ends when they are all asleep.
Caches of compiled programs on disk are off.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from peers import LOOP, OURS_LOOP, OURS_WHOLE, PEERS, SCAN, WORKLOADS, Workload
from peers.compare import Comparison, Peer, compare_peers

from minijaxnet._tables import figure, text_table
from minijaxnet.bench.intervals import RISK, Interval, median_interval


def compare(workload: str, peers: Iterable[str], seconds: float, scratch: Path) -> Comparison:
    """Start the peers, hold their losses against the raw scan's, and time them in turns.

    Raises:
        PeerFailed: the raw scan itself failed.
    """

    def start(peer: str) -> Peer:
        return Peer("peers.worker", [PEERS[peer], workload], scratch)

    names = ("jax", *(peer for peer in peers if peer != "jax"))
    return compare_peers({peer: start(peer) for peer in names}, start("jax"), SCAN, seconds=seconds)


def verdict(ratio: Interval, control: Interval) -> str:
    """How ours does against a row of this ratio to ours; a tie unless the interval is beyond 1 and the control's."""
    if ratio.low > max(1.0, control.high):
        return "faster"
    return "SLOWER" if ratio.high < min(1.0, control.low) else "tie"


def break_even(compile_s: float, step_s: float, loop_compile_s: float, loop_step_s: float) -> str:
    """From how many steps on an arm, compilation included, has taken less time than the loop of the jitted step.

    >>> break_even(0.5, 1e-6, 0.1, 11e-6)
    'from 40,000'
    """
    dearer, gain = compile_s - loop_compile_s, loop_step_s - step_s
    if gain > 0:
        return "at once" if dearer <= 0 else f"from {math.ceil(dearer / gain):,}"
    return "never" if dearer >= 0 or gain == 0 else f"until {math.floor(dearer / gain):,}"


def table(title: str, found: Comparison) -> str:
    """Loops in Python and whole programs, each from the fastest to the slowest, and what was not timed."""
    rows, scan = found.rows, found.rows[SCAN].samples_s
    n_ratios = 2 * len(rows)
    control = median_interval(found.control_s / scan, RISK / n_ratios)
    loop = rows.get(LOOP)
    columns = ("", "us a step", "times scan", "interval", "times ours", "ours is", "compile s", "break-even")
    cells: list[tuple[str, ...]] = []
    for whole, heading, ours in (
        (False, "a step called from Python:", OURS_LOOP),
        (True, "the whole loop in one program:", OURS_WHOLE),
    ):
        cells.append((heading, *[""] * (len(columns) - 1)))
        group = {label: row for label, row in rows.items() if row.whole == whole}
        for label, row in sorted(group.items(), key=lambda item: float(np.median(item[1].samples_s / scan))):
            step_s, to_scan = float(np.median(row.samples_s)), median_interval(row.samples_s / scan, RISK / n_ratios)
            to_ours = median_interval(row.samples_s / rows[ours].samples_s, RISK / n_ratios) if ours in rows else None
            versus = ("", "") if to_ours is None else (_cell(to_ours.median), verdict(to_ours, control))
            ahead = ""
            if loop is not None and label != LOOP:
                ahead = break_even(row.compile_s, step_s, loop.compile_s, float(np.median(loop.samples_s)))
            cells.append(
                (
                    f"{'*' if label.startswith('minijaxnet') else ' '} {label}",
                    _cell(1e6 * step_s),
                    *(("1", "") if label == SCAN else _interval_cells(to_scan)),
                    *(("1", "") if label == ours else versus),
                    f"{row.compile_s:.2f}",
                    ahead,
                )
            )
    own = "{} ({})".format(*_interval_cells(control))
    lines = [text_table(columns, cells, title=title)]
    lines += [f"  not timed: {name}: {reason}" for name, reason in found.untimed.items()]
    lines.append(
        "* ours; break-even: from how many steps on it has taken less time than the jitted step, compiling included"
    )
    lines.append(f"{len(found.control_s)} rounds; the raw scan in a second process, times the first: {own}")
    if not control.low <= 1 <= control.high:
        lines.append("It DIFFERS FROM ITSELF: a difference as small as that is called a tie.")
    return "\n".join(lines)


def _interval_cells(ratio: Interval) -> tuple[str, str]:
    return _cell(ratio.median), f"{_cell(ratio.low)} to {_cell(ratio.high)}"


def _cell(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else figure(value, 3)


def describe(name: str, workload: Workload) -> str:
    """A workload in a line."""
    loss = "softmax cross-entropy" if workload.classifies else "mean squared error"
    copies = "" if workload.copies is None else ", the copies with weights of their own, a step of all"
    return f"{name}, batch {workload.points}, {loss}, float32{copies}"


def to_dict(found: Comparison) -> dict[str, Any]:
    """All samples in JSON's own kinds."""
    rows = {label: row._asdict() | {"samples_s": row.samples_s.tolist()} for label, row in found.rows.items()}
    return {
        "rows": rows,
        "control_s": found.control_s.tolist(),
        "sentinel_s": found.sentinel_s.tolist(),
        "untimed": found.untimed,
    }


def main() -> None:
    """Print a table a workload, and save the samples if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="some of %(default)s")
    parser.add_argument("--only", default=",".join(PEERS), help="some of %(default)s; jax is always there")
    parser.add_argument("--seconds", type=float, default=10.0, help="at least, a workload, without compilation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to save the samples")
    options = parser.parse_args()
    workloads, peers = options.workloads.split(","), options.only.split(",")
    for where, got, known in (("workloads", workloads, WORKLOADS), ("only", peers, PEERS)):
        if unknown := set(got) - set(known):
            parser.error(f"--{where}: got {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    saved = {}
    for name in workloads:
        with tempfile.TemporaryDirectory() as scratch:
            found = compare(name, peers, options.seconds, Path(scratch))
        print(table(describe(name, WORKLOADS[name]), found) + "\n", flush=True)
        saved[name] = to_dict(found)
        if options.json is not None:
            options.json.write_text(json.dumps(saved, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
