"""What devices say to one another in a step: its collectives, their bytes, and among whom, read from the program.

Nobody writes these operations down: the compiler puts them where arrays that lie on several devices have to be summed
or put together. So they are counted in what it made, not in what it was given.
"""

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "reduce-scatter",
    "collective-broadcast",
    "collective-permute",
)
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?(%[\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$", re.MULTILINE)
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\w*\[([\d,]*)\]")
_NAME = re.compile(r"%[\w.-]+")
Groups = tuple[tuple[int, ...], ...]


class Collective(NamedTuple):
    """An operation in which devices take part together.

    Attributes:
        kind: such as "all-reduce".
        times: how often one like it runs.
        payload_bytes: of each, on one device: of all that goes into it, for an all-gather of what comes out. Leaves
            that are summed together are one collective.
        groups: which devices talk to one another, by their place in the program's order of devices, which is that of
            its mesh; pairs (from, to) for a permutation; none where the program does not tell.
    """

    kind: str
    times: int
    payload_bytes: int
    groups: Groups

    @property
    def among(self) -> str:
        """Who talks, in words."""
        if self.kind == "collective-permute":
            return f"along {len(self.groups)} ways"
        sizes = sorted({len(group) for group in self.groups})
        if not sizes:
            return "over devices not told"
        devices = f"{'-'.join(map(str, sizes))} devices"
        return f"over {devices}" if len(self.groups) == 1 else f"over {len(self.groups)} groups of {devices}"

    def __str__(self) -> str:
        """How many, among whom, and how large."""
        plural, each = ("s", " each") if self.times > 1 else ("", "")
        return f"{self.times} {self.kind}{plural} {self.among}, {self.payload_bytes:,} bytes{each}"


class Communication(NamedTuple):
    """What ``communication`` found; print it.

    Attributes:
        collectives: one an entry; those alike are one that runs several times.
        notes: what the counts leave open.
    """

    collectives: tuple[Collective, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """How many collectives run."""
        return sum(found.times for found in self.collectives)

    @property
    def total_bytes(self) -> int:
        """The bytes of all of them, on one device."""
        return sum(found.times * found.payload_bytes for found in self.collectives)

    def __str__(self) -> str:
        """A line an entry."""
        lines = [str(found) for found in self.collectives] or ["no communication"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def communication(compiled: Any) -> Communication:
    """Count the collectives of a compiled program.

    Each counts as often as what it is in is called; a loop's body as a single round, a conditional as its dearest
    branch, and ``notes`` says so where there is a collective in one. Of an operation that is started and waited for
    later, the start counts.

    Args:
        compiled: a ``jax.stages.Compiled``, from ``jax.jit(f).lower(...).compile()``.

    Returns:
        The counts; none for a program of one device.

    Example:
        >>> import jax
        >>> print(communication(jax.jit(lambda x: x + 1).lower(1.0).compile()))
        no communication
    """
    text = compiled.as_text()
    entry, bodies = computations(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1
    notes: dict[str, None] = {}

    @functools.cache
    def within(name: str) -> Counter[tuple[str, int, Groups]]:
        body, found = bodies[name], Counter()
        types = {made: kind for made, kind, _, _ in INSTRUCTION.findall(body)}
        for _, made, operation, rest in INSTRUCTION.findall(body):
            operands, attributes = _split(rest)
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                taken = sum(_bytes_of(types.get(operand, "")) for operand in _NAME.findall(operands))
                started = taken if operation != kind else 0  # whose result holds what it takes, too
                payload = _bytes_of(made) - started if kind == "all-gather" else taken
                found[kind, payload, _groups(attributes, devices)] += 1
            if operation in ("async-update", "async-done"):  # what was started has been counted
                continue
            called = [within(inner) for inner in dict.fromkeys(_NAME.findall(attributes)) if inner in bodies]
            if operation == "conditional" and any(called):
                notes["conditional: communication counted as its dearest branch"] = None
                called = [max(called, key=_total)]
            if operation == "while" and any(called):
                notes["while: communication counted as a single round"] = None
            for inner in called:
                found.update(inner)
        return found

    found = within(entry)
    collectives = (Collective(kind, count, payload, groups) for (kind, payload, groups), count in found.items())
    return Communication(tuple(sorted(collectives, key=lambda one: (one.kind, -one.payload_bytes))), tuple(notes))


def computations(text: str) -> tuple[str, dict[str, str]]:
    """The name of a program's entry, and the text of each computation by its name, from XLA's text of it."""
    blocks = re.findall(r"^(ENTRY )?(%\S+) (.*?)^}", text, re.MULTILINE | re.DOTALL)
    return next(name for entry, name, _ in blocks if entry), {name: body for _, name, body in blocks}


def _total(found: Mapping[tuple[str, int, Groups], int]) -> int:
    return sum(count * payload for (_, payload, _), count in found.items())


def _split(rest: str) -> tuple[str, str]:
    """What is in the parentheses of an operation, and what follows them."""
    depth = 1
    for i, letter in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if not depth:
            return rest[:i], rest[i + 1 :]
    return rest, ""


def _bytes_of(kind: str) -> int:
    """The bytes of an array by its type, or of all arrays of a tuple.

    >>> _bytes_of("(f32[2,3]{1,0}, bf16[5]{0}, pred[])")
    35
    """
    return sum(_bits(dtype) * math.prod(map(int, filter(None, shape.split(",")))) for dtype, shape in _sized(kind)) // 8


def _sized(kind: str) -> list[tuple[str, str]]:
    return [(dtype, shape) for dtype, shape in _ARRAY.findall(kind) if dtype not in ("token", "opaque")]


def _bits(dtype: str) -> int:
    return 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))


def _groups(attributes: str, devices: int) -> Groups:
    """Who takes part, from any of the forms in which XLA writes it.

    >>> _groups("replica_groups={{0,1},{2,3}}", 4), _groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4)
    (((0, 1), (2, 3)), ((0, 2), (1, 3)))
    >>> _groups("replica_groups=mesh['a'=2,'b'=2] {'a'}", 4), _groups("replica_groups={}", 2)
    (((0, 2), (1, 3)), ((0, 1),))
    """
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}\s]*\})?\}", attributes):
        groups = re.findall(r"\{([\d,\s]+)\}", found[1] or "")
        return tuple(tuple(map(int, group.split(","))) for group in groups) or (tuple(range(devices)),)
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, source, order = ([int(n) for n in (part or "").split(",") if n] for part in found.groups())
        return _rows(np.transpose(np.arange(math.prod(source)).reshape(source), order or None).reshape(shape))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", found[1])}
        # Where a part of an axis is meant, ``'name':(before)size``, the axis is cut into what is before, it, and after.
        parts: dict[str, list[tuple[int, int]]] = {}
        chosen: list[tuple[str, int, int]] = []
        for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", found[2]):
            chosen.append((name, int(before or 1), int(size or sizes[name])))
        for name, whole in sizes.items():
            ends = [end for other, before, size in chosen if other == name for end in (before, before * size)]
            cuts = sorted({1, whole, *ends})
            parts[name] = [(low, high // low) for low, high in itertools.pairwise(cuts)] or [(1, 1)]
        axes = [(name, *part) for name in parts for part in parts[name]]
        table = np.arange(math.prod(sizes.values())).reshape([size for *_, size in axes])
        first = [k for k, axis in enumerate(axes) if axis not in chosen]
        last = [axes.index(axis) for axis in chosen if axis in axes]
        members = math.prod(axes[k][2] for k in last)
        return _rows(np.transpose(table, [*first, *last]).reshape(-1, members))
    return ()


def _rows(table: np.ndarray) -> Groups:
    return tuple(tuple(map(int, row)) for row in table)
