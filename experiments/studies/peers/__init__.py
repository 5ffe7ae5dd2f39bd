"""The same gradient-descent step in every framework: one short file a framework.

Each file has ``arms(workload)``, which returns ``{label: Arm}``, or a sentence that says why it cannot run that
workload. Importing the file raises ImportError where the framework is not installed.

Every arm starts from the same weights and sees the same full batch. Each of its steps computes the forward pass, the
loss, the gradient and the update, and it returns the loss of each step. Weights are given as ``(n_in, n_out)``; PyTorch
and Equinox keep them transposed, as their own layers do.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# The arms that the tables compare the others with.
SCAN = "raw lax.scan"
OURS_WHOLE = "minijaxnet descend"
OURS_LOOP = "minijaxnet, jitted descent.step"

Run = Callable[[int], Any]


class Arm(NamedTuple):
    """One way to take steps, in any framework.

    Attributes:
        start: ``start() -> run``, which is not timed, puts the starting weights in place. ``run(steps)``, called once,
            takes so many steps, waits until all is computed, and returns a loss for each step.
        whole: whether one call of a compiled program takes all steps; otherwise Python calls each of them.
        same_rule: whether the update is plain gradient descent, so that the losses must equal the others'.
    """

    start: Callable[[], Run]
    whole: bool = False
    same_rule: bool = True


class Workload(NamedTuple):
    """A network of relu layers, its batch and its learning rate.

    The loss is the softmax cross-entropy where there are several outputs, otherwise the mean squared error.
    """

    sizes: tuple[int, ...]
    points: int
    learning_rate: float

    @property
    def classifies(self) -> bool:
        """Whether the targets are classes."""
        return self.sizes[-1] > 1

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Random points ``(points, n_in)`` and targets: ``(points, 1)`` float32, or classes ``(points,)`` int32."""
        draw = np.random.default_rng(1)
        x = draw.normal(size=(self.points, self.sizes[0])).astype(np.float32)
        if self.classifies:
            return x, draw.integers(0, self.sizes[-1], self.points).astype(np.int32)
        return x, draw.normal(size=(self.points, 1)).astype(np.float32)

    def weights(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """``(weights, bias)`` of each layer, float32, by He's rule."""
        draw = np.random.default_rng(0)
        return [
            ((draw.normal(size=(n_in, n_out)) * (2 / n_in) ** 0.5).astype(np.float32), np.zeros(n_out, np.float32))
            for n_in, n_out in itertools.pairwise(self.sizes)
        ]


WORKLOADS = {
    "2-2-1": Workload((2, 2, 1), 4, 0.01),
    "64-128-10": Workload((64, 128, 10), 128, 0.1),
    "64-256-256-10": Workload((64, 256, 256, 10), 256, 0.1),
    "1024-1024-1024-10": Workload((1024, 1024, 1024, 10), 256, 0.01),
}

PEERS = {
    "minijaxnet": "peers.ours",
    "jax": "peers.raw_jax",
    "optax": "peers.optax_steps",
    "equinox": "peers.equinox_modules",
    "flax": "peers.flax_nnx",
    "torch": "peers.pytorch",
    "numpy": "peers.numpy_by_hand",
    "c": "peers.c_by_hand",
}
