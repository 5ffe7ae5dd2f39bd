"""What limits a step on this machine: its arithmetic, its memory, the launch of its kernels, or the call from Python?

A step cannot be faster than the machine's best rate of arithmetic allows, than its bytes can be moved, than its kernels
can be launched, or than a call that does nothing.
"""

import math
from typing import NamedTuple

from minijaxnet._tables import percent, significant, text_table
from minijaxnet.bench.cost import StepCost
from minijaxnet.bench.roofline import Roofline


class Limits(NamedTuple):
    """Lower bounds of a step's time, and which of them is the largest; print it.

    Attributes:
        step_s: seconds that it took.
        dispatch_s: seconds of an empty call; 0 for a step inside a compiled loop.
        bandwidth_s: seconds to move its least bytes.
        compute_s: seconds of its matrix products at the measured peak.
        binds: "dispatch", "bandwidth", "compute" or "launches": the largest of them.
        attained: ``compute_s / step_s``, the share of the measured peak that was reached.
        intensity: matrix FLOPs for each of the bytes that must be moved.
        ridge: the intensity at which moving takes as long as computing; NaN without matrix products.
        notes: those of the step's cost.
        launches_s: seconds to launch its kernels; 0 on a CPU.
    """

    step_s: float
    dispatch_s: float
    bandwidth_s: float
    compute_s: float
    binds: str
    attained: float
    intensity: float
    ridge: float
    notes: tuple[str, ...] = ()
    launches_s: float = 0.0

    @property
    def bound_s(self) -> float:
        """The largest of them: seconds that such a step needs at least on this machine."""
        return max(self.dispatch_s, self.bandwidth_s, self.compute_s, self.launches_s)

    def __str__(self) -> str:
        """A table of the bounds, and what follows from them."""
        bounds = {"dispatch": self.dispatch_s, "bandwidth": self.bandwidth_s, "compute": self.compute_s}
        bounds |= {"launches": self.launches_s} if self.launches_s else {}
        rows = [("the step", significant(1e6 * self.step_s), "")]
        rows += [(name, significant(1e6 * bound), percent(bound / self.step_s)) for name, bound in bounds.items()]
        times = self.step_s / self.bound_s if self.bound_s else math.inf
        lines = [
            text_table(("at least", "us", "of the step"), rows),
            f"nearest limit: {self.binds}, the step takes {significant(times, 3)} times as long",
        ]
        if self.compute_s:
            lines += [
                f"matrix products: {percent(self.attained)} of the measured peak",
                f"{significant(self.intensity)} matrix FLOPs a byte; the ridge is at {significant(self.ridge)}",
            ]
        if times < 1:
            lines.append(
                "faster than the bound: the machine was slower while that was measured, or bytes stayed in a cache"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def limits(cost: StepCost, step_s: float, roofline: Roofline, *, called: bool = False) -> Limits:
    """The lower bounds of a step's time, and which of them is the largest.

    ::

        dispatch     an empty call, if the step is called from Python
        bandwidth    least bytes / the rate at which so many bytes are moved
        compute      the sum over dtypes of matrix FLOPs / peak FLOP/s
        launches     kernels * the time of an empty one

    The bandwidth is that of a cache where so few bytes fit into one. It is a bound only for a step that moves its bytes
    each time: a loop that is one native function may keep the smallest networks in registers. It was measured with as
    many bytes read as written; a step that mostly reads may move them somewhat faster. Elementwise operations are left
    out, so a step with few matrix products can be far from all bounds.

    Args:
        cost: from ``step_cost``, of one device.
        step_s: the step's time, in seconds.
        roofline: from ``measure_roofline``, with each dtype of the step's matrix products.
        called: whether each step is a call from Python; otherwise it is inside a compiled loop.

    Returns:
        The bounds, in seconds.

    Raises:
        ValueError: ``step_s`` is not positive; a cost of several devices; a dtype without a measured peak.

    Example:
        >>> cost = StepCost({"float32": 2_000_000}, {}, 8_000)
        >>> print(limits(cost, 50e-6, Roofline("cpu", {"float32": 1e11}, {1000: 1e9}, 5e-6)))
        at least   us  of the step
        --------------------------
        the step   50
        dispatch    0        0.0 %
        bandwidth   8       16.0 %
        compute    20       40.0 %
        nearest limit: compute, the step takes 2.5 times as long
        matrix products: 40.0 % of the measured peak
        250 matrix FLOPs a byte; the ridge is at 100

    Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
        architectures", 2009.
    """
    if not 0 < step_s < math.inf:
        raise ValueError(f"step_s: got {step_s}; expected a positive number of seconds")
    if cost.devices != 1:
        raise ValueError(f"cost: got that of {cost.devices} devices; expected one device, as in the roofline")
    if missing := [dtype for dtype in cost.matrix_flops if dtype not in roofline.peaks]:
        raise ValueError(
            f"roofline: got the peaks of {', '.join(roofline.peaks) or 'nothing'}; "
            f"expected {', '.join(missing)} too, from measure_roofline(dtypes=...)"
        )
    matrix_flops, rate = sum(cost.matrix_flops.values()), roofline.bandwidth(cost.least_bytes)
    compute_s = sum(flops / roofline.peaks[dtype] for dtype, flops in cost.matrix_flops.items())
    bounds = {
        "dispatch": called * roofline.dispatch_s,
        "bandwidth": cost.least_bytes / rate,
        "compute": compute_s,
        "launches": (cost.launches or 0) * roofline.launch_s,
    }
    return Limits(
        step_s=step_s,
        binds=max(bounds, key=lambda name: bounds[name]),
        attained=compute_s / step_s,
        intensity=matrix_flops / cost.least_bytes if cost.least_bytes else math.inf,
        ridge=matrix_flops / compute_s / rate if compute_s else math.nan,
        notes=cost.notes,
        **{f"{name}_s": bound for name, bound in bounds.items()},
    )
