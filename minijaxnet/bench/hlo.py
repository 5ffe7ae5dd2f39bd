"""What XLA made of a function, read from the text of the compiled program (HLO): its instructions and its loops."""

import re
from typing import Any, NamedTuple

import jax
from jax.stages import Compiled

_COMPUTATION = re.compile(r"^(ENTRY )?(%\S+) (.*?)^}", re.MULTILINE | re.DOTALL)
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?(%[\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$", re.MULTILINE)
_NAME = re.compile(r"%[\w.-]+")
# Instructions for which a device launches no kernel and calls no library.
_NO_LAUNCH = frozenset(
    """parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id call copy-done async-done
    all-reduce-done all-gather-done collective-permute-done while""".split()  # of a while its body is counted
)


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
        name: of its result.
        type: of its result, such as "f32[2,3]{1,0}".
        operation: such as "fusion".
        operands: the names of what it takes.
        attributes: the text behind the operands.
        called: the names of the computations that it calls.
    """

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    attributes: str
    called: tuple[str, ...]


def computations(text: str) -> tuple[str, dict[str, tuple[Instruction, ...]]]:
    """The name of a program's entry, and the instructions of each computation by its name.

    >>> entry, found = computations(jax.jit(lambda x: x).lower(1.0).compile().as_text())
    >>> found[entry][0].operation
    'parameter'
    """
    blocks = _COMPUTATION.findall(text)
    names = {name for _, name, _ in blocks}

    def instruction(name: str, kind: str, operation: str, rest: str) -> Instruction:
        end = _end_of_operands(rest)
        called = tuple(dict.fromkeys(found for found in _NAME.findall(rest[end:]) if found in names))
        return Instruction(name, kind, operation, tuple(_NAME.findall(rest[:end])), rest[end:], called)

    found = {name: tuple(instruction(*line) for line in _INSTRUCTION.findall(body)) for _, name, body in blocks}
    return next(name for entry, name, _ in blocks if entry), found


def _end_of_operands(rest: str) -> int:
    """Where the parenthesis closes that was opened before this text."""
    depth = 1
    for parenthesis in re.finditer(r"[()]", rest):
        depth += 1 if parenthesis[0] == "(" else -1
        if not depth:
            return parenthesis.start()
    return len(rest)


def launches_of(text: str) -> int:
    """How many kernels and library calls a compiled program launches.

    The body of a loop counts once, a conditional as its largest branch.

    >>> launches_of(jax.jit(lambda x: x @ x + 1).lower(jax.numpy.ones((2, 2))).compile().as_text()) > 0
    True
    """
    entry, found = computations(text)

    def count(name: str) -> int:
        total = 0
        for one in found[name]:
            total += one.operation not in _NO_LAUNCH
            if one.operation in ("call", "while", "conditional"):
                inner = [count(name) for name in one.called if f"condition={name}," not in one.attributes]
                total += max(inner, default=0) if one.operation == "conditional" else sum(inner)
        return total

    return count(entry)


def folded_loop(compiled: Compiled) -> bool | None:
    """Whether XLA made each loop of a program for the CPU one native function, with no call from round to round.

    It does so where a round touches few bytes. A step of a small network then takes a fraction of the time.

    Args:
        compiled: from ``jax.jit(f).lower(...).compile()``.

    Returns:
        False if some loop is not folded, or there is no loop; None on other platforms than the CPU.

    Example:
        >>> import jax.numpy as jnp
        >>> folded_loop(jax.jit(lambda x: jax.lax.fori_loop(0, 99, lambda _, x: jnp.sin(x), x)).lower(1.0).compile())
        True
    """
    if platforms_of(compiled) != {"cpu"}:
        return None
    entry, found = computations(compiled.as_text() or "")
    is_folded, reached = False, [entry]
    for name in reached:  # which grows meanwhile
        for one in found[name]:
            if one.operation == "while":
                return False
            if 'xla_cpu_small_call="true"' in one.attributes:
                is_folded = True
            else:
                reached += [inner for inner in one.called if inner not in reached]
    return is_folded


def platforms_of(compiled: Compiled) -> set[str]:
    """The kinds of devices that a compiled program is for."""
    return {device.platform for device in devices_of(compiled)} or {jax.default_backend()}


def devices_of(compiled: Compiled) -> set[Any]:
    """The devices that a compiled program is for; none if it has neither arguments nor results."""
    shardings = jax.tree.leaves((compiled.input_shardings, compiled.output_shardings))
    return {device for sharding in shardings for device in sharding.device_set}
