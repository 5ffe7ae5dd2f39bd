"""Over several devices: does a rule, compiled for arguments that are placed there, return what it returns on one?

A divided batch is summed in parts. The compiler adds up what it divided itself; in ``jax.shard_map`` and the like the
rule's author does, and may forget it, or average where a sum is meant. Such a rule promises the same result on all
devices, of which one usually sees the first: here each device's copy is checked.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from minijaxnet._jaxpr import equations
from minijaxnet.verify.comparison import Comparison
from minijaxnet.verify.compilation import Traced, compile_all, in_short
from minijaxnet.verify.evaluation import Evaluation
from minijaxnet.verify.interpreter import interpret
from minijaxnet.verify.report import Verdict
from minijaxnet.verify.rounding import distance
from minijaxnet.verify.widening import as_real, is_distributed

# Operations whose author writes what each device does.
_BY_DEVICE = frozenset(("shard_map", "custom_partitioning"))


class _Copy(NamedTuple):
    """What one device holds of a result: where in the whole it lies, and the numbers."""

    device: int
    where: tuple[slice, ...]
    values: np.ndarray


class _Fault(NamedTuple):
    """The element that is furthest off, on some device."""

    device: int
    place: tuple[int, ...]
    got: float
    expected: float


def placement(at: Evaluation, compared: Sequence[Comparison], *, good: bool) -> tuple[Verdict, list[str]] | None:
    """The verdict, and hints; None where all arguments are on one device.

    Both rules are run in float64 on arguments placed as they came, and each device's copy of each element is compared
    with autodiff's with the arguments on one device, within the measured rounding.

    Args:
        at: the point.
        compared: the gradients on one device.
        good: whether these are right.
    """
    devices = {device for leaf in at.leaves if is_distributed(leaf) for device in leaf.sharding.device_set}
    if not devices:
        return None
    hand, reference, over = at.compiled.hand, at.compiled.reference, f"over {len(devices)} devices"
    if hand.program is None:
        return Verdict("unchecked", hand.note), []
    if not good and not _BY_DEVICE & {eqn.primitive.name for eqn in equations(hand.program)}:
        return Verdict("unchecked", "the algebra did not pass"), []
    there = [
        jax.device_put(wide, leaf.sharding) if is_distributed(leaf) else wide
        for leaf, wide in zip(at.leaves, at.wide, strict=True)
    ]
    calls = [(hand, there), (reference, there), (reference, at.wide)]
    try:
        programs = compile_all([_lowered(rule, leaves) for rule, leaves in calls])
    except Exception as error:
        return Verdict("unchecked", f"{over} it can't be compiled in float64: {in_short(error)}"), []
    by_hand, by_autodiff, alone = (
        program(rule.consts, leaves) for program, (rule, leaves) in zip(programs, calls, strict=True)
    )
    truths, n, names = list(map(as_real, alone)), at.problem.n_values, at.names
    for whose, results in (("the gradient by hand", by_hand), ("autodiff's gradient", by_autodiff)):
        wrong, hints = "", []
        for i in [*range(n, len(names)), *range(n)]:  # gradients first
            truth, tolerance, copies = truths[i], at.tolerances[i], list(_copies(results[i]))
            if i >= n and results is by_hand:
                truth = np.where(compared[i - n].excused, at.hand[i], truth)
            if (fault := _worst(copies, truth, tolerance)) is None:
                continue
            place = list(fault.place) if fault.place else ""
            values = f"{fault.got:.10g}, with the arguments on one device {fault.expected:.10g}"
            wrong = wrong or f"{over} {whose} is wrong in {names[i]}{place}: on device {fault.device} {values}"
            if how := _how(copies, truth, tolerance):
                hints.append(f"{names[i]}: {how}")
        if wrong:
            return Verdict("fail", wrong), hints
    return Verdict("pass", f"{over} both equal autodiff on one device, in each device's copy of every element"), []


def _lowered(rule: Traced, leaves: Sequence[Any]) -> Any:
    return jax.jit(lambda consts, leaves: interpret(rule.program, consts, leaves)).lower(rule.consts, leaves)


def _copies(result: Any) -> Iterator[_Copy]:
    for shard in result.addressable_shards:
        yield _Copy(shard.device.id, shard.index, as_real(shard.data))


def _worst(copies: Sequence[_Copy], truth: np.ndarray, tolerance: np.ndarray) -> _Fault | None:
    """The element that is furthest beyond its tolerance; where autodiff is not finite on one device, none is."""
    worst, most = None, 1.0
    for device, where, values in copies:
        expected = truth[where]
        excess = distance(values, expected) / np.maximum(tolerance[where], np.finfo(np.float64).tiny)
        excess = np.where(np.isfinite(values), excess, np.inf)
        excess = np.where(np.isfinite(expected), excess, 0.0)
        if excess.size and excess.max() > most:
            most = excess.max()
            k = np.unravel_index(np.argmax(excess), excess.shape)
            starts = [part.indices(length)[0] for part, length in zip(where, truth.shape, strict=True)]
            place = tuple(int(start + step) for start, step in zip(starts, k, strict=True))
            worst = _Fault(device, place, float(values[k]), float(expected[k]))
    return worst


def _how(copies: Sequence[_Copy], truth: np.ndarray, tolerance: np.ndarray) -> str:
    """What was done with the devices' parts, where each has a copy of the whole; "" if that is not to be seen."""
    count, parts = len(copies), [copy.values for copy in copies]
    if any(part.shape != truth.shape or not np.isfinite(part).all() for part in parts):
        return ""
    numbers = [k for k in range(2, count + 1) if count % k == 0]

    def equal(got: np.ndarray, expected: np.ndarray) -> bool:
        return bool((distance(got, expected) <= count * tolerance).all())

    mean = np.sum(parts, axis=0) / count
    if not all(equal(part, parts[0]) for part in parts):
        if equal(mean, truth):
            return "each device has its own part, and their mean is right: a pmean was forgotten"
        if summed := [k for k in numbers if equal(k * mean, truth)]:
            return f"each device has its own part, and the sum over {summed[0]} devices is right: a psum was forgotten"
        return "the devices' copies differ"
    for k in numbers:
        if equal(parts[0], k * truth):
            return f"{k} times what it should be: summed over {k} devices (psum) where a mean is meant (pmean)?"
        if equal(k * parts[0], truth):
            return f"1/{k} of what it should be: a mean over {k} devices (pmean) where a sum is meant (psum)?"
    return ""
