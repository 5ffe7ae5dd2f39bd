"""``minijaxnet sweep``: an experiment at many seeds, learning rates and numbers of its own, at once."""

import contextlib
import dataclasses
import io
import itertools
import math
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._files import replace_file
from minijaxnet._tables import significant
from minijaxnet._trees import cast_floats
from minijaxnet.batches import minibatches_of
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.execute import failure_recorded
from minijaxnet.cli.flags import PlaceFlags, RunFlags, SweepFlags, place_flags_of
from minijaxnet.cli.optimizers import differentiated, optimizer_of
from minijaxnet.cli.parsing import defaults_of, options_in, parse, split_file
from minijaxnet.cli.placement import agree, described, join, launched, own_mesh
from minijaxnet.cli.request import OpenFolder, Request, new_folder
from minijaxnet.cli.start import digest_of, draws, keys_of, start_of
from minijaxnet.experiment import OWN, load_experiment, number_options, optimizer_options
from minijaxnet.goal import goal_of
from minijaxnet.history import nothing
from minijaxnet.loop import descend, descend_minibatches
from minijaxnet.parallel.processes import all_gather, broadcast, is_first, merged
from minijaxnet.run.blocks import BLOCKS, blocks_below
from minijaxnet.run.folder import RESULT, SWEPT, write_json
from minijaxnet.run.lock import hold
from minijaxnet.run.programs import kept_programs
from minijaxnet.run.signals import heard
from minijaxnet.streams import is_read
from minijaxnet.sweeps import SweepResult, sweep


def main(arguments: Sequence[str]) -> int:
    """Carry out the experiment of a file at all values that the flags give."""
    file, rest = split_file("sweep", arguments)
    together = place_flags_of(rest)
    if file is not None and (code := launched("sweep", arguments, together)) is not None:
        return code
    join(together)
    experiment = None if file is None else load_experiment(file)
    parsed = parse(SweepFlags, "sweep", experiment, file or "FILE", rest, ranges=True)
    assert experiment is not None and file is not None, "without a file only help is shown"
    request = Request("sweep", file, experiment, *parsed)
    return execute_sweep(request, lambda data_sha256: new_folder(request, f"{experiment.name}-sweep", data_sha256))


def execute_sweep(request: Request, open_folder: OpenFolder) -> int:
    """Carry out a sweep in its run folder, but for the blocks that it has already; the exit code."""
    with jax.enable_x64(request.flags.precision == "float64"):
        return _execute(request, open_folder)


def _execute(request: Request, open_folder: OpenFolder) -> int:
    experiment, flags = request.experiment, request.flags
    options = (request.optimizer if flags.optimizer == OWN else {}) | options_in(flags.optimizer_options)
    given = {"learning_rate": flags.learning_rate} | request.init | options
    values = {name: parse_range(name, text) for name, text in given.items()}
    if flags.seeds < 1:
        raise ValueError(f"seeds: got {flags.seeds}; expected at least 1")
    for rate in values["learning_rate"]:
        # Says what is wrong with an optimizer, its options and a rate, which a compiled program cannot.
        extra = {name: values[name][0] for name in options}
        optimizer_of(experiment, flags.optimizer, flags.steps, extra).descent(experiment.objective, rate)
    known = number_options(experiment.init) | optimizer_options(experiment.optimizer)
    whole = {name for name, value in known.items() if isinstance(value, int)}
    values = {name: _whole(name, numbers) if name in whole else numbers for name, numbers in values.items()}
    # Of these each value is a program of its own: they are sizes, and counts that Python looks at.
    each: dict[str, list[Any]] = {name: values[name] for name in options if isinstance(values[name][0], int)}
    swept = {name: values[name] for name in ("learning_rate", *options) if len(values[name]) > 1 and name not in each}
    for name, several in swept.items():  # and numbers that its optimizer looks at, as some schedules of optax do
        rest = {other: values[other][0] for other in ("learning_rate", *options)}

        def traced(number: Any, name: str = name, rest: dict[str, Any] = rest) -> None:
            extra = rest | {name: number}
            rate = extra.pop("learning_rate")
            optimizer_of(experiment, flags.optimizer, flags.steps, extra).descent(experiment.objective, rate)

        try:
            jax.eval_shape(traced, several[0])
        except jax.errors.ConcretizationTypeError:
            each[name] = several
    if flags.batch_size != "all":
        each["batch_size"] = _whole("batch_size", parse_range("batch_size", flags.batch_size))
    fixed = {name: numbers[0] for name, numbers in values.items() if len(numbers) == 1}
    axes: dict[str, Any] = {
        name: np.array(numbers) for name, numbers in values.items() if len(numbers) > 1 and name not in each
    }
    axes["seed"] = np.arange(flags.seeds, dtype=np.uint32)
    first = {name: values[name][0] for name in request.init}
    _, train, held, *_ = start_of(experiment, 0, flags.precision, first, request.data)
    if is_read(train):
        raise ValueError("data: got a function that reads batches; expected arrays, of which all descents see the same")
    for size in each.get("batch_size", ()):
        minibatches_of(train, size)
    programs = [dict(zip(each, chosen, strict=True)) for chosen in itertools.product(*each.values())]

    def run_of(batch_size: int | None = None, **counts: int) -> Callable[..., Any]:
        def run(seed: Any, **swept: Any) -> dict[str, Any]:
            numbers = fixed | counts | swept
            start_key, order_key, draw_key = keys_of(seed)
            params = experiment.init(start_key, **{name: numbers[name] for name in request.init})
            params = cast_floats(params, jnp.dtype(flags.precision))
            extra = {name: numbers[name] for name in options}
            optimizer = optimizer_of(experiment, flags.optimizer, flags.steps, extra)
            descent = optimizer.descent(differentiated(experiment), numbers["learning_rate"])
            key = draw_key if draws(experiment.objective) else None
            state = descent.init(params, key)
            rest = {"steps": flags.steps, "until_flat": flags.until_flat}
            if batch_size is None:
                state, trace = descend(descent, state, train, **rest)
            else:
                state, trace = descend_minibatches(descent, state, train, order_key, batch_size=batch_size, **rest)
            extra = () if key is None else (key,)
            loss, metrics = experiment.objective(state.params, train, *extra), {}
            for of, batch in held.items():
                metrics[f"{of}_loss"] = experiment.objective(state.params, batch, *extra)
                metrics |= {f"{of}_{name}": metric(state.params, batch) for name, metric in experiment.metrics.items()}
            return {"trace": trace, "loss": loss, "metrics": metrics}

        return run

    known = ["loss", *(f"{of}_{name}" for of in held for name in ("loss", *experiment.metrics))]
    if (by := goal_of(flags.by).name) not in known:
        raise ValueError(f"by: got {by!r}; expected one of {', '.join(known)}")
    mesh = own_mesh(flags)
    count = math.prod(len(numbers) for numbers in axes.values()) * len(programs)
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    if is_first():
        heading = f"{experiment.name}: {count:,} descents of {flags.steps:,} steps, {flags.precision} on "
        print(f"{heading}{described(mesh)}{processes}", flush=True)
    data_sha256 = agree(request, digest_of(train, *held.values()))
    found: list[SweepResult] = []
    with contextlib.ExitStack() as opened:
        folder = None
        if is_first():
            folder = opened.enter_context(open_folder(data_sha256))
            opened.enter_context(hold(folder))
            opened.enter_context(failure_recorded(folder))
        folder = Path(broadcast(str(folder)))
        stop = opened.enter_context(heard(raises=True))
        with contextlib.suppress(KeyboardInterrupt), kept_programs(folder, flags.keep_programs):
            for program in programs:
                name = "-".join(f"{name}-{number}" for name, number in program.items()) or "all"
                blocks = blocks_below(folder / BLOCKS / name, keep=folder.is_dir())._replace(mine=_mine)
                rest = {"block": flags.block, "blocks": blocks, "mesh": mesh}
                found.append(sweep(run_of(**program), axes, **rest, on_progress=_on_progress()))
                if stop or (jax.process_count() == 1 and found[-1].interrupted):
                    break
        found = _of_all(found)
        if not found:
            raise KeyboardInterrupt(stop.signum)
        whole = len(found) == len(programs) and not found[-1].interrupted
        result = _together(found, {name: numbers for name, numbers in each.items() if len(numbers) > 1})
        signum = 0 if whole else int(all_gather([stop.signum]).max()) or signal.SIGINT
        return _report(request, folder, result, count, signum) if is_first() else 128 * bool(signum) + signum


def _mine(first: int, size: int) -> bool:
    """Whether this process runs a block: they take turns.

    Raises:
        UsageError: blocks are of another size in another process.
    """
    if first == 0 and len(sizes := set(all_gather([size]).ravel().tolist())) > 1:
        got = " and ".join(map(str, sorted(sizes)))
        raise UsageError(
            f"block: got {got} in the processes, by their memory and cores; expected one for all (--block)"
        )
    return first // size % jax.process_count() == jax.process_index()


def _of_all(found: list[SweepResult]) -> list[SweepResult]:
    """What all processes have found: the only time that they say anything of it to one another."""
    if jax.process_count() == 1 or not (count := int(all_gather([len(found)]).min())):
        return found
    merged_results = []
    for result in found[:count]:
        output, finished = merged(result.output, result.finished)
        merged_results.append(result._replace(output=output, finished=finished))
    return merged_results


def _report(request: Request, folder: Path, result: SweepResult, count: int, signum: int) -> int:
    """Write and print what came out, of so many descents, and which signal ended them, 0 if none did."""
    trace = result.trace
    arrays = {"losses": trace.loss, "gradient_norms": trace.gradient_norm, "steps_taken": trace.steps_taken}
    arrays |= {"status": trace.status, "loss": result.losses, "finished": result.finished} | result.output["metrics"]
    arrays |= {f"axis_{name}": values for name, values in result.axes.items()}
    arrays = {name: _numpys_own(array) for name, array in arrays.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    replace_file(folder / SWEPT, content.getvalue())

    for name in [name for name, values in result.axes.items() if len(values) > 1 and name != "seed"] or ["seed"]:
        print(f"\n{result.table(name)}")
    code, outcome = 0, {"status": "INTERRUPTED" if signum else "DONE", "best": None}
    if np.isfinite(result.losses).any():
        goal, best = goal_of(request.flags.by), result.best(request.flags.by)
        values = {name: float(value) for name, value in best.values.items()}
        metrics = {name: float(leaf[best.place]) for name, leaf in result.metrics.items()}
        outcome |= {"best": values, "by": str(goal), "loss": best.loss, "metrics": metrics}
        where = ", ".join(f"{name} {significant(value)}" for name, value in values.items())
        chosen = {"loss": result.losses, **result.metrics}[goal.name]
        equal = int((chosen == chosen[best.place]).sum()) - 1
        also = f", as {'high' if goal.highest else 'low'} as {equal:,} other{'s' if equal > 1 else ''}" if equal else ""
        found = {"loss": best.loss, **metrics}
        rest = ", ".join(f"{name} {significant(value)}" for name, value in found.items() if name != goal.name)
        print(f"\nbest: {where}: {goal.name} {significant(found[goal.name])}{also}\n({rest})")
        print(f"to run it: {_command(request, best.values)}")
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


def parse_range(name: str, text: str) -> list[float]:
    """The numbers that a flag stands for: one, several with commas, or ``from:to:count``, evenly or by even factors.

    >>> parse_range("rate", "0.1,0.3"), parse_range("rate", "0:1:3"), parse_range("rate", "1:100:3log")
    ([0.1, 0.3], [0.0, 0.5, 1.0], [1.0, 10.0, 100.0])
    """
    try:
        if ":" not in text:
            numbers = [float(part) for part in text.split(",")]
        else:
            first, last, count = text.split(":")
            spaced = np.geomspace if count.endswith("log") else np.linspace
            numbers = spaced(float(first), float(last), int(count.removesuffix("log"))).tolist()
    except ValueError:
        numbers = []
    if not numbers or not np.isfinite(numbers).all():
        raise UsageError(
            f"{name}: got {text!r}; expected a number, several with commas, or from:to:count, such as 1e-3:1:16log"
        )
    return numbers


def _whole(name: str, numbers: Sequence[float]) -> list[int]:
    if broken := [number for number in numbers if number != int(number)]:
        raise UsageError(f"{name}: got {broken[0]:g}; expected whole numbers")
    return [int(number) for number in numbers]


def _together(found: Sequence[SweepResult], each: Mapping[str, Sequence[int]]) -> SweepResult:
    """Sweeps of several programs as one, with their numbers as the first axes; nothing is known of those left out."""
    lengths = tuple(map(len, each.values()))
    none = jax.tree.map(lambda leaf: np.full_like(leaf, nothing(leaf)), found[0].output)
    left_out = math.prod(lengths) - len(found)
    outputs = [*(result.output for result in found), *[none] * left_out]
    finished = [*(result.finished for result in found), *[np.zeros_like(found[0].finished)] * left_out]

    def joined(*leaves: np.ndarray) -> np.ndarray:
        return np.stack(leaves).reshape(lengths + leaves[0].shape)

    axes = {name: np.array(numbers) for name, numbers in each.items()} | found[0].axes
    return SweepResult(axes, jax.tree.map(joined, *outputs), joined(*finished), found[0].block)


def _on_progress() -> Callable[[int, int], None] | None:
    """Says on a terminal how many descents are done; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    return lambda done, count: print(f"\r{done:,} of {count:,}", end="\n" if done == count else "", file=sys.stderr)


def _numpys_own(array: np.ndarray) -> np.ndarray:
    """In a dtype that any NumPy reads: bfloat16 is not one of them."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array
