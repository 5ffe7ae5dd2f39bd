"""What came out of a sweep: its arrays, its tables, the best descent and the command that runs it."""

import contextlib
import dataclasses
import io
import math
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minijaxnet._files import replace_file
from minijaxnet._tables import significant
from minijaxnet.cli.flags import PlaceFlags, RunFlags
from minijaxnet.cli.parsing import defaults_of, options_in
from minijaxnet.cli.request import Request
from minijaxnet.experiment import OWN
from minijaxnet.goal import goal_of
from minijaxnet.history import missing_value
from minijaxnet.run.blocks import BLOCKS
from minijaxnet.run.folder import RESULT, SWEPT, write_json
from minijaxnet.sweeps import SweepResult


def report(request: Request, folder: Path, result: SweepResult, count: int, signum: int) -> int:
    """Write and print what came out, of so many descents, and which signal ended them, 0 if none did."""
    _write_arrays(folder / SWEPT, result)
    for name in [name for name, values in result.axes.items() if len(values) > 1 and name != "seed"] or ["seed"]:
        print(f"\n{result.table(name)}")
    code, outcome = 0, {"status": "INTERRUPTED" if signum else "DONE", "best": None}
    if np.isfinite(result.losses).any():
        outcome |= _tell_best(request, result)
    else:
        print("\nno descent ended at a finite loss")
        code = 1
    write_json(folder / RESULT, outcome)
    if signum:
        done = int(result.finished.sum())
        print(f"stopped by {signal.Signals(signum).name} after {done:,} of {count:,} descents")
        print(f"minijaxnet resume {folder} goes on")
        code = 128 + signum
    else:
        shutil.rmtree(folder / BLOCKS, ignore_errors=True)  # all of it is in sweep.npz
    print(f"written to {folder}")
    return code


def _write_arrays(path: Path, result: SweepResult) -> None:
    """Write all that was found, for NumPy."""
    trace = result.trace
    arrays = {"losses": trace.loss, "gradient_norms": trace.gradient_norm, "steps_taken": trace.steps_taken}
    arrays |= {"status": trace.status, "loss": result.losses, "finished": result.finished} | result.output["metrics"]
    arrays |= {f"axis_{name}": values for name, values in result.axes.items()}
    arrays = {name: _numpys_own(array) for name, array in arrays.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    replace_file(path, content.getvalue())


def _tell_best(request: Request, result: SweepResult) -> dict[str, Any]:
    """Print the best descent, and the command that runs it; the same for the result."""
    goal, best = goal_of(request.flags.by), result.best(request.flags.by)
    values = {name: float(value) for name, value in best.values.items()}
    metrics = {name: float(leaf[best.place]) for name, leaf in result.metrics.items()}
    where = ", ".join(f"{name} {significant(value)}" for name, value in values.items())
    chosen = {"loss": result.losses, **result.metrics}[goal.name]
    equal = int((chosen == chosen[best.place]).sum()) - 1
    also = f", as {'high' if goal.highest else 'low'} as {equal:,} other{'s' if equal > 1 else ''}" if equal else ""
    numbers = {"loss": best.loss, **metrics}
    rest = ", ".join(f"{name} {significant(value)}" for name, value in numbers.items() if name != goal.name)
    print(f"\nbest: {where}: {goal.name} {significant(numbers[goal.name])}{also}\n({rest})")
    print(f"to run it: {_command(request, best.values)}")
    return {"best": values, "by": str(goal), "loss": best.loss, "metrics": metrics}


def _command(request: Request, values: Mapping[str, Any]) -> str:
    """What runs one descent of a sweep by itself."""
    defaults = defaults_of(RunFlags, request.experiment)
    where = {field.name for field in dataclasses.fields(PlaceFlags)} - {"deterministic"}
    known = defaults["flags"].keys() - where
    flags = {name: value for name, value in dataclasses.asdict(request.flags).items() if name in known}
    flags |= {"batch_size": None if flags["batch_size"] == "all" else flags["batch_size"]}
    own = request.init | (request.optimizer if request.flags.optimizer == OWN else {})
    options = options_in(request.flags.optimizer_options)
    chosen = {name: _shortest(values.get(name, value)) for name, value in {**flags, **own, **options}.items()}
    chosen["seed"] = _shortest(values.get("seed", 0))
    chosen["optimizer_options"] = " ".join(f"{name}={chosen.pop(name)}" for name in options)
    usual = {**defaults["flags"], **defaults["init"], **defaults["optimizer"]}
    words = [
        (f"--{name.replace('_', '-')}", text) for name, text in chosen.items() if text != _shortest(usual.get(name))
    ]
    words += [(f"--data-{name}", str(value)) for name, value in request.data.items() if value != defaults["data"][name]]
    return shlex.join(["minijaxnet", "run", request.file, *(word for pair in words for word in pair)])


def _shortest(value: Any) -> str:
    """A number or a text in as few digits as bring it back."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, float | np.floating):
        return repr(int(value)) if value == int(value) else str(np.float64(str(value)))
    return str(value)


def joined_result(found: Sequence[SweepResult], each: Mapping[str, Sequence[int]]) -> SweepResult:
    """Sweeps of several programs as one, with their numbers as the first axes; nothing is known of those left out."""
    lengths = tuple(map(len, each.values()))
    none = jax.tree.map(lambda leaf: np.full_like(leaf, missing_value(leaf)), found[0].output)
    left_out = math.prod(lengths) - len(found)
    outputs = [*(result.output for result in found), *[none] * left_out]
    finished = [*(result.finished for result in found), *[np.zeros_like(found[0].finished)] * left_out]

    def joined(*leaves: np.ndarray) -> np.ndarray:
        return np.stack(leaves).reshape(lengths + leaves[0].shape)

    axes = {name: np.array(numbers) for name, numbers in each.items()} | found[0].axes
    return SweepResult(axes, jax.tree.map(joined, *outputs), joined(*finished), found[0].block)


def _numpys_own(array: np.ndarray) -> np.ndarray:
    """In a dtype that any NumPy reads: bfloat16 is not one of them."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array
