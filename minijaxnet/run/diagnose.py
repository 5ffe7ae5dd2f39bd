"""Finding the first operation whose result is not finite in a loss or its gradient."""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from minijaxnet._jaxpr import called, is_literal
from minijaxnet._trees import l2_norm, named_leaves
from minijaxnet._types import Objective, Params

_PACKAGE = Path(__file__).parents[1]


def diagnose(objective: Objective, params: Params, *arguments: Any) -> str:
    """Find the first operation of the loss and its gradient whose result is not finite.

    The program of ``jax.value_and_grad(objective)`` is run operation by operation, and each result is checked.

    Args:
        objective: ``f(params, *arguments)``, a scalar.
        params: finite parameters.
        arguments: the batch of the step, and its key if there is one.

    Returns:
        A sentence with the operation, its line of code, and the size of its inputs.

    Example:
        >>> print(diagnose(lambda w, batch: jnp.log(w - batch), 1.0, 1.0).split(",")[0])
        the first operation whose result is not finite is log
    """
    closed, shape = jax.make_jaxpr(jax.value_and_grad(objective), return_shape=True)(params, *arguments)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves((params, *arguments))]
    bad = [name for name, leaf in named_leaves((params, *arguments)).items() if not _finite(leaf)]
    if bad:
        return f"the input of the step is not finite: {', '.join(bad[:3])}"
    results: list[Any] = []
    for found in _run(closed.jaxpr, closed.consts, leaves, results):
        return found
    gradients = named_leaves(jax.tree.unflatten(jax.tree.structure(shape), results)[1])
    largest = max(gradients, key=lambda name: float(jnp.max(jnp.abs(gradients[name]), initial=0)))
    size = float(jnp.max(jnp.abs(gradients[largest]), initial=0))
    if _finite(l2_norm(gradients)):
        return "loss and gradient are finite, but the optimizer's step is not"
    return f"each operation is finite, but the gradient's norm is not: {largest} has elements up to {size:.3g}"


def _run(jaxpr: Jaxpr, consts: Any, arguments: Any, results: list[Any]) -> Iterator[str]:
    """Run a program; yield a sentence for each operation with finite inputs and an output that is not finite."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if is_literal(atom) else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        outputs: list[Any] = []
        if (inner := called(eqn)) is not None:
            yield from _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs, outputs)
        else:
            bound = eqn.primitive.get_bind_params(eqn.params)
            functions, options = bound if isinstance(bound, tuple) else ([], eqn.params)
            out = eqn.primitive.bind(*functions, *inputs, **options)
            outputs = list(out) if eqn.primitive.multiple_results else [out]
            if not all(map(_finite, outputs)) and all(map(_finite, inputs)):
                yield _sentence(eqn, inputs, outputs)
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    results += [read(atom) for atom in jaxpr.outvars]


def _finite(leaf: Any) -> bool:
    return not jnp.issubdtype(_dtype(leaf), jnp.inexact) or bool(jnp.all(jnp.isfinite(leaf)))


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)


def _sentence(eqn: Any, inputs: list[Any], outputs: list[Any]) -> str:
    broken = next(leaf for leaf in outputs if not _finite(leaf))
    count = int(jnp.sum(~jnp.isfinite(broken)))
    kind = "NaN" if bool(jnp.any(jnp.isnan(broken))) else "infinite"
    sizes = [float(jnp.max(jnp.abs(leaf), initial=0)) for leaf in inputs if jnp.issubdtype(_dtype(leaf), jnp.inexact)]
    inputs_up_to = f"; its inputs have elements up to {max(sizes):.3g}" if sizes else ""
    return (
        f"the first operation whose result is not finite is {eqn.primitive.name}{_place(eqn)}: "
        f"{count} of {broken.size} elements {'is' if count == 1 else 'are'} {kind}{inputs_up_to}"
    )


def _place(eqn: Any) -> str:
    """The innermost line of the user's code that an operation comes from."""
    if (trace := eqn.source_info.traceback) is None:
        return ""
    frames = traceback.extract_tb(trace.as_python_traceback())
    libraries = {"site-packages", "dist-packages"}
    own = [
        f for f in frames if _PACKAGE not in Path(f.filename).parents and not libraries & set(Path(f.filename).parts)
    ]
    own = own or [f for f in frames if _PACKAGE in Path(f.filename).parents]
    return f", {Path(own[-1].filename).name}:{own[-1].lineno} ({own[-1].line})" if own else ""
