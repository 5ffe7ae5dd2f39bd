"""Frameworks in turns: each in a process of its own, all started first, then one at a time while the others wait.

Frameworks disturb one another within a process. Between turns a process only reads its pipe, and it answers when all
its threads sleep: a pool of threads that spins for a while after its last work (OpenMP's, BLAS's) would slow down the
next one. A peer that fails, dies, takes too long or computes another result is left out, with the reason.
"""

import contextlib
import importlib
import multiprocessing
import os
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from minijaxnet.bench.intervals import RISK, fewest_samples

from . import SCAN, Arm, Workload

PATIENCE_S = 300.0  # how long a process may take to answer
CHECKED_STEPS = 20
_BLOCK_S = 0.03  # long against the clock and the call, short against changes of the machine's speed
# A loop of one step would be no loop; and the losses of so many steps still fit into memory.
_FEWEST_STEPS, _MOST_STEPS = 4, 2**22
# Rounding differs between frameworks by a few eps a step, and a relu whose input rounds to the other side of 0 moves
# the loss by tens of eps. A learning rate that is wrong by one per cent moves it by thousands.
_TOLERANCE_EPS = 1_000


class PeerFailed(RuntimeError):
    """A peer that died, took too long or raised an error; the text is the reason."""


class Row(NamedTuple):
    """What was measured of an arm.

    Attributes:
        whole: whether one program takes all steps; otherwise Python calls each of them.
        compile_s: seconds that the first run of 20 steps took longer than later ones.
        samples_s: seconds a step, in each round.
    """

    whole: bool
    compile_s: float
    samples_s: np.ndarray


class Comparison(NamedTuple):
    """What was measured.

    Attributes:
        rows: ``{label: Row}`` of the arms that were timed.
        control_s: seconds a step of the raw scan in its second process, in each round.
        untimed: ``{peer or label: why it was not timed}``.
    """

    rows: dict[str, Row]
    control_s: np.ndarray
    untimed: dict[str, str]


# --- In a peer's process ----------------------------------------------------------------------------------------------


def serve(pipe: Connection, module: str, workload: Workload) -> None:
    """Open a peer's file and answer each ``(verb, label)`` until the pipe is closed."""
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ |= {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    try:
        found = importlib.import_module(module).arms(workload)
    except ImportError as error:
        found = f"not installed ({error})"
    arms: dict[str, Arm] = {} if isinstance(found, str) else found
    pipe.send({label: (arm.whole, arm.same_rule) for label, arm in arms.items()} or found)
    steps: dict[str, int] = {}
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            verb, label = pipe.recv()
            try:
                if verb == "first":
                    answer = first(arms[label])
                    steps[label] = steps_of_a_block(arms[label])
                else:
                    answer = block(arms[label], steps[label])
            except Exception as error:
                answer = PeerFailed(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            wait_for_threads()
            pipe.send(answer)


def timed(arm: Arm, steps: int) -> tuple[float, Any]:
    """Seconds of a run from the start, and what it returned."""
    run = arm.start()
    before = time.perf_counter()
    returned = run(steps)
    return time.perf_counter() - before, returned


def losses_of(returned: Any) -> np.ndarray:
    """What a run returned, as one array."""
    return np.array([np.asarray(loss) for loss in returned])


def first(arm: Arm) -> tuple[float, np.ndarray]:
    """Seconds that a first run takes longer than a later one, most of it compilation; and its losses."""
    (took, returned), *later = (timed(arm, CHECKED_STEPS) for _ in range(3))
    return max(0.0, took - min(took for took, _ in later)), losses_of(returned)


def steps_of_a_block(arm: Arm) -> int:
    """How many steps last about as long as a block should."""
    steps = CHECKED_STEPS
    for _ in range(6):
        timed(arm, steps)  # some arms compile for each number of steps
        took = min(timed(arm, steps)[0] for _ in range(2))
        better = int(steps * min(100.0, _BLOCK_S / max(took, 1e-6)))
        better = min(_MOST_STEPS, max(_FEWEST_STEPS, better))
        if steps / 2 < better < 2 * steps:
            return steps
        steps = better
    timed(arm, steps)
    return steps


def block(arm: Arm, steps: int) -> float:
    """Seconds a step.

    Raises:
        FloatingPointError: the last loss is not finite.
    """
    took, returned = timed(arm, steps)
    if not np.isfinite(np.asarray(returned[-1])):
        raise FloatingPointError(f"after {steps} steps the loss is not finite")
    return took / steps


def wait_for_threads() -> None:
    """Wait until no other thread of this process works any more, at most for a second."""
    for _ in range(200):
        before = time.process_time()
        time.sleep(0.005)
        # On a busy machine a thread that spins may get no time for a while, but it is in the state "running".
        if time.process_time() - before < 0.0005 and _running_threads() <= 1:
            return


def _running_threads() -> int:
    """How many threads of this process run or wait for a processor, this one included; 0 without ``/proc``."""
    states = []
    for path in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has ended
            states.append(path.read_text().rpartition(")")[2].split()[0])
    return states.count("R")


# --- In the process that compares -------------------------------------------------------------------------------------


class Peer:
    """A peer's process, seen from the one that compares."""

    def __init__(self, module: str, workload: Workload):
        """Start it."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, module, workload), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self) -> Any:
        """What it sends, first of all its arms, or why it has none.

        Raises:
            PeerFailed: it died, took too long or raised an error.
        """
        try:
            if not self._pipe.poll(PATIENCE_S):
                raise PeerFailed(f"took longer than {PATIENCE_S:g} s")
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise PeerFailed(f"died with exit code {self._process.exitcode}") from error
        if isinstance(answer, PeerFailed):
            raise answer
        return answer

    def ask(self, verb: str, label: str) -> Any:
        """Let it do something with an arm, and wait for the answer; errors as for ``answer``."""
        try:
            self._pipe.send((verb, label))
        except OSError as error:
            raise PeerFailed("its process is gone") from error
        return self.answer()

    def close(self) -> None:
        """End the process; one that waits for a request ends by itself when its pipe is closed."""
        self._pipe.close()
        self._process.join(1)
        self._process.kill()
        self._process.join()


def compare_peers(modules: Mapping[str, str], workload: Workload, *, seconds: float) -> Comparison:
    """Check the losses of all arms against the raw scan's, and time those that agree in turns.

    Args:
        modules: ``{peer: the module of its file}``; the one of "jax" has the raw scan.
        workload: that all of them run.
        seconds: for how long at least, compilation not counted; as many rounds as an interval needs are taken.

    Raises:
        PeerFailed: the raw scan itself failed.
    """
    peers = {name: Peer(module, workload) for name, module in modules.items()}
    again = Peer(modules["jax"], workload)
    try:
        arms, untimed = _opened(peers)
        if SCAN not in arms:
            raise PeerFailed(f"{SCAN}: {untimed['jax']}")
        compile_s = _checked(arms, untimed)
        again.answer()
        again.ask("first", SCAN)
        return _timed_in_turns(arms, compile_s, again, untimed, seconds)
    finally:
        for peer in (*peers.values(), again):
            peer.close()


Arms = dict[str, tuple[Peer, bool, bool]]


def _opened(peers: Mapping[str, Peer]) -> tuple[Arms, dict[str, str]]:
    """``{label: (its process, whole, same_rule)}``, and why some peers have no arms."""
    arms: Arms = {}
    untimed: dict[str, str] = {}
    for name, peer in peers.items():
        try:
            answer = peer.answer()
        except PeerFailed as error:
            answer = str(error)
        if isinstance(answer, str):
            untimed[name] = answer
        else:
            arms |= {label: (peer, *kind) for label, kind in answer.items()}
    return arms, untimed


def _checked(arms: Arms, untimed: dict[str, str]) -> dict[str, float]:
    """Seconds of compilation of each arm that computes what the raw scan does; the others go to ``untimed``."""
    compile_s: dict[str, float] = {}
    expected = None
    for label in (SCAN, *(label for label in arms if label != SCAN)):
        peer, _, same_rule = arms[label]
        try:
            seconds, losses = peer.ask("first", label)
        except PeerFailed as error:
            if label == SCAN:
                raise PeerFailed(f"{SCAN}: {error}") from error
            untimed[label] = str(error)
            continue
        expected = losses if expected is None else expected
        if same_rule and (difference := loss_difference(losses, expected)):
            untimed[label] = f"another result: {difference}"
        else:
            compile_s[label] = seconds
    return compile_s


def _timed_in_turns(
    arms: Arms, compile_s: dict[str, float], again: Peer, untimed: dict[str, str], seconds: float
) -> Comparison:
    """Round after round, each arm's block in a new order; an arm that fails goes to ``untimed``."""
    turns = {label: arms[label][0] for label in compile_s}
    samples: dict[str, list[float]] = {label: [] for label in turns}
    control: list[float] = []
    draw = np.random.default_rng(0)
    end, needed = time.perf_counter() + seconds, fewest_samples(1, RISK / (2 * len(turns)))
    while len(control) < needed or time.perf_counter() < end:
        for label in draw.permutation([*turns, ""]).tolist():
            try:
                if not label:
                    control.append(again.ask("block", SCAN))
                elif label not in untimed:
                    samples[label].append(turns[label].ask("block", label))
            except PeerFailed as error:
                if label in ("", SCAN):
                    raise PeerFailed(f"{SCAN}: {error}") from error
                untimed[label] = str(error)
    rows = {
        label: Row(arms[label][1], compile_s[label], np.array(samples[label]))
        for label in arms
        if label in turns and label not in untimed
    }
    return Comparison(rows, np.array(control), untimed)


def loss_difference(losses: np.ndarray, reference: np.ndarray) -> str | None:
    """How losses differ from the reference's by more than rounding; None if they do not.

    Rounding is ``1000 eps (1 + loss at the start)``, with the eps of the narrower of their dtypes: errors of the
    predictions are of the size of the data, which is 1.
    """
    if losses.shape != reference.shape:
        return f"losses of shape {losses.shape}; expected {reference.shape}"
    excess = np.abs(losses - reference) / (1 + np.abs(reference[0]))
    within = excess <= _TOLERANCE_EPS * max(float(np.finfo(array.dtype).eps) for array in (losses, reference))
    if np.all(within):
        return None
    step = int(np.flatnonzero(~within)[0])
    return f"at step {step} the loss is {losses[step]:.6g}; expected {reference[step]:.6g}"
