"""What does a step compute, move and hold? Its floating-point operations, bytes and memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.stages import Compiled

from minijaxnet._jaxpr import is_literal
from minijaxnet._tables import text_table
from minijaxnet._trees import structure_difference
from minijaxnet.bench.collectives import Communication, communication
from minijaxnet.bench.flops import count, live
from minijaxnet.bench.hlo import devices_of, launches_of, platforms_of


class StepCost(NamedTuple):
    """The result of ``step_cost``; print it.

    Operations on integers and booleans are not counted.

    Attributes:
        matrix_flops: ``{dtype: FLOPs}`` of matrix products and convolutions, under their operands' dtype.
        other_flops: the same of everything else.
        least_bytes: of the arguments that are used, read once, and of the results, written once. An argument that is
            returned unchanged counts as neither.
        planned_peak_bytes: the compiler's plan for the step with its state donated: arguments, results and temporaries,
            on one device; None where it has none. The memory of the process and its libraries comes on top.
        process_peak_bytes: the most that this process has had on one of the step's devices so far, for any purpose;
            None where the device does not measure it, as a CPU.
        notes: why the FLOPs are not exact; empty if they are exact by the rules of ``step_cost``.
        devices: how many the step runs on. The FLOPs and the bytes are those of all of them together.
        communication: what the devices exchange.
        launches: how many kernels and library calls a device launches; None on a CPU, which calls functions.
    """

    matrix_flops: dict[str, int]
    other_flops: dict[str, int]
    least_bytes: int
    planned_peak_bytes: int | None = None
    process_peak_bytes: int | None = None
    notes: tuple[str, ...] = ()
    devices: int = 1
    communication: Communication = Communication()
    launches: int | None = None

    @property
    def flops(self) -> int:
        """All floating-point operations, of any dtype."""
        return sum(self.matrix_flops.values()) + sum(self.other_flops.values())

    def __str__(self) -> str:
        """A table of the counts, and the notes."""
        counts: dict[str, int | None] = {f"matrix FLOPs, {dtype}": n for dtype, n in self.matrix_flops.items()}
        counts |= {f"other FLOPs, {dtype}": n for dtype, n in self.other_flops.items()}
        counts |= {
            "bytes, at least": self.least_bytes,
            "peak bytes, planned": self.planned_peak_bytes,
            "peak bytes, of this process": self.process_peak_bytes,
        }
        if self.launches is not None:
            counts["launches"] = self.launches
        for one in self.communication.collectives:
            counts[f"{one.times} {one.kind} {one.among}, bytes"] = one.payload_bytes
        heading = "a step" if self.devices == 1 else f"a step on {self.devices} devices"
        rows = [(name, "-" if n is None else f"{n:,}") for name, n in counts.items()]
        notes = [f"note: {note}" for note in (*self.notes, *self.communication.notes)]
        return "\n".join([text_table((heading, "number"), rows), *notes])


def step_cost(step: Callable[[Any, Any], Any], state: Any, batch: Any) -> StepCost:
    """Count what one step does, from its program, which is compiled but not run.

    ::

        matrix product    2 * elements of the result * length of the contracted axes
        convolution       2 * the products of an element of the input with one of the kernel (none with padding)
        elementwise       1 for each element, exponentials and roots too
        reduction         1 for each element of the input; in windows, 1 for each element of each window
        sort              n log2(n) for each row of n elements
        data movement     0

    A multiplication and an addition of complex numbers in a matrix product count as 8, as in BLAS. An operation that no
    result needs is not counted. A ``scan``, which JAX makes of a ``fori_loop`` between Python's integers, counts as
    often as it runs. A ``while`` is counted as one round, a ``cond`` as its branch with the most FLOPs, a ``shard_map``
    as the share of one device, an operation without a rule as nothing; ``notes`` says so.

    Where state and batch are placed on several devices, so is the step, and its collectives are counted in the compiled
    program, as ``communication`` does.

    Args:
        step: ``step(state, batch)``, such as ``descent.step``.
        state: any pytree of arrays; it is not changed.
        batch: likewise.

    Returns:
        The counts.

    Example:
        >>> import jax.numpy as jnp
        >>> cost = step_cost(lambda weights, x: x @ weights, jnp.ones((3, 5)), jnp.ones((2, 3)))
        >>> cost.matrix_flops, cost.least_bytes  # 2 * (2 * 5) * 3; 4 * (3 * 5 + 2 * 3 + 2 * 5)
        ({'float32': 60}, 124)

    Source: Chowdhery et al., "PaLM: Scaling language modeling with pathways", 2022, appendix B (model FLOPs).
    """
    plain: Any = step.__wrapped__ if isinstance(step, jax.stages.Wrapped) else step  # pyright: ignore

    def own(state: Any, batch: Any) -> Any:  # a step need not be hashable
        return plain(state, batch)

    # The state is donated, as in this library's loops, unless there is no next state to take its memory.
    traced = jax.jit(own, donate_argnums=0).trace(state, batch)
    results = traced.out_info
    if not isinstance(results, tuple) or len(results) != 2 or structure_difference(results[0], state):
        traced = jax.jit(own).trace(state, batch)
    program = live(traced.jaxpr)
    counted, compiled = count(program), traced.lower().compile()
    planned, observed = _peaks(compiled)
    return StepCost(
        matrix_flops=dict(counted.matrix),
        other_flops=dict(counted.other),
        least_bytes=_least_bytes(program),
        planned_peak_bytes=planned,
        process_peak_bytes=observed,
        notes=counted.notes,
        devices=len(devices_of(compiled)) or 1,
        communication=communication(compiled),
        launches=None if platforms_of(compiled) == {"cpu"} else launches_of(compiled.as_text() or ""),
    )


def _least_bytes(program: Any) -> int:
    given = {*program.constvars, *program.invars}
    used = {atom for eqn in program.eqns for atom in eqn.invars if not is_literal(atom)}
    made = {atom for atom in program.outvars if not is_literal(atom)} - given
    arrays = [atom.aval for atom in given & used | made if hasattr(atom.aval, "dtype")]
    return sum(aval.size * aval.dtype.itemsize for aval in arrays)


def _peaks(compiled: Compiled) -> tuple[int | None, int | None]:
    """The planned peak, and the observed one."""
    plan, planned = compiled.memory_analysis(), None
    if plan is not None:
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        planned = held + plan.temp_size_in_bytes
    own = [device for device in devices_of(compiled) if device.process_index == jax.process_index()]
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in own]
    return planned, max((peak for peak in peaks if peak is not None), default=None)
