"""How a step's time grows with the devices that its batch is divided over: all numbers of them in turn, in one run."""

from collections.abc import Sequence
from typing import Any

import jax

from minijaxnet._tables import significant, text_table
from minijaxnet.bench import compare_steps, step_cost
from minijaxnet.bench.intervals import median_interval
from minijaxnet.descent import Descent
from minijaxnet.parallel import on_mesh, replicate, shard_batch
from minijaxnet.parallel.mesh import data_mesh

_COLUMNS = ("devices", "us a step", "95 % interval", "times one", "95 % interval", "collectives", "their bytes")


def most_devices(arguments: Sequence[str]) -> int:
    """The largest number that ``--devices`` asks for; to be known before an experiment is loaded, which may ask JAX.

    >>> most_devices(["--seed", "3", "--devices", "1,4,2"]), most_devices(["--devices=2"]), most_devices([])
    (4, 2, 1)
    """
    words = [word for argument in arguments for word in argument.split("=", 1)]
    numbers = numbers_of_devices(words[words.index("--devices") + 1]) if "--devices" in words[:-1] else None
    return max(numbers or [1])  # what is no number is told later


def numbers_of_devices(text: str) -> list[int] | None:
    """Whole numbers with commas between them; None if they are none.

    >>> numbers_of_devices("1, 2,4"), numbers_of_devices("two")
    ([1, 2, 4], None)
    """
    words = [word.strip() for word in text.split(",")]
    return [int(word) for word in words] if all(map(str.isdecimal, words)) else None


def checked_devices(asked: str, batch: Any) -> list[int]:
    """The numbers of devices that were asked for, in order and one among them; none if it is only that.

    Raises:
        ValueError: words, 0, more devices than there are, points that they do not divide, with the nearest numbers
            that they do.
    """
    numbers = numbers_of_devices(asked)
    if numbers is None or 0 in numbers:
        raise ValueError(f"devices: got {asked!r}; expected whole numbers from 1 on, with commas, such as 1,2,4")
    for number in numbers:
        shard_batch(data_mesh(number), batch)
    return sorted({1, *numbers}) if max(numbers) > 1 else []


def compare_devices(
    descent: Descent, numbers: list[int], params: Any, batch: Any, key: Any, *, seconds: float, same_result: bool
) -> str:
    """A table of the step's time over numbers of devices, each against one, and what is to be known of it.

    Args:
        descent: on one device.
        numbers: of devices, from ``checked_devices``.
        params: where each starts.
        batch: divided over the devices of each.
        key: for an objective that takes one.
        seconds: how long to measure, all numbers together.
        same_result: whether to refuse steps that compute another thing than on one device.
    """
    arms = {str(number): _placed(descent, number) for number in numbers}
    found = compare_steps(arms, params, batch, baseline="1", seconds=seconds, key=key, same_result=same_result)
    rows = []
    for name, arm in found.arms.items():
        taken = median_interval(1e6 * arm.samples_s)
        ratio = found.ratios.get(name)
        times = (
            ("1", "")
            if ratio is None
            else (significant(ratio.median), f"{significant(ratio.low)} to {significant(ratio.high)}")
        )
        said = step_cost(arms[name].step, arms[name].init(params, key), batch).communication
        each = (significant(taken.median), f"{significant(taken.low)} to {significant(taken.high)}")
        rows.append((name, *each, *times, f"{said.number:,}", f"{said.total_bytes:,}"))
    lines = [text_table(_COLUMNS, rows), *found.conclusions()]
    if jax.devices()[0].platform == "cpu":
        lines.append("these devices share the cores of one CPU: no speedup is to be expected here, and none is claimed")
    return "\n".join(lines)


def _placed(descent: Descent, number: int) -> Descent:
    """The same descent, which places its state and divides its batch over so many devices."""
    if number == 1:
        return descent
    mesh = data_mesh(number)
    return Descent(lambda params, key=None: replicate(mesh, descent.init(params, key)), on_mesh(mesh, descent).step)
