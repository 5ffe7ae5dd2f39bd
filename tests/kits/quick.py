"""Programs that are compiled quickly, for tests that run each of them a few times only."""

import contextlib
import functools
from collections.abc import Iterator
from unittest import mock

import jax

OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@functools.cache
def options() -> dict[str, int] | None:
    """Options for quick compilation, if this XLA has them all."""
    try:
        jax.jit(lambda x: x, compiler_options=OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return OPTIONS


@contextlib.contextmanager
def compilation() -> Iterator[None]:
    """Within it, what is lowered and compiled by hand is compiled with these options: in half the time."""
    compiled = functools.partialmethod(jax.stages.Lowered.compile, compiler_options=options())
    with mock.patch.object(jax.stages.Lowered, "compile", compiled):
        yield
