"""Frameworks compared: one training step in ours, JAX, optax, Equinox, Flax NNX, PyTorch, NumPy and C, side by side.

    pip install -e ".[all,peers]"
    python experiments/peers_compared.py --workloads 2-2-1,64-128-10 --seconds 10

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
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers import LOOP, OURS_LOOP, OURS_WHOLE, PEERS, SCAN, WORKLOADS, Workload
from peers.process import Peer, PeerFailed

from minijaxnet.bench.intervals import Interval, fewest_samples, median_interval
from minijaxnet.tables import figure, text_table

# Rounding differs between frameworks by a few eps a step, and a relu whose input rounds to the other side of 0 moves
# the loss by tens. A rate that is wrong by one per cent moves it by thousands.
_TOLERANCE = 1_000 * float(np.finfo(np.float32).eps)


class Row(NamedTuple):
    """What was measured of an arm.

    Attributes:
        whole: whether one program takes all steps; else Python calls each.
        compile_s: seconds that the first run of 20 steps took longer than later ones.
        samples_s: seconds a step, of each round.
    """

    whole: bool
    compile_s: float
    samples_s: np.ndarray


class Comparison(NamedTuple):
    """What was found for a workload.

    Attributes:
        rows: ``{label: Row}`` of the arms that were timed.
        control_s: samples of the raw scan in its second process.
        untimed: ``{peer or label: why it was not timed}``.
    """

    rows: dict[str, Row]
    control_s: np.ndarray
    untimed: dict[str, str]


def loss_difference(losses: np.ndarray, reference: np.ndarray) -> str | None:
    """How losses, steps first, differ from the raw scan's by more than rounding; None if they do not.

    Rounding is ``1000 eps (1 + loss at the start)``: errors of the predictions are of the size of the data, which is 1.
    """
    if losses.shape != reference.shape:
        return f"losses of shape {losses.shape}; expected {reference.shape}"
    excess = np.abs(losses - reference) / (1 + np.abs(reference[0]))
    if np.all(excess <= _TOLERANCE):
        return None
    step = int(np.argwhere(~(excess <= _TOLERANCE))[0][0])
    return f"at step {step} the loss is {np.mean(losses[step]):.6g}; expected {np.mean(reference[step]):.6g}"


def compare(workload: str, peers: Iterable[str], seconds: float, scratch: Path) -> Comparison:
    """Start the peers, hold their losses against the raw scan's, and time them in turns.

    Raises:
        PeerFailed: the raw scan itself failed.
    """
    processes = {peer: Peer(PEERS[peer], workload, scratch) for peer in ("jax", *(p for p in peers if p != "jax"))}
    again = Peer(PEERS["jax"], workload, scratch)
    try:
        return _compared(processes, again, seconds)
    finally:
        for process in (*processes.values(), again):
            process.close()


def _compared(processes: dict[str, Peer], again: Peer, seconds: float) -> Comparison:
    untimed: dict[str, str] = {}
    arms: dict[str, tuple[Peer, bool, bool]] = {}
    for name, process in processes.items():
        try:
            found = process.answer("open")
        except PeerFailed as error:
            found = str(error)
        if isinstance(found, str):
            untimed[name] = found
        else:
            arms |= {label: (process, *told) for label, told in found.items()}
    if SCAN not in arms:
        raise PeerFailed(f"{SCAN}: {untimed['jax']}")
    again.answer("open")

    compile_s: dict[str, float] = {}
    turns: dict[str, Peer] = {}
    reference = None
    for label, (process, _, same_rule) in arms.items():
        try:
            compile_s[label], losses = process.ask("first", label)
            reference = losses if reference is None else reference
            if same_rule and (difference := loss_difference(losses, reference)):
                untimed[label] = f"another result: {difference}"
                continue
            process.ask("size", label)
            turns[label] = process
        except PeerFailed as error:
            untimed[label] = str(error)
    again.ask("size", SCAN)

    samples, control_s = _rounds(turns, again, seconds, untimed)
    rows = {label: Row(arms[label][1], compile_s[label], np.array(taken)) for label, taken in samples.items()}
    if SCAN not in rows:
        raise PeerFailed(f"{SCAN}: {untimed[SCAN]}")
    return Comparison(rows, np.array(control_s), untimed)


def _rounds(
    turns: dict[str, Peer], again: Peer, seconds: float, untimed: dict[str, str]
) -> tuple[dict[str, list[float]], list[float]]:
    """A block of each arm and of the control in a new order each round; who fails is left out."""
    samples: dict[str, list[float]] = {label: [] for label in turns}
    control_s: list[float] = []
    draw, end, needed = np.random.default_rng(0), time.perf_counter() + seconds, fewest_samples(2 * len(turns))
    while len(control_s) < needed or time.perf_counter() < end:
        labels = [*samples, None]
        for turn in draw.permutation(len(labels)):
            label = labels[turn]
            try:
                if label is None:
                    control_s.append(again.ask("block", SCAN))
                else:
                    samples[label].append(turns[label].ask("block", label))
            except PeerFailed as error:
                if label in (None, SCAN):
                    raise
                untimed[label] = str(error)
                del samples[label]
    return samples, control_s


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
    control = median_interval(found.control_s / scan, n_ratios)
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
            step_s, to_scan = float(np.median(row.samples_s)), median_interval(row.samples_s / scan, n_ratios)
            to_ours = median_interval(row.samples_s / rows[ours].samples_s, n_ratios) if ours in rows else None
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
    return {"rows": rows, "control_s": found.control_s.tolist(), "untimed": found.untimed}


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
