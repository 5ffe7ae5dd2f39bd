"""Frameworks compared: one training step in minijaxnet, JAX, optax, Equinox, Flax NNX, PyTorch, NumPy and C.

    pip install -e ".[all,peers]"
    python experiments/studies/peers_compared.py --workloads 2-2-1,64-128-10 --seconds 10

What is not installed is a row that says so. Each framework has a process of its own; they take turns, one at a time, in
a new order in each round (``peers/compare.py``). A row shows the median over rounds of its ratio to the raw
``lax.scan``, with an interval from order statistics; all intervals of a table hold at the same time with 95 %
confidence. The scan runs a second time, in another process: a ratio within the interval of these two is called a tie.
"""

import argparse

import numpy as np
from peers import OURS_LOOP, OURS_WHOLE, PEERS, SCAN, WORKLOADS, Workload
from peers.compare import Comparison, Row, compare_peers

from minijaxnet._tables import significant, text_table
from minijaxnet.bench.intervals import RISK, Interval, median_interval


def verdict(ratio: Interval, control: Interval) -> str:
    """How ours does against a row of this ratio to ours; a tie unless the interval is beyond 1 and the control's."""
    if ratio.low > max(1.0, control.high):
        return "faster"
    return "SLOWER" if ratio.high < min(1.0, control.low) else "tie"


def table(title: str, found: Comparison) -> str:
    """Loops in Python and whole programs, each from the fastest to the slowest, and what was not timed."""
    risk = RISK / (2 * len(found.rows))
    scan = found.rows[SCAN].samples_s
    control = median_interval(found.control_s / scan, risk)
    columns = ("", "us a step", "times scan", "interval", "times ours", "ours is", "compile s")
    cells: list[tuple[str, ...]] = []

    def cells_of(label: str, row: Row, ours: str) -> tuple[str, ...]:
        to_scan, versus = median_interval(row.samples_s / scan, risk), ("", "")
        if ours in found.rows and label != ours:
            to_ours = median_interval(row.samples_s / found.rows[ours].samples_s, risk)
            versus = (_cell(to_ours.median), verdict(to_ours, control))
        mark, took = "*" if label.startswith("minijaxnet") else " ", 1e6 * float(np.median(row.samples_s))
        return f"{mark} {label}", _cell(took), *_interval_cells(to_scan), *versus, f"{row.compile_s:.2f}"

    for whole, heading, ours in (
        (False, "a step called from Python:", OURS_LOOP),
        (True, "the whole loop in one program:", OURS_WHOLE),
    ):
        group = [(label, row) for label, row in found.rows.items() if row.whole == whole]
        group.sort(key=lambda item: float(np.median(item[1].samples_s / scan)))
        cells += [(heading, *[""] * (len(columns) - 1)), *(cells_of(label, row, ours) for label, row in group)]
    lines = [text_table(columns, cells, title=title)]
    lines += [f"  not timed: {name}: {reason}" for name, reason in found.untimed.items()]
    own = "{} ({})".format(*_interval_cells(control))
    lines.append(f"* ours; {len(found.control_s)} rounds; the raw scan in a second process, times the first: {own}")
    if not control.low <= 1 <= control.high:
        lines.append("The scan DIFFERS FROM ITSELF: a difference as small as that is called a tie.")
    return "\n".join(lines)


def _interval_cells(ratio: Interval) -> tuple[str, str]:
    return _cell(ratio.median), f"{_cell(ratio.low)} to {_cell(ratio.high)}"


def _cell(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else significant(value, 3)


def describe(name: str, workload: Workload) -> str:
    """A workload in a line."""
    loss = "softmax cross-entropy" if workload.classifies else "mean squared error"
    return f"{name}, batch {workload.points}, {loss}, float32"


def main() -> None:
    """Print a table for each workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="some of %(default)s")
    parser.add_argument("--only", default=",".join(PEERS), help="some of %(default)s; jax is always there")
    parser.add_argument("--seconds", type=float, default=10.0, help="at least, a workload, without compilation")
    options = parser.parse_args()
    workloads, peers = options.workloads.split(","), options.only.split(",")
    for where, got, known in (("workloads", workloads, WORKLOADS), ("only", peers, PEERS)):
        if unknown := set(got) - set(known):
            parser.error(f"--{where}: got {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    for name in workloads:
        modules = {peer: PEERS[peer] for peer in ("jax", *peers)}
        found = compare_peers(modules, WORKLOADS[name], seconds=options.seconds)
        print(table(describe(name, WORKLOADS[name]), found) + "\n", flush=True)


if __name__ == "__main__":
    main()
