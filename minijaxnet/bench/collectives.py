"""What devices exchange in a step: its collectives, their bytes, and between which devices, read from the program.

The compiler inserts these operations where arrays on several devices have to be summed or joined. So they are counted
in the compiled program; the traced one has none.
"""

import functools
import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
from jax.stages import Compiled

from minijaxnet.bench.hlo import computations

_KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "reduce-scatter",
    "collective-broadcast",
    "collective-permute",
)
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\w*\[([\d,]*)\]")
Groups = tuple[tuple[int, ...], ...]


class Collective(NamedTuple):
    """An operation in which several devices take part.

    Attributes:
        kind: such as "all-reduce".
        times: how often it runs.
        payload_bytes: of each run, on one device: of its operands, or for an all-gather of its result. Leaves that are
            summed together are one collective.
        groups: which devices exchange data, by their index in the program's order of devices, which is that of its
            mesh; pairs (from, to) for a permutation; empty where the program has them in a form that is not read.
    """

    kind: str
    times: int
    payload_bytes: int
    groups: Groups

    @property
    def among(self) -> str:
        """Between which devices, in words."""
        if self.kind == "collective-permute":
            return f"between {len(self.groups)} pairs of devices"
        sizes = sorted({len(group) for group in self.groups})
        if not sizes:
            return "over unknown devices"
        devices = f"{'-'.join(map(str, sizes))} devices"
        return f"over {devices}" if len(self.groups) == 1 else f"over {len(self.groups)} groups of {devices}"

    def __str__(self) -> str:
        """How many, between which devices, and how large."""
        plural, each = ("s", " each") if self.times > 1 else ("", "")
        return f"{self.times} {self.kind}{plural} {self.among}, {self.payload_bytes:,} bytes{each}"


class Communication(NamedTuple):
    """The result of ``communication``; print it.

    Attributes:
        collectives: one entry for those of the same kind, size and devices.
        notes: what is not counted exactly.
    """

    collectives: tuple[Collective, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """How many collectives run."""
        return sum(one.times for one in self.collectives)

    @property
    def total_bytes(self) -> int:
        """The bytes of all of them, on one device."""
        return sum(one.times * one.payload_bytes for one in self.collectives)

    def __str__(self) -> str:
        """A line for each entry."""
        lines = [str(one) for one in self.collectives] or ["no communication"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def communication(compiled: Compiled) -> Communication:
    """Count the collectives of a compiled program.

    A collective counts as often as the computation that holds it is called. The body of a loop counts as one round, a
    conditional as its branch with the most bytes; ``notes`` says so where there is a collective inside. An operation
    that is started first and waited for later counts once.

    Args:
        compiled: from ``jax.jit(f).lower(...).compile()``.

    Returns:
        The counts; none for a program of one device.

    Example:
        >>> import jax
        >>> print(communication(jax.jit(lambda x: x + 1).lower(1.0).compile()))
        no communication
    """
    text = compiled.as_text() or ""
    entry, instructions = computations(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1
    notes: dict[str, None] = {}

    @functools.cache
    def within(name: str) -> Counter[tuple[str, int, Groups]]:
        counts = Counter()
        types = {one.name: one.type for one in instructions[name]}
        for one in instructions[name]:
            kind = one.operation.removesuffix("-start")
            if kind in _KINDS:
                taken = sum(_bytes_of(types.get(operand, "")) for operand in one.operands)
                # The result of a start holds the operands, too.
                made = _bytes_of(one.type) - (taken if kind != one.operation else 0)
                counts[kind, made if kind == "all-gather" else taken, _groups(one.attributes, devices)] += 1
            if one.operation in ("async-update", "async-done"):  # counted where it was started
                continue
            inner = [within(called) for called in one.called]
            if one.operation == "conditional" and any(inner):
                notes["conditional: communication counted as that of its branch with the most bytes"] = None
                inner = [max(inner, key=_total_bytes)]
            if one.operation == "while" and any(inner):
                notes["while: communication counted as that of one round"] = None
            for counted in inner:
                counts.update(counted)
        return counts

    found = (Collective(kind, times, payload, groups) for (kind, payload, groups), times in within(entry).items())
    return Communication(tuple(sorted(found, key=lambda one: (one.kind, -one.payload_bytes))), tuple(notes))


def _total_bytes(counts: Counter[tuple[str, int, Groups]]) -> int:
    return sum(times * payload for (_, payload, _), times in counts.items())


def _bytes_of(kind: str) -> int:
    """The bytes of an array by its type, or of all arrays of a tuple.

    >>> _bytes_of("(f32[2,3]{1,0}, bf16[5]{0}, pred[])")
    35
    """
    bits = 0
    for dtype, shape in _ARRAY.findall(kind):
        if dtype not in ("token", "opaque"):
            of_each = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
            bits += of_each * math.prod(int(size) for size in shape.split(",") if size)
    return bits // 8


def _groups(attributes: str, devices: int) -> Groups:
    """Which devices exchange data, from the forms in which XLA writes it; empty for another form.

    >>> _groups("replica_groups={{0,1},{2,3}}", 4), _groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4)
    (((0, 1), (2, 3)), ((0, 2), (1, 3)))
    >>> _groups("replica_groups=mesh['a'=2,'b'=2] {'a'}", 4), _groups("replica_groups=mesh['a'=2,'b'=1] {'a','b'}", 2)
    (((0, 2), (1, 3)), ((0, 1),))
    >>> _groups("replica_groups={}", 2), _groups("replica_groups=[1,2]<=[2]", 2), _groups("replica_groups=?", 2)
    (((0, 1),), ((0, 1),), ())
    >>> _groups("replica_groups=mesh['a'=4] {'a':(1)2}", 4)
    ()
    >>> _groups("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", 4)
    ()
    """
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}\s]*\})?\}", attributes):
        groups = re.findall(r"\{([\d,\s]+)\}", found[1] or "")
        return tuple(tuple(map(int, group.split(","))) for group in groups) or (tuple(range(devices)),)
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, source, order = ([int(n) for n in (part or "").split(",") if n] for part in found.groups())
        return _rows(np.arange(math.prod(source)).reshape(source).transpose(order or None).reshape(shape))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{('[^':]*'(?:,'[^':]*')*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", found[1])}
        axes, over = [*sizes], re.findall(r"'([^']*)'", found[2])
        order = [axes.index(name) for name in (*(name for name in axes if name not in over), *over)]
        table = np.arange(math.prod(sizes.values())).reshape([*sizes.values()]).transpose(order)
        return _rows(table.reshape(-1, math.prod(sizes[name] for name in over)))
    return ()


def _rows(table: np.ndarray) -> Groups:
    return tuple(tuple(map(int, row)) for row in table)
