"""What a tool can do, and what it trains: a small network on a small data set."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .judge import Arrays, NotOffered, Trial

POINTS, FEATURES, HIDDEN, CLASSES = 12, 3, 8, 2
RUN_STEPS, RUN_BATCH = 24, 4  # of a run that saves after each step


@dataclass(frozen=True)
class Call:
    """The arguments of a training.

    Attributes:
        classes: whether the targets are labels (softmax cross-entropy), or numbers (mean squared error).
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
    change_params: Callable[[Any], Any] = lambda params: params
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


def minibatch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """The points that a step of a run sees."""
    call = good_call(classes=True)
    rows = np.random.default_rng(step).permutation(len(call.x))[:RUN_BATCH]
    return call.x[rows], call.y[rows]


class Tool:
    """A tool, used as its documentation says; what a subclass does not override, the tool does not offer.

    Attributes:
        ours: whether it is ours, which must answer in exact words.
        cold: whether it has threads once it has run, which no forked process has; each forked process then starts anew.
        suffix: of the names of its checkpoints.
        leaf: a regular expression for the names that it gives to leaves.
    """

    ours = False
    cold = False
    suffix = ""
    leaf = r"weight|bias|kernel|param|leaf|layer|dense|count|optimizer"

    def train(self, call: Call) -> Arrays:
        """Train, and return the parameters."""
        raise NotOffered("it keeps checkpoints, and trains nothing")

    def diverge(self, how: str, scratch: Path) -> Arrays:
        """Train what diverges: "overflow" by too high a rate, "NaN" where the gradient is NaN from a step on."""
        if how == "NaN":
            raise NotOffered("it takes no objective of one's own")
        return self.train(good_call(classes=False).but(learning_rate=1e30, steps=40))

    def tree(self, change: str = "") -> Any:
        """What a checkpoint holds; with a change, another tree."""
        raise NotImplementedError

    def spoiled(self, spoil: Callable[[Any], Any]) -> Any:
        """``tree()`` with each leaf changed."""
        import jax

        return jax.tree.map(spoil, self.tree())

    def arrays(self, tree: Any) -> Arrays:
        """Its arrays by JAX's names."""
        import jax

        found = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in found}

    def save(self, path: Path, tree: Any) -> None:
        """Save a checkpoint."""
        raise NotImplementedError

    def load(self, path: Path, like: Any) -> Any:
        """Load a checkpoint, into what is like ``tree()`` where the tool takes such a template."""
        raise NotImplementedError

    def step(self, tree: Any, number: int) -> Any:
        """One step of a run."""
        raise NotImplementedError

    def checkpoints(self, folder: Path) -> list[Path]:
        """The checkpoints of a run, the newest first."""
        return sorted(folder.glob(f"step-????????{self.suffix}"), reverse=True)

    def run(self, folder: Path, *, resume: bool = False, pause_s: float = 0.0, until: int = RUN_STEPS) -> Arrays:
        """A run that saves after each step: the loop that one writes by hand.

        Args:
            folder: of its checkpoints.
            resume: whether to continue from the newest.
            pause_s: how long to wait before each step.
            until: the step at which it is stopped in an orderly way.
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
        """Compile what a run and its resumption need before processes are forked."""
        if not self.cold:
            self.run(folder, until=RUN_STEPS - 1)
            self.run(folder, resume=True)
            self.step(self.tree(), 0)


class Setting(NamedTuple):
    """Where and how often a fault is injected.

    Attributes:
        scratch: a new folder.
        draw: for all that is random.
        kills: how often a process is killed.
    """

    scratch: Path
    draw: np.random.Generator
    kills: int

    def folder(self, name: str) -> Path:
        """A new folder."""
        path = self.scratch / name
        path.mkdir(parents=True)
        return path


Fault = Callable[[Tool, Setting], Iterator[Trial]]


class Ended(NamedTuple):
    """How a forked process ended: the arrays that it returned; or None, and what it raised."""

    arrays: Arrays | None
    error: str

    def value(self) -> Arrays:
        """What it returned.

        Raises:
            RuntimeError: it raised, or was killed.
        """
        if self.arrays is None:
            raise RuntimeError(self.error)
        return self.arrays


class Forked:
    """A process forked from this one, which has compiled all that it needs."""

    def __init__(self, act: Callable[[], Arrays], most_bytes: int | None = None):
        """Start it; no file that it writes may become longer than ``most_bytes``, as if the disk were full."""
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_send, args=(theirs, act, most_bytes))
        self._process.start()
        theirs.close()
        self.pid = self._process.pid

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds or the process has ended."""
        while self._process.is_alive() and not condition():
            time.sleep(0.002)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def ended(self, limit_s: float = 60) -> Ended:
        """Wait for its end.

        Raises:
            TimeoutError: it hangs.
        """
        try:
            if not self._pipe.poll(limit_s):
                raise TimeoutError(f"a forked process hung for {limit_s} s")
            return self._pipe.recv()
        except EOFError:
            return Ended(None, "killed: nothing came back")
        finally:
            self._process.kill()
            self._process.join()
            self._pipe.close()


def in_fork(act: Callable[[], Arrays], most_bytes: int | None = None) -> Ended:
    """Do something in a forked process, and wait for its end."""
    return Forked(act, most_bytes).ended()


def _send(pipe: Any, act: Callable[[], Arrays], most_bytes: int | None) -> None:
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        pipe.send(Ended(act(), ""))
    except Exception as error:
        pipe.send(Ended(None, f"{type(error).__name__}: {error}"))
