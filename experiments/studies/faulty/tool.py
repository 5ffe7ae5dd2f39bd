"""What a tool can do, and what it trains: a small network on a small data set."""

import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .judge import Arrays, NotOffered

POINTS, FEATURES, HIDDEN, CLASSES = 12, 3, 8, 2
# A run is so long, and saves so often.
RUN_STEPS, RUN_BATCH = 24, 4
# No forked process lives longer.
_LIVES_S = 90


@dataclass(frozen=True)
class Call:
    """The arguments of a training.

    Attributes:
        classes: whether labels are to be learnt (softmax cross-entropy), or numbers (mean squared error).
        x: ``(points, features)``.
        y: labels ``(points,)``, or numbers ``(points, 1)``.
        change_params: what is done to the first parameters, a pytree.
        steps: how many.
        learning_rate: of gradient descent.
        batch_size: points a step.
        seed: of the order of minibatches.
    """

    classes: bool
    x: Any
    y: Any
    change_params: Callable[[Any], Any] | None = None
    steps: Any = 6
    learning_rate: Any = 0.1
    batch_size: Any = 4
    seed: Any = 0

    def but(self, **changes: Any) -> "Call":
        """The same with other arguments."""
        return replace(self, **changes)


def good_call(classes: bool) -> Call:
    """A training without a fault."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(POINTS, FEATURES)).astype(np.float32)
    y = (np.arange(POINTS) % CLASSES).astype(np.int32) if classes else x.sum(axis=1, keepdims=True)
    return Call(classes, x, y)


class Tool:
    """A tool, used as its documentation says; what a subclass leaves as it is, the tool does not offer.

    Attributes:
        ours: whether it is ours, which must answer in exact words.
        cold: whether it cannot be forked once it has run, for its threads; each forked process then starts it anew.
        suffix: of its checkpoints' names.
        layout: of its files: safetensors, npy, pickle, msgpack, or another.
        leaf: a regular expression for the names that it gives to leaves.
    """

    ours = False
    cold = False
    suffix = ""
    layout = ""
    leaf = r"weight|bias|kernel|param|leaf|layer|dense|count|optimizer"

    def train(self, call: Call) -> Arrays:
        """Train, and return the parameters."""
        raise NotOffered("it keeps checkpoints, and trains nothing")

    def diverge(self, how: str, scratch: Path) -> Arrays:
        """Train what diverges: ``overflow`` by too large a rate, ``NaN`` where the slope is NaN from a step on."""
        call = good_call(classes=False)
        if how == "NaN":
            raise NotOffered("it takes no objective of one's own")
        return self.train(call.but(learning_rate=1e30, steps=40))

    def tree(self, change: str = "") -> Any:
        """What a checkpoint holds; with a change, another tree."""
        raise NotOffered("it keeps no checkpoints")

    def spoiled(self, spoil: Callable[[Any], Any]) -> Any:
        """``tree()`` with each leaf changed."""
        import jax

        return jax.tree.map(spoil, self.tree())

    def arrays(self, tree: Any) -> Arrays:
        """Its arrays by their names."""
        raise NotOffered("it keeps no checkpoints")

    def save(self, path: Path, tree: Any) -> None:
        """Save a checkpoint."""
        raise NotOffered("it keeps no checkpoints")

    def load(self, path: Path, like: Any) -> Any:
        """Load a checkpoint, into what is like ``tree()`` where the tool takes such a template."""
        raise NotOffered("it keeps no checkpoints")

    def step(self, tree: Any, number: int) -> Any:
        """One step of Adam on a minibatch."""
        raise NotOffered("it trains nothing")

    def checkpoints(self, folder: Path) -> list[Path]:
        """The checkpoints of a run, the newest first."""
        return sorted(folder.glob(f"step-????????{self.suffix}"), reverse=True)

    def run(self, folder: Path, *, resume: bool = False, pause_s: float = 0.0, until: int = RUN_STEPS) -> Arrays:
        """A run that saves after each step, the loop that one writes by hand.

        Args:
            folder: of its checkpoints.
            resume: whether to go on with the newest.
            pause_s: how long to wait before each step.
            until: a step at which it is stopped in an orderly way.
        """
        tree, first = self.tree(), 0
        if resume and (found := self.checkpoints(folder)):
            tree, first = self.load(found[0], tree), int(found[0].name[5:13])
        for number in range(first, until):
            time.sleep(pause_s)
            tree = self.step(tree, number)
            self.save(folder / f"step-{number + 1:08d}{self.suffix}", tree)
        return self.arrays(tree)

    def warm(self, folder: Path) -> None:
        """Compile what a run and its resumption need, before there are forks, which have no threads that compile."""
        self.run(folder, until=RUN_STEPS - 1)
        self.run(folder, resume=True)


class Ended(NamedTuple):
    """How a forked process ended.

    Attributes:
        arrays: what it returned; None if it raised or was killed.
        kind: of what it raised.
        text: of what it raised.
    """

    arrays: Arrays | None
    kind: str
    text: str

    def value(self) -> Arrays:
        """What it returned.

        Raises:
            RuntimeError: it raised, or was killed.
        """
        if self.arrays is None:
            raise RuntimeError(f"{self.kind}: {self.text}")
        return self.arrays


def in_fork(
    act: Callable[[], Arrays],
    *,
    kill_after_s: float | None = None,
    since: Path | None = None,
    most_bytes: int | None = None,
    limit_s: float = 60,
) -> Ended:
    """Do something in a process forked from this one, which has compiled all; end it with SIGKILL at a moment.

    Args:
        act: what to do.
        kill_after_s: when to kill it; None for never.
        since: a folder; the moment is counted from when something is in it, and from the fork if None.
        most_bytes: no file may become longer, as if the disk were full.
        limit_s: when to take it for hung.
    """
    process = Forked(act, most_bytes)
    while since is not None and process.lives() and not any(since.iterdir()):
        time.sleep(0.002)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(process.pid, signal.SIGKILL)  # a child that has ended keeps its pid until it is waited for
    return process.ended(limit_s)


class Forked:
    """A forked process that does something."""

    def __init__(self, act: Callable[[], Arrays], most_bytes: int | None = None):
        """Start it."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._results, writes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._results)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(_LIVES_S)  # whoever started it may be gone by then
                if most_bytes is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
                os.write(writes, pickle.dumps(_done(act)))
            finally:
                os._exit(0)
        os.close(writes)

    def lives(self) -> bool:
        """Whether it has not ended; nobody has been told yet of how it did."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def ended(self, limit_s: float = 60) -> Ended:
        """How it ended.

        Raises:
            TimeoutError: it has not.
        """
        deadline, sent = time.monotonic() + limit_s, b""
        os.set_blocking(self._results, False)
        try:
            while self.lives():
                sent += self._read()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"a forked process hung for {limit_s} s")
                time.sleep(0.002)
            sent += self._read()
        finally:  # hung, too
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._results)
        return Ended(*pickle.loads(sent)) if sent else Ended(None, "killed", "nothing came back")

    def _read(self) -> bytes:
        """What has come until now."""
        found = b""
        try:
            while part := os.read(self._results, 1 << 16):
                found += part
        except BlockingIOError:
            pass
        return found


def _done(act: Callable[[], Arrays]) -> tuple[Arrays | None, str, str]:
    try:
        return act(), "", ""
    except Exception as error:
        return None, type(error).__name__, str(error)
