"""Frameworks compared: each in a process of its own, all started first, then one at a time in turn.

A peer that fails, dies, takes too long or computes something else is left out, with the reason.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minijaxnet.bench.intervals import RISK, fewest_samples
from minijaxnet.bench.rounds import in_turns, sentinel

# How long a process may take to answer.
PATIENCE_S = {"open": 300.0, "first": 300.0, "size": 120.0, "block": 60.0}

# Rounding differs between frameworks by a few eps a step, and a relu whose input rounds to the other side of 0 moves
# the loss by tens. A rate that is wrong by one per cent moves it by thousands.
_TOLERANCE_EPS = 1_000


class PeerFailed(RuntimeError):
    """A peer that died, took too long or raised an error; the text is the reason."""


class Peer:
    """A peer's process as seen from here: ask it, and wait for the answer."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        scratch: Path,
    ):
        """Start ``python -m module *arguments``; as its last argument it gets the pipe, for ``connected``.

        Args:
            module: which ends in ``serve``.
            arguments: for it.
            scratch: a folder for what the framework compiles.
        """
        self.pipe, theirs = Pipe()
        self.errors = tempfile.TemporaryFile(dir=scratch)
        call = [sys.executable, "-m", module, *arguments, str(theirs.fileno())]
        self.process = subprocess.Popen(
            call, env=_environment(scratch), pass_fds=[theirs.fileno()], stdout=self.errors, stderr=self.errors
        )
        theirs.close()

    def answer(self, verb: str) -> Any:
        """What it answers, first of all to being opened.

        Raises:
            PeerFailed: it died, took too long or raised an error; in the first two cases it is gone.
        """
        try:
            if not self.pipe.poll(PATIENCE_S[verb]):
                self.close()
                raise PeerFailed(f"took longer than {PATIENCE_S[verb]:g} s ({verb})")
            done, answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)  # it has closed the pipe, and ends
            said = self._last_words()
            raise PeerFailed(f"died with exit code {self.close()}{said}") from error
        if not done:
            raise PeerFailed(answer)
        return answer

    def ask(self, verb: str, label: str) -> Any:
        """Tell it to do something with an arm, and wait for the answer; errors as for ``answer``."""
        try:
            self.pipe.send((verb, label))
        except OSError as error:
            raise PeerFailed("its process is gone") from error
        return self.answer(verb)

    def close(self) -> int:
        """End the process and return its exit code; one that is idle ends by itself when its pipe is closed."""
        self.pipe.close()
        self.errors.close()
        try:
            return self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f": {said[-1]}" if said else ""


def _environment(scratch: Path) -> dict[str, str]:
    """The environment of a peer's process, which finds no program that was compiled before."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(scratch),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }


class Row(NamedTuple):
    """What was measured of an arm.

    Attributes:
        whole: whether one program takes all steps; else Python calls each.
        compile_s: seconds that the first run of 20 steps took longer than later ones.
        samples_s: seconds a step, of each round.
        note: what the arm itself says of its first run.
    """

    whole: bool
    compile_s: float
    samples_s: np.ndarray
    note: str = ""


class Comparison(NamedTuple):
    """What was found.

    Attributes:
        rows: ``{label: Row}`` of the arms that were timed.
        control_s: samples of the reference arm in its second process.
        sentinel_s: seconds of a fixed workload in this process, of each round.
        untimed: ``{peer or label: why it was not timed}``.
    """

    rows: dict[str, Row]
    control_s: np.ndarray
    sentinel_s: np.ndarray
    untimed: dict[str, str]


def compare_peers(peers: Mapping[str, Peer], again: Peer, reference: str, *, seconds: float) -> Comparison:
    """Hold the losses of all arms against those of one, and time those that agree in turns; all processes end here.

    Args:
        peers: ``{name: a process that was started}``, first the one with the reference arm.
        again: a second process like that.
        reference: the label of an arm.
        seconds: for how long at least, compilation not counted; as many rounds as an interval needs are taken.

    Raises:
        PeerFailed: the reference arm itself failed.
    """
    try:
        return _compared(peers, again, reference, seconds)
    finally:
        for process in (*peers.values(), again):
            process.close()


def _compared(peers: Mapping[str, Peer], again: Peer, reference: str, seconds: float) -> Comparison:
    untimed: dict[str, str] = {}
    arms: dict[str, tuple[Peer, bool, bool]] = {}
    for name, process in peers.items():
        try:
            found = process.answer("open")
        except PeerFailed as error:
            found = str(error)
        if isinstance(found, str):
            untimed[name] = found
        else:
            arms |= {label: (process, *told) for label, told in found.items()}
    if reference not in arms:
        raise PeerFailed(f"{reference}: {untimed[next(iter(peers))]}")
    again.answer("open")

    compile_s: dict[str, float] = {}
    notes: dict[str, str] = {}
    turns: dict[str, Peer] = {}
    expected = None
    for label in (reference, *(label for label in arms if label != reference)):
        process, _, same_rule = arms[label]
        try:
            compile_s[label], losses, notes[label] = process.ask("first", label)
            expected = losses if expected is None else expected
            if same_rule and (difference := loss_difference(losses, expected)):
                untimed[label] = f"another result: {difference}"
                continue
            process.ask("size", label)
            turns[label] = process
        except PeerFailed as error:
            untimed[label] = str(error)
    again.ask("size", reference)

    *samples, control_s, sentinel_s = _rounds(turns, again, reference, seconds, untimed)
    rows = {
        label: Row(arms[label][1], compile_s[label], taken, notes[label])
        for label, taken in zip(turns, samples, strict=True)
        if label not in untimed
    }
    if reference not in rows:
        raise PeerFailed(f"{reference}: {untimed[reference]}")
    return Comparison({label: rows[label] for label in arms if label in rows}, control_s, sentinel_s, untimed)


def _rounds(
    turns: Mapping[str, Peer], again: Peer, reference: str, seconds: float, untimed: dict[str, str]
) -> np.ndarray:
    """A row of times each arm, NaN from where it fails on, one of the control and one of a fixed workload."""

    def block(label: str) -> float:
        if label in untimed:
            return np.nan
        try:
            return turns[label].ask("block", label)
        except PeerFailed as error:
            if label == reference:
                raise
            untimed[label] = str(error)
            return np.nan

    arms = [lambda label=label: block(label) for label in turns]
    rounds = in_turns([*arms, lambda: again.ask("block", reference), sentinel()])
    taken, end, needed = [], time.perf_counter() + seconds, fewest_samples(1, RISK / (2 * len(turns)))
    while len(taken) < needed or time.perf_counter() < end:
        taken.append(next(rounds))
    return np.array(taken).T


def loss_difference(losses: np.ndarray, reference: np.ndarray) -> str | None:
    """How losses, steps first, differ from the reference's by more than rounding; None if they do not.

    Rounding is ``1000 eps (1 + loss at the start)``, with the eps of the narrower of their dtypes: errors of the
    predictions are of the size of the data, which is 1.
    """
    if losses.shape != reference.shape:
        return f"losses of shape {losses.shape}; expected {reference.shape}"
    excess = np.abs(losses - reference) / (1 + np.abs(reference[0]))
    within = excess <= _TOLERANCE_EPS * max(float(np.finfo(array.dtype).eps) for array in (losses, reference))
    if np.all(within):
        return None
    step = int(np.argwhere(~within)[0][0])
    return f"at step {step} the loss is {np.mean(losses[step]):.6g}; expected {np.mean(reference[step]):.6g}"
