"""The time of a step over several numbers of devices, measured in one run."""

import jax

from minijaxnet._tables import significant, text_table
from minijaxnet._types import PyTree
from minijaxnet.bench import Interval, compare_steps, step_cost
from minijaxnet.bench.intervals import median_interval
from minijaxnet.cli.start import Start
from minijaxnet.descent import Descent
from minijaxnet.parallel import on_mesh, replicate, shard_batch
from minijaxnet.parallel.mesh import data_mesh

_COLUMNS = ("devices", "us a step", "95 % interval", "times one", "95 % interval", "collectives", "their bytes")


def checked_devices(text: str, batch: PyTree) -> list[int]:
    """The numbers of devices in a text, in order and with one among them; empty if it is only one.

    Raises:
        ValueError: words, 0, more devices than there are, points that they do not divide, with the nearest numbers
            that they do.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"devices: got {text!r}; expected whole numbers from 1 on, with commas, such as 1,2,4")
    numbers = sorted({1, *map(int, words)})
    for number in numbers:
        shard_batch(data_mesh(number), batch)
    return numbers if len(numbers) > 1 else []


def compare_devices(
    descent: Descent, numbers: list[int], start: Start, batch: PyTree, *, seconds: float, same_result: bool
) -> str:
    """A table of the step's time over numbers of devices, each against one device.

    Args:
        descent: on one device.
        numbers: of devices, from ``checked_devices``.
        start: where each starts.
        batch: divided over the devices of each.
        seconds: how long to measure, for all numbers.
        same_result: whether to refuse steps that compute another result than on one device.
    """
    arms = {str(number): _placed(descent, number) for number in numbers}
    options = {"seconds": seconds, "key": start.draw_key, "same_result": same_result}
    comparison = compare_steps(arms, start.params, batch, baseline="1", **options)
    rows = []
    for name, arm in comparison.arms.items():
        ratio, state = comparison.ratios.get(name), arms[name].init(start.params, start.draw_key)
        cost = step_cost(arms[name].step, state, batch)
        collectives = (f"{cost.communication.number:,}", f"{cost.communication.total_bytes:,}")
        times_one = ("1", "") if ratio is None else _with_interval(ratio)
        rows.append((name, *_with_interval(median_interval(1e6 * arm.samples_s)), *times_one, *collectives))
    lines = [text_table(_COLUMNS, rows), *comparison.conclusions()]
    if jax.devices()[0].platform == "cpu":
        lines.append("these devices share the cores of one CPU: no speedup can be expected, and none is claimed")
    return "\n".join(lines)


def _with_interval(interval: Interval) -> tuple[str, str]:
    return significant(interval.median), f"{significant(interval.low)} to {significant(interval.high)}"


def _placed(descent: Descent, number: int) -> Descent:
    """The same descent, which places its state and divides its batch over so many devices."""
    if number == 1:
        return descent
    mesh = data_mesh(number)
    return Descent(lambda params, key=None: replicate(mesh, descent.init(params, key)), on_mesh(mesh, descent).step)
