"""The same gradient-descent step in every framework: one short file a peer, all of one shape.

A peer's file has ``arms(workload)``, which returns ``{label: Arm}``, or says in a sentence why it cannot run that
workload. Importing the file, or calling ``arms``, raises ImportError where what it needs is not installed.

Every arm starts from the same weights, looks at the same full batch, and computes at each step the forward pass, the
loss, the gradient and the update; every arm returns the loss of each step. Weights are handed over as
``(n_in, n_out)``; a framework whose own layer keeps them the other way round (PyTorch, Equinox) keeps them so.
"""

import itertools
from typing import NamedTuple

import numpy as np

from .arms import Arm, Run

__all__ = ["LOOP", "OURS_LOOP", "OURS_WHOLE", "PEERS", "SCAN", "WORKLOADS", "Arm", "Run", "Workload"]

# What the tables hold the others against.
SCAN = "raw lax.scan"
LOOP = "raw jax, jitted step"
OURS_WHOLE = "minijaxnet descend"
OURS_LOOP = "minijaxnet, jitted descent.step"


class Workload(NamedTuple):
    """A network of relu layers, its batch and its rate: softmax cross-entropy for classes, else mean squared error.

    Attributes:
        sizes: widths from the input to the output.
        points: of the batch.
        learning_rate: small enough that losses fall.
        copies: how many networks learn at once, each from weights of its own; None for one network, without that axis.
    """

    sizes: tuple[int, ...]
    points: int
    learning_rate: float
    copies: int | None = None

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
        """``(weights, bias)`` a layer, float32, by He's rule; with copies, their axis comes first."""
        draw = np.random.default_rng(0)
        stack = () if self.copies is None else (self.copies,)
        return [
            (
                (draw.normal(size=(*stack, n_in, n_out)) * (2 / n_in) ** 0.5).astype(np.float32),
                np.zeros((*stack, n_out), np.float32),
            )
            for n_in, n_out in itertools.pairwise(self.sizes)
        ]


WORKLOADS: dict[str, Workload] = {
    "2-2-1": Workload((2, 2, 1), 4, 0.01),
    "64-128-10": Workload((64, 128, 10), 128, 0.1),
    "64-256-256-10": Workload((64, 256, 256, 10), 256, 0.1),
    "1024-1024-1024-10": Workload((1024, 1024, 1024, 10), 256, 0.01),
    "1000x2-2-1": Workload((2, 2, 1), 4, 0.01, copies=1_000),
}

PEERS: dict[str, str] = {
    "minijaxnet": "peers.ours",
    "jax": "peers.raw_jax",
    "optax": "peers.optax_steps",
    "equinox": "peers.equinox_modules",
    "flax": "peers.flax_nnx",
    "torch": "peers.pytorch",
    "numpy": "peers.numpy_by_hand",
    "c": "peers.c_by_hand",
}
