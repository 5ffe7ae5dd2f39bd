"""The results of a sweep: its arrays, its tables, the best descent and the command that runs it."""

import dataclasses
import io
import math
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
from minijaxnet.cli.parsing import parse_options
from minijaxnet.cli.request import Request, defaults_of
from minijaxnet.cli.sweep_plan import Plan
from minijaxnet.experiment import OWN
from minijaxnet.goal import goal_of
from minijaxnet.history import missing_value
from minijaxnet.report.record import command_of
from minijaxnet.run.blocks import BLOCKS
from minijaxnet.run.folder import RESULT, SWEPT, write_json
from minijaxnet.sweeps import SweepResult


def report(request: Request, plan: Plan, folder: Path, result: SweepResult, signum: int) -> int:
    """Write and print the result; the exit code. ``signum`` is the signal that ended the sweep, 0 if none did."""
    _write_arrays(folder / SWEPT, result)
    for name in [name for name, values in result.axes.items() if len(values) > 1 and name != "seed"] or ["seed"]:
        print(f"\n{result.table(name)}")
    code, outcome = 0, {"status": "INTERRUPTED" if signum else "DONE", "best": None}
    if np.isfinite(result.losses).any():
        outcome |= _print_best(request, plan, result)
    else:
        print("\nno descent ended at a finite loss")
        code = 1
    write_json(folder / RESULT, outcome)
    if signum:
        done, count = int(result.finished.sum()), result.finished.size
        print(f"stopped by {signal.Signals(signum).name} after {done:,} of {count:,} descents")
        print(f"minijaxnet resume {folder} goes on")
        code = 128 + signum
    else:
        shutil.rmtree(folder / BLOCKS, ignore_errors=True)  # all of it is in sweep.npz
    print(f"written to {folder}")
    return code


def _write_arrays(path: Path, result: SweepResult) -> None:
    """Write all results, for NumPy."""
    trace = result.trace
    arrays = {"losses": trace.loss, "gradient_norms": trace.gradient_norm, "steps_taken": trace.steps_taken}
    arrays |= {"status": trace.status, "loss": result.losses, "finished": result.finished} | result.output["metrics"]
    arrays |= {f"axis_{name}": values for name, values in result.axes.items()}
    arrays = {name: _as_numpy(array) for name, array in arrays.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    replace_file(path, content.getvalue())


def _print_best(request: Request, plan: Plan, result: SweepResult) -> dict[str, Any]:
    """Print the best descent, and the command that runs it; the same for ``result.json``."""
    goal, best = goal_of(request.flags.by, "by"), result.best(request.flags.by)
    values = {name: float(value) for name, value in best.values.items()}
    metrics = {name: float(leaf[best.place]) for name, leaf in result.metrics.items()}
    where = ", ".join(f"{name} {significant(value)}" for name, value in values.items())
    numbers = {"loss": best.loss, **metrics}
    rest = ", ".join(f"{name} {significant(value)}" for name, value in numbers.items() if name != goal.name)
    print(f"\nbest: {where}: {goal.name} {significant(numbers[goal.name])}\n({rest})")
    print(f"to run it: {_command(request, plan, best.values)}")
    return {"best": values, "by": str(goal), "loss": best.loss, "metrics": metrics}


def _command(request: Request, plan: Plan, values: Mapping[str, Any]) -> str:
    """The command that runs one descent of a sweep by itself."""
    numbers = {name: some[0] for name, some in (plan.values | plan.program_axes).items()}
    numbers |= {name: np.asarray(value).item() for name, value in values.items()}
    defaults = defaults_of(RunFlags, request.experiment)
    names = defaults["flags"].keys() - {field.name for field in dataclasses.fields(PlaceFlags)} | {"deterministic"}
    flags = {name: value for name, value in dataclasses.asdict(request.flags).items() if name in names}
    flags |= {name: numbers.get(name) for name in ("learning_rate", "batch_size", "seed")}
    options = parse_options(request.flags.optimizer_options)
    flags["optimizer_options"] = " ".join(f"{name}={numbers[name]}" for name in options)
    config = {"verb": "run", "file": request.file, "flags": flags, "data": request.data, "defaults": defaults}
    own = request.optimizer if request.flags.optimizer == OWN else {}
    for part, texts in (("init", request.init), ("optimizer", own)):
        config[part] = {name: numbers[name] for name in texts}
    return command_of(config)


def joined_result(results: Sequence[SweepResult], axes: Mapping[str, Sequence[int]]) -> SweepResult:
    """The results of several programs as one, with their numbers as the first axes; those left out are NaN."""
    lengths = tuple(map(len, axes.values()))
    none = jax.tree.map(lambda leaf: np.full_like(leaf, missing_value(leaf)), results[0].output)
    left_out = math.prod(lengths) - len(results)
    outputs = [*(result.output for result in results), *[none] * left_out]
    finished = [*(result.finished for result in results), *[np.zeros_like(results[0].finished)] * left_out]

    def joined(*leaves: np.ndarray) -> np.ndarray:
        return np.stack(leaves).reshape(lengths + leaves[0].shape)

    all_axes = {name: np.array(numbers) for name, numbers in axes.items()} | results[0].axes
    return SweepResult(all_axes, jax.tree.map(joined, *outputs), joined(*finished), results[0].block)


def _as_numpy(array: np.ndarray) -> np.ndarray:
    """The same in a dtype that any NumPy reads, which bfloat16 is not."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array
