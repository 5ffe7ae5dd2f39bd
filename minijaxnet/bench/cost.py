"""What is a step made of? Its floating-point operations, the bytes it moves, the memory it takes."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from minijaxnet._tables import text_table
from minijaxnet._trees import structure_difference
from minijaxnet.bench.communication import Communication, communication, computations
from minijaxnet.bench.device import launches_of
from minijaxnet.bench.flops import bytes_of, count, live


class StepCost(NamedTuple):
    """What ``step_cost`` found; print it.

    Operations on integers and booleans are none on floating-point numbers and are not counted.

    Attributes:
        matrix_flops: ``{dtype: FLOPs}`` of matrix products and convolutions, under their operands' dtype.
        other_flops: the same of everything else.
        transcendentals: how many of these are exponentials, roots and the like, each counted as one.
        least_bytes: of the arguments that are used, read once, and of the results, written once; one that is handed on
            as it is counts as neither.
        unfused_bytes: what would be moved if each operation read its operands and wrote its result.
        planned_peak_bytes: the compiler's plan for the step with its state donated: arguments, results and temporaries,
            of one device; None where it does not tell. What the process and its libraries take comes on top.
        process_peak_bytes: the most that this process has had on one of the step's devices so far, whatever for; None
            where the device does not tell, as a CPU.
        exact: whether the FLOPs are exact by the rules of ``step_cost``.
        notes: if not, why; and what the communication leaves open.
        launches: how many kernels and library calls the device is asked for; None on a CPU, which calls functions.
        devices: how many the step runs on. The FLOPs and the bytes are those of all of them together.
        communication: what the devices say to one another.
    """

    matrix_flops: dict[str, int]
    other_flops: dict[str, int]
    transcendentals: int
    least_bytes: int
    unfused_bytes: int
    planned_peak_bytes: int | None
    process_peak_bytes: int | None
    exact: bool
    notes: tuple[str, ...]
    devices: int = 1
    communication: Communication = Communication()
    launches: int | None = None

    @property
    def flops(self) -> int:
        """All floating-point operations, of any dtype."""
        return sum(self.matrix_flops.values()) + sum(self.other_flops.values())

    def __str__(self) -> str:
        """A table of the counts, and the notes."""
        heading = "a step is made of" if self.devices == 1 else f"a step on {self.devices} devices is made of"
        rows = [(f"matrix FLOPs, {dtype}", f"{flops:,}") for dtype, flops in self.matrix_flops.items()]
        rows += [(f"other FLOPs, {dtype}", f"{flops:,}") for dtype, flops in self.other_flops.items()]
        plain = {
            "  of them transcendental": self.transcendentals,
            "bytes, at least": self.least_bytes,
            "bytes, nothing fused": self.unfused_bytes,
            "peak bytes, planned": self.planned_peak_bytes,
            "peak bytes, of this process": self.process_peak_bytes,
        }
        rows += [(name, "-" if value is None else f"{value:,}") for name, value in plain.items()]
        rows += [] if self.launches is None else [("launches", f"{self.launches:,}")]
        rows += [
            (f"{one.times} {one.kind} {one.among}, bytes", f"{one.payload_bytes:,}")
            for one in self.communication.collectives
        ]
        return "\n".join([text_table((heading, ""), rows), *(f"note: {note}" for note in self.notes)])


def step_cost(step: Callable[[Any, Any], Any], state: Any, batch: Any) -> StepCost:
    """Count what one step does, from its program; it is compiled, but not run.

    ::

        matrix product    2 * elements of the result * length of the contracted axes
        convolution       2 * the products of an element of the input with one of the kernel (none with padding)
        elementwise       1 an element, transcendental or not
        reduction         1 an element of the input; in windows, 1 an element of each window
        sort              n log2(n) a row of n elements
        data movement     0

    A multiplication and an addition of complex numbers in a matrix product count as 8, as in BLAS. What no result needs
    is not counted; a ``scan``, as JAX makes of a ``fori_loop`` between Python's integers, counts as often as it runs.
    A ``while`` is counted as a single round, a ``cond`` as its dearest branch, a ``shard_map`` as one device's share,
    an operation with no rule here as nothing; then ``exact`` is False and ``notes`` says so.

    Where state and batch are placed on several devices, so is the step, and its collectives are counted in the compiled
    program, as ``communication`` does.

    Args:
        step: ``step(state, batch)``, such as ``descent.step``.
        state: what it starts from, any pytree of arrays; it is left as it is.
        batch: what it looks at, likewise.

    Returns:
        The counts.

    Example:
        >>> import jax.numpy as jnp
        >>> cost = step_cost(lambda weights, x: x @ weights, jnp.ones((3, 5)), jnp.ones((2, 3)))
        >>> cost.matrix_flops, cost.least_bytes  # 2 * (2 * 5) * 3; 4 * (3 * 5 + 2 * 3 + 2 * 5)
        ({'float32': 60}, 124)

    Source: Chowdhery et al., "PaLM: Scaling language modeling with pathways", 2022, appendix B (model FLOPs).
    """
    # Of a jitted step the plain one: what it hands on would else seem to be read and written.
    plain: Any = step
    if isinstance(step, jax.stages.Wrapped):
        plain = plain.__wrapped__

    # A function of its own, for a step need not be hashable.
    def own(state: Any, batch: Any) -> Any:
        return plain(state, batch)

    # The state is donated, as in the loops of this library, unless there is no next one to give its memory to.
    traced = jax.jit(own, donate_argnums=0).trace(state, batch)
    results = traced.out_info
    if not isinstance(results, tuple) or len(results) != 2 or structure_difference(results[0], state):
        traced = jax.jit(own).trace(state, batch)
    program = live(traced.jaxpr)
    found, compiled = count(program), traced.lower().compile()
    said = communication(compiled)
    return StepCost(
        dict(+found.matrix),
        dict(+found.other),
        found.transcendentals,
        _least_bytes(program),
        found.moved,
        *_peaks(compiled),
        not found.notes,
        (*found.notes, *said.notes),
        len(_devices(compiled)) or 1,
        said,
        None if _platforms(compiled) == {"cpu"} else launches_of(compiled.as_text() or ""),
    )


def folded_loop(compiled: Any) -> bool | None:
    """Whether XLA made each loop of a program for the CPU one native function, calling nothing from round to round.

    It does so where a round touches few bytes, and a step of a small network then takes a fraction of the time.

    Args:
        compiled: a ``jax.stages.Compiled``, from ``jax.jit(f).lower(...).compile()``.

    Returns:
        False if some loop is not folded, or there is none; None on another platform than the CPU.

    Example:
        >>> import jax.numpy as jnp
        >>> folded_loop(jax.jit(lambda x: jax.lax.fori_loop(0, 99, lambda _, x: jnp.sin(x), x)).lower(1.0).compile())
        True
    """
    if _platforms(compiled) != {"cpu"}:
        return None
    entry, bodies = computations(compiled.as_text())
    pending = [entry]
    found, seen = False, set(pending)
    while pending:
        body = bodies[pending.pop()]
        if " while(" in body:
            return False
        for line in body.splitlines():
            if 'xla_cpu_small_call="true"' in line:
                found = True
                continue
            called = set(re.findall(r"%[\w.-]+", line)) & bodies.keys() - seen
            seen |= called
            pending += called
    return found


def _least_bytes(program: Any) -> int:
    given = {*program.constvars, *program.invars}
    used = {atom for eqn in program.eqns for atom in eqn.invars if not hasattr(atom, "val")}
    made = {atom for atom in program.outvars if not hasattr(atom, "val")} - given
    return sum(map(bytes_of, given & used | made))


def _peaks(compiled: Any) -> tuple[int | None, int | None]:
    """The planned peak, and the observed one."""
    plan, planned = compiled.memory_analysis(), None
    if plan is not None:
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        planned = held + plan.temp_size_in_bytes
    ours = [device for device in _devices(compiled) if device.process_index == jax.process_index()]
    seen = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in ours]
    return planned, max((peak for peak in seen if peak is not None), default=None)


def _platforms(compiled: Any) -> set[str]:
    return {device.platform for device in _devices(compiled)} or {jax.default_backend()}


def _devices(compiled: Any) -> set[Any]:
    shardings = jax.tree.leaves((compiled.input_shardings, compiled.output_shardings))
    return {device for sharding in shardings for device in sharding.device_set}
