"""PyTorch on the CPU: eager and compiled, with its own layers, loss and optimizer; ``torch.func`` for the copies.

It has no documented way to put a training loop inside one program, so all its arms are loops in Python.
"""

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.func import functional_call, grad_and_value, vmap  # pyright: ignore[reportMissingImports]

from . import Arm, Run, Workload
from .arms import torch_loop


@functools.cache
def load_compiler() -> None:
    """Compile something, once: loading the compiler takes longer than using it, and the first arm would pay for it."""
    torch.compile(torch.sin)(torch.ones(2))


def layers(sizes: tuple[int, ...]) -> Any:
    """Linear layers with relu between them."""
    parts: list[Any] = []
    for n_in, n_out in itertools.pairwise(sizes):
        parts += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def named_weights(model: Any, workload: Workload) -> dict[str, Any]:
    """The starting weights by the model's names, transposed as its layers keep them."""
    leaves = [leaf for weights, bias in workload.weights() for leaf in (weights.swapaxes(-1, -2), bias)]
    names = [name for name, _ in model.named_parameters()]
    return {name: torch.tensor(leaf).contiguous() for name, leaf in zip(names, leaves, strict=True)}


def arms(workload: Workload) -> dict[str, Arm]:
    """Eager and compiled; for one network the usual loop of module and optimizer, too."""
    torch.set_num_threads(os.cpu_count() or 1)  # as many as XLA and BLAS take
    x, y = map(torch.from_numpy, workload.data())
    loss_function = nn.functional.cross_entropy if workload.classifies else nn.functional.mse_loss
    if workload.classifies:
        y = y.long()  # the classes' only dtype
    functional = functional_arms(workload, loss_function, x, y)
    return functional if workload.copies is not None else module_arms(workload, loss_function, x, y) | functional


def module_arms(workload: Workload, loss_function: Callable[..., Any], x: Any, y: Any) -> dict[str, Arm]:
    """The usual training loop, with the model and the optimizer eager, compiled by halves, or fused."""

    def make(prepare_model: Callable[[Any], Any] = lambda model: model, **options: Any) -> Callable[[], Run]:
        model = layers(workload.sizes)
        optimizer = torch.optim.SGD(model.parameters(), lr=workload.learning_rate, **options)
        prepared = prepare_model(model)
        starting = named_weights(model, workload)

        def start() -> Run:
            if prepared is not model:
                load_compiler()
            model.load_state_dict(starting)
            return torch_loop(optimizer, lambda: loss_function(prepared(x), y))

        return start

    return {
        "PyTorch eager (usual)": Arm(make()),
        "PyTorch eager, fused SGD": Arm(make(fused=True)),
        "PyTorch, torch.compile(model) (usual)": Arm(make(torch.compile, fused=True)),
    }


def functional_arms(workload: Workload, loss_function: Callable[..., Any], x: Any, y: Any) -> dict[str, Arm]:
    """The gradient as a function of the weights, for copies under ``vmap``; the whole step compiled into one graph."""
    model = layers(workload.sizes)
    starting = named_weights(model, workload)

    def loss_at(params: Any, x: Any, y: Any) -> Any:
        return loss_function(functional_call(model, params, (x,)), y)

    slope = grad_and_value(loss_at)
    if workload.copies is not None:
        slope = vmap(slope, in_dims=(0, None, None))

    def step(params: dict[str, Any], x: Any, y: Any) -> tuple[dict[str, Any], Any]:
        gradients, loss = slope(params, x, y)
        return {name: weight - workload.learning_rate * gradients[name] for name, weight in params.items()}, loss

    def make(*, compiled: bool) -> Callable[[], Run]:
        take_step = torch.compile(step) if compiled else step

        def run(steps: int) -> Any:
            params, losses = starting, []
            for _ in range(steps):
                params, loss = take_step(params, x, y)
                losses.append(loss)
            return losses

        def start() -> Run:
            if compiled:
                load_compiler()
            return torch.no_grad()(run)

        return start

    if workload.copies is None:
        return {"PyTorch, torch.func, compiled step": Arm(make(compiled=True))}
    return {
        "PyTorch, vmap of torch.func.grad": Arm(make(compiled=False)),
        "PyTorch, the same, compiled step": Arm(make(compiled=True)),
    }
