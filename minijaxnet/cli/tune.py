"""``minijaxnet tune``: which switches make an experiment's step faster here and leave its results alone?

Most are flags of XLA. It reads them once, before it compiles anything, so each is tried in a process of its own, and
these take turns. A process that computes something else is refused. What wins alone is measured once more, combined and
in new processes: the best of many has had luck, too, and only what wins twice is suggested. Nothing is changed by it.
"""

import contextlib
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from minijaxnet.bench import ArmTiming, StepComparison
from minijaxnet.bench.blocks import check_seconds
from minijaxnet.bench.compare import SAME_STEPS, beyond_rounding
from minijaxnet.bench.peers import Comparison, Peer, PeerFailed, compare_peers
from minijaxnet.bench.switches import FLATTENED, SWITCHES, export_line, faster, joined, mildest, winners
from minijaxnet.bench.worker import CHECKED_STEPS, Arm, connected, serve
from minijaxnet.cli.arms import describe, differentiated, make_descent
from minijaxnet.cli.begin import begin, draws, keys_of
from minijaxnet.cli.flags import TuneFlags, parse, split_file
from minijaxnet.descent import optax_descent
from minijaxnet.experiment import Experiment, load_experiment
from minijaxnet.feeds import OneBatch, minibatches_of
from minijaxnet.loop import chunk_capacity, flat_norm, own_copy, run_chunk
from minijaxnet.trace import OUT_OF_STEPS

NOW = "as it is now"
SAME_BITS, ROUNDING = "the same bits", "the same to rounding"
_CONFIRMING = 0.25  # the share of the seconds that is kept for the winners

Take = Callable[[int], tuple[Any, np.ndarray]]


class Task(NamedTuple):
    """Which steps every process takes."""

    file: str
    optimizer: str
    learning_rate: float
    batch_size: int | None
    seed: int
    x64: bool
    flattened: bool = False


class Begun(NamedTuple):
    """What every process starts from, and where it should come to: params after a few steps, losses of some more."""

    params: Any
    train: Any
    end: Any
    losses: np.ndarray


class Differs(ValueError):
    """A process computed something else."""


def main(arguments: Sequence[str]) -> int:
    """Try what may make the step of an experiment faster."""
    file, rest = split_file("tune", arguments)
    experiment = None if file is None else load_experiment(file)
    flags, init_options, data_options = parse(TuneFlags, "tune", experiment, file or "FILE", rest)
    assert experiment is not None and file is not None, "without a file only help is shown"
    with jax.enable_x64(flags.precision == "float64"):
        return _tune(experiment, file, flags, init_options, data_options)


def _tune(experiment: Experiment, file: str, flags: TuneFlags, init_options: dict, data_options: dict) -> int:
    check_seconds(flags.seconds)
    present = os.environ.get("XLA_FLAGS", "").strip()
    if present and not present.startswith("-"):
        raise ValueError(f"XLA_FLAGS: got {present!r}, a file of flags; expected the flags, to which others are added")
    own = experiment.defaults
    size = own.batch_size if flags.batch_size is None else flags.batch_size
    optimizer, path = flags.optimizer or own.optimizer, str(Path(file).resolve())
    task = Task(path, optimizer, own.learning_rate, size, flags.seed, flags.precision == "float64")
    params, train, *_ = begin(experiment, flags.seed, flags.precision, init_options, data_options)
    take = taker(experiment, task, params, train)
    begun = jax.tree.map(np.asarray, Begun(params, train, take(SAME_STEPS)[0], take(CHECKED_STEPS)[1]))
    seen = "all points" if size is None else f"minibatches of {size:,}"
    print(
        f"{experiment.name}: a step of {describe(optimizer)} on {seen}, {flags.precision} on "
        f"{jax.devices()[0].device_kind}\n{NOW}: XLA_FLAGS is {present or 'not set'}",
        flush=True,
    )
    groups = [dict(group) for group in SWITCHES.get(jax.default_backend(), ())]
    if optimizer != "gd":
        groups[:1] = [{**(groups or [{}])[0], FLATTENED: FLATTENED}]
    count = sum(map(len, groups))
    won: dict[str, str] = {}
    for group in groups:
        seconds = flags.seconds * (1 - _CONFIRMING) * len(group) / count
        found = measure({name: [switch] for name, switch in group.items()}, task, begun, seconds=seconds)
        comparison = compared(found, share=count)
        print(f"\n{comparison}\n{results(found)}", flush=True)
        # To be measured again, an interval that holds by itself is enough: that many were tried is judged there.
        won |= {name: group[name] for name in winners(compared(found, share=1), group)}
    if not won:
        print("\nnothing that was tried is surely faster than what you have")
        return 0
    arms = {name: [switch] for name, switch in won.items()}
    if len(won) > 1:
        arms["all of these"] = list(won.values())
    found = measure(arms, task, begun, seconds=flags.seconds * _CONFIRMING)
    comparison = compared(found, share=len(arms))
    print(f"\nwhat may be faster once more, in new processes\n{comparison}\n{results(found)}")
    held = faster(comparison)
    if not held:
        print("\nthat does not hold: nothing that was tried is surely faster than what you have")
        return 0
    name = mildest(held)
    print(f"\na step takes {held[name].median:.3g} times as long with\n\n{advice(present, arms[name])}")
    return 0


def advice(present: str, switches: Sequence[str]) -> str:
    """What to write to have these switches, flags of XLA behind those that are ``present``."""
    flags = [switch for switch in switches if switch != FLATTENED]
    shell = f"    {export_line(joined(present, flags))}\n\n"
    shell += "It holds for all that XLA compiles from that shell, and may slow other programs down."
    code = "    mjn.optax_descent(objective, optax.flatten(optimizer))\n\nin place of the optimizer itself, in Python."
    return "\n\n".join([*([code] if FLATTENED in switches else []), *([shell] if flags else [])])


def measure(arms: Mapping[str, Sequence[str]], task: Task, begun: Begun, *, seconds: float) -> Comparison:
    """Time the task in turns under each ``{name: switches}``, and in two processes as it is now.

    Raises:
        ValueError: it cannot be timed as it is now.
    """
    present = os.environ.get("XLA_FLAGS", "")
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:

        def start(switches: Sequence[str]) -> Peer:
            flags = joined(present, [switch for switch in switches if switch != FLATTENED])
            environment = {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            peer = Peer("minijaxnet.cli.tune", (), Path(scratch), environment=environment)
            stack.callback(peer.close)
            return peer

        _progress(f"trying {', '.join(arms)}")
        tried = {NOW: (), **arms}
        peers, again = {name: start(switches) for name, switches in tried.items()}, start(())
        for name, peer in (*peers.items(), (NOW, again)):
            with contextlib.suppress(OSError):  # one that died of its flags tells when it is asked
                for part in (name, task._replace(flattened=FLATTENED in tried[name]), begun):
                    peer.pipe.send(part)
        try:
            return compare_peers(peers, again, NOW, seconds=seconds)
        except PeerFailed as error:
            raise ValueError(f"{task.file}: its step cannot be timed: {error}") from error
        finally:
            _progress("")


def compared(found: Comparison, *, share: int) -> StepComparison:
    """What was found as a comparison of steps, its intervals as wide as ``share`` of them need."""
    arms = {name: ArmTiming(row.compile_s, row.samples_s) for name, row in found.rows.items()}
    return StepComparison(NOW, arms, found.control_s, found.sentinel_s, share=share)


def results(found: Comparison) -> str:
    """Which switches compute the same, which something else, and which this jaxlib does not have."""
    notes: dict[str, list[str]] = {}
    for name, row in found.rows.items():
        notes.setdefault(f"results are {row.note}", []).append(name)
    for name, why in found.untimed.items():
        unknown = "Unknown flag" in why
        notes.setdefault("not here" if unknown else f"refused, {why.removeprefix('Differs: ')}", []).append(name)
    lines = [f"{note}: {'all' if len(notes) == 1 else ', '.join(names)}" for note, names in notes.items()]
    return "\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in lines)


def taker(experiment: Experiment, task: Task, params: Any, train: Any) -> Take:
    """``take(steps) -> (params, losses)``, as ``run`` takes them, but from the start again in each chunk.

    So a block of any number of steps stays where the experiment's own steps are, and none ends because it is flat.
    """
    descent = make_descent(differentiated(experiment), task.optimizer, task.learning_rate)
    if task.flattened:
        import optax

        step: Any = descent.step
        descent = optax_descent(step.objective, optax.flatten(step.optimizer))
    _, order_key, draw_key = keys_of(task.seed)
    start = descent.init(params, draw_key if draws(experiment.objective) else None)
    feed, source = OneBatch(), train
    if task.batch_size is not None:
        feed, source = minibatches_of(train, task.batch_size), (train, order_key)
    capacity = chunk_capacity(descent.step, feed, start, source)
    status, never = np.int32(OUT_OF_STEPS), flat_norm(0.0, sampled=True)

    def chunk(steps: int) -> tuple[Any, Any]:
        return run_chunk(descent.step, feed, capacity, own_copy(start), source, steps, never, status)

    def take(steps: int) -> tuple[Any, np.ndarray]:
        sizes = [min(capacity, steps - first) for first in range(0, steps, capacity)]
        ends = jax.block_until_ready([chunk(size) for size in sizes])
        for size, (_, trace) in zip(sizes, ends, strict=True):
            if trace.status != OUT_OF_STEPS:
                rate = f"learning_rate: got {task.learning_rate}"
                raise ValueError(f"{rate}, which diverges within {size:,} steps; expected one that does not")
        losses = [np.asarray(trace.loss)[:size] for size, (_, trace) in zip(sizes, ends, strict=True)]
        return ends[-1][0].params, np.concatenate(losses)

    return take


def arm_of(take: Take, begun: Begun) -> Arm:
    """Steps to be timed, once they have been seen to lead where they should."""

    def note() -> str:
        end, losses = take(SAME_STEPS)[0], take(CHECKED_STEPS)[1]
        if found := beyond_rounding(begun.params, begun.end, end):
            path, difference, most = found
            raise Differs(
                f"params{path} differ by {difference:.2g} after {SAME_STEPS} steps, at most {most:.2g} is rounding"
            )
        pairs = zip(jax.tree.leaves((end, losses)), jax.tree.leaves((begun.end, begun.losses)), strict=True)
        return SAME_BITS if all(np.asarray(a).tobytes() == b.tobytes() for a, b in pairs) else ROUNDING

    comparable = begun.losses.dtype in (np.float32, np.float64)
    return Arm(lambda: lambda steps: take(steps)[1], whole=True, same_rule=comparable, note=note)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:78]}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with connected(sys.argv[1]) as pipe:
        name, task = pipe.recv(), pipe.recv()
        jax.config.update("jax_enable_x64", task.x64)
        experiment = load_experiment(task.file)  # before its params: their containers may be its own classes
        begun = pipe.recv()
        serve(pipe, {name: arm_of(taker(experiment, task, *jax.device_put(begun[:2])), begun)})
