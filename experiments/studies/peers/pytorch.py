"""PyTorch on the CPU: eager and compiled, with its own layers, loss and optimizer.

It has no documented way to put a training loop inside one program, so all its arms are loops in Python.
"""

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from . import Arm, Run, Workload


@functools.cache
def load_compiler() -> None:
    """Compile something, once: to load the compiler takes longer than to use it, and is no part of an arm's time."""
    torch.compile(torch.sin)(torch.ones(2))


def layers(sizes: tuple[int, ...]) -> Any:
    """Linear layers with relu between them."""
    parts: list[Any] = []
    for n_in, n_out in itertools.pairwise(sizes):
        parts += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def named_weights(model: Any, workload: Workload) -> dict[str, Any]:
    """The starting weights by the model's names, transposed as its layers keep them."""
    leaves = [leaf for weights, bias in workload.weights() for leaf in (weights.T, bias)]
    names = [name for name, _ in model.named_parameters()]
    return {name: torch.tensor(leaf).contiguous() for name, leaf in zip(names, leaves, strict=True)}


def arms(workload: Workload) -> dict[str, Arm]:
    """The usual training loop, eager and with the model compiled."""
    torch.set_num_threads(os.cpu_count() or 1)  # as many as XLA and BLAS take
    x, y = map(torch.from_numpy, workload.data())
    loss_function = nn.functional.cross_entropy if workload.classifies else nn.functional.mse_loss
    if workload.classifies:
        y = y.long()  # the classes' only dtype

    def make(prepare_model: Callable[[Any], Any], **options: Any) -> Callable[[], Run]:
        model = layers(workload.sizes)
        optimizer = torch.optim.SGD(model.parameters(), lr=workload.learning_rate, **options)
        prepared = prepare_model(model)
        starting = named_weights(model, workload)

        def run(steps: int) -> Any:
            losses = []
            for _ in range(steps):
                optimizer.zero_grad()
                loss = loss_function(prepared(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            return losses

        def start() -> Run:
            if prepared is not model:
                load_compiler()
            model.load_state_dict(starting)
            return run

        return start

    return {
        "PyTorch eager (usual)": Arm(make(lambda model: model)),
        "PyTorch eager, fused SGD": Arm(make(lambda model: model, fused=True)),
        "PyTorch, torch.compile(model) (usual)": Arm(make(torch.compile, fused=True)),
    }
