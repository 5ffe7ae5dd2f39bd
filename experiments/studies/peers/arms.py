"""A process that takes turns: it holds arms that share no process with the others, and times a block when told to.

Frameworks disturb one another within a process. Between turns a worker does nothing but read its pipe, and it answers
only when its threads have gone to sleep too: a pool of threads that spins on for a while after its last work (OpenMP's,
BLAS's) would slow down whoever is next. So no pool has to be told not to spin, which would slow down its owner.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

Run = Callable[[int], Any]

CHECKED_STEPS = 20
_BLOCK_S = 0.03  # long against the clock and the call, short against the machine's drift
# Of a block: a loop of one step would be no loop, and of so many, the losses still fit.
_FEWEST_STEPS, _MOST_STEPS = 4, 2**22


class Arm(NamedTuple):
    """One way to take steps, in any framework.

    Attributes:
        start: ``start() -> run``, not timed, puts the starting weights in place. ``run(steps)``, called once, takes so
            many steps from there, waits until all is computed, and returns a loss a step (with copies, a row of them).
        whole: whether one call of a compiled program takes all steps; else Python calls each.
        same_rule: whether the update is plain gradient descent, so that losses can be held against the others'.
        note: what is to be said of it, asked after its first run; an arm that should not be timed raises here.
    """

    start: Callable[[], Run]
    whole: bool = False
    same_rule: bool = True
    note: Callable[[], str] = str


def python_loop(
    step: Callable[..., Any], states: Callable[[], tuple[Any, ...]], batch: tuple[Any, ...]
) -> Callable[[], Run]:
    """The start of an arm that calls ``step(*states, *batch) -> (*states, loss)`` of JAX's from Python.

    Losses stay on the device until all of them are there.
    """

    def start() -> Run:
        begins = jax.block_until_ready(states())

        def run(steps: int) -> Any:
            current, losses = begins, []
            for _ in range(steps):
                *current, loss = step(*current, *batch)
                losses.append(loss)
            return jax.block_until_ready((current, losses))[1]

        return run

    return start


def torch_loop(optimizer: Any, loss_at: Callable[[], Any]) -> Run:
    """The usual loop of PyTorch, with its optimizer and a loss at the weights that this one moves."""

    def run(steps: int) -> Any:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_at()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    return run


def losses_of(returned: Any) -> np.ndarray:
    """What a run returned as one array, steps first."""
    return np.array([np.asarray(loss) for loss in returned])


def timed(start: Callable[[], Run], steps: int) -> tuple[float, Any]:
    """Seconds of a run from the start, and what it returned."""
    run = start()
    begin = time.perf_counter()
    returned = run(steps)
    return time.perf_counter() - begin, returned


def first(arm: Arm) -> tuple[float, np.ndarray, str]:
    """Seconds that a first run takes longer than a later one, most of it compilation; its losses; the arm's note."""
    (took, returned), *later = (timed(arm.start, CHECKED_STEPS) for _ in range(3))
    return max(0.0, took - min(took for took, _ in later)), losses_of(returned), arm.note()


def steps_of_a_block(arm: Arm) -> int:
    """How many steps last about as long as a block should."""
    steps = CHECKED_STEPS
    for _ in range(6):
        timed(arm.start, steps)  # some arms compile for each number of steps
        took = min(timed(arm.start, steps)[0] for _ in range(2))
        wanted = int(steps * min(100.0, _BLOCK_S / max(took, 1e-6)))
        wanted = min(_MOST_STEPS, max(_FEWEST_STEPS, wanted))
        if steps / 2 < wanted < 2 * steps:
            return steps
        steps = wanted
    timed(arm.start, steps)
    return steps


def block(arm: Arm, steps: int) -> float:
    """Seconds a step.

    Raises:
        FloatingPointError: the last loss is not finite.
    """
    took, returned = timed(arm.start, steps)
    last = np.asarray(returned[-1])
    if not np.all(np.isfinite(last)):
        raise FloatingPointError(f"after {steps} steps the loss is not finite")
    return took / steps


def rest() -> None:
    """Wait until no other thread of this process works any more, at most for a second."""
    for _ in range(200):
        worked = time.process_time()
        time.sleep(0.005)
        # On a busy machine a thread that spins may get no time for a while; it can be seen to be runnable all the same.
        if time.process_time() - worked < 0.0005 and _runnable_threads() <= 1:
            return


def _runnable_threads() -> int:
    """How many threads of this process run or would like to, this one included; 0 where the system does not tell."""
    states = []
    for path in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has ended
            states.append(path.read_text().rpartition(")")[2].split()[0])
    return states.count("R")


@contextlib.contextmanager
def connected(descriptor: str) -> Iterator[Connection]:
    """The pipe to the process that started this one; when that closes it, this one ends."""
    with contextlib.suppress(EOFError, BrokenPipeError):
        yield Connection(int(descriptor))


def serve(pipe: Connection, found: Mapping[str, Arm] | str) -> None:
    """Answer each ``(verb, label)`` until the pipe is closed, with ``(True, answer)`` or ``(False, why not)``.

    Args:
        pipe: to the process that tells this one what to do.
        found: ``{label: arm}``, or why there are none.
    """
    arms = {} if isinstance(found, str) else found
    steps: dict[str, int] = {}
    rest()
    told = {label: (arm.whole, arm.same_rule) for label, arm in arms.items()}
    pipe.send((True, found if isinstance(found, str) else told))
    while True:
        verb, label = pipe.recv()
        try:
            if verb == "first":
                reply = True, first(arms[label])
            elif verb == "size":
                steps[label] = steps_of_a_block(arms[label])
                reply = True, steps[label]
            else:
                reply = True, block(arms[label], steps[label])
        except Exception as error:
            reply = False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        rest()
        pipe.send(reply)
