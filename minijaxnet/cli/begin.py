"""Where an experiment begins: its data, its first parameters and its keys."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._files import read_json
from minijaxnet._trees import cast_floats
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import EACH_START, RunFlags, SweepFlags
from minijaxnet.cli.parsing import defaults_of
from minijaxnet.data import check_batch, numbers
from minijaxnet.experiment import Experiment, load_experiment, loads_its_share
from minijaxnet.load import own_file
from minijaxnet.run.blocks import BLOCKS
from minijaxnet.run.folder import (
    CONFIG,
    RESULT,
    create_run_folder,
    plain,
    write_beginning,
)
from minijaxnet.run.log import METRICS, read_rows
from minijaxnet.streams import first_batch_of, is_read


class Asked(NamedTuple):
    """What ``run`` or ``sweep`` was asked for.

    Attributes:
        verb: which of them.
        file: of the experiment.
        experiment: as the file defines it.
        flags: the verb's settings.
        init: the numbers for the experiment's ``init``; texts, ranges, for a sweep.
        data: the numbers for its ``data``.
        optimizer: those of its own optimizer, or of one of optax; texts, ranges, for a sweep.
        changed: which flags are others than when it was started, that its rows are to show.
    """

    verb: str
    file: str
    experiment: Experiment
    flags: Any
    init: dict[str, Any]
    data: dict[str, Any]
    optimizer: dict[str, Any]
    changed: tuple[str, ...] = ()


# Makes or finds a run folder, given the SHA-256 of the data, once all that can be checked without it has been.
OpenFolder = Callable[[str], contextlib.AbstractContextManager[Path]]


@contextlib.contextmanager
def new_folder(asked: Asked, name: str, data_sha256: str) -> Iterator[Path]:
    """A new run folder, which goes again if what runs in it fails before there is anything to keep."""
    folder = create_run_folder(asked.flags.runs, name)
    try:
        defaults = defaults_of(type(asked.flags), asked.experiment, ranges=asked.verb == "sweep")
        told = {"data_sha256": data_sha256, "defaults": defaults}
        config = {"file": asked.file} | _settings(asked) | told
        write_beginning(folder, config, asked.file, asked.experiment.files)
        yield folder
    except BaseException:
        if not worth_keeping(folder):
            shutil.rmtree(folder)
        raise


def _settings(asked: Asked) -> dict[str, Any]:
    """What tells a run from others, of what was asked for."""
    return {
        "verb": asked.verb,
        "file_here": str(Path(asked.file).resolve()),
        "experiment": asked.experiment.name,
        "flags": {name: value for name, value in dataclasses.asdict(asked.flags).items() if name not in EACH_START},
        "init": asked.init,
        "data": asked.data,
        "optimizer": asked.optimizer,
    }


def latest_like(asked: Asked) -> str | None:
    """The folder of the latest run that was asked for the same; None if there is none."""
    settings = plain(_settings(asked))
    configs = Path(asked.flags.runs).glob(f"{asked.experiment.name}-*/{CONFIG}")
    like = [path for path in configs if (config := read_json(path)) | settings == config]
    return str(max(like, key=lambda path: path.stat().st_mtime_ns).parent) if like else None


def asked_again(folder: Path, config: dict[str, Any], *, trust: bool = False, changed: bool = False) -> Asked:
    """What a run was asked for, by its config, with the experiment as its file now has it.

    The file is carried out only if it is the user's own: the same code as the run was started with, by this user.

    Args:
        folder: of the run.
        config: as it stands there.
        trust: as for ``own_file``, like ``changed``.
        changed: whether the code may have changed.

    Raises:
        ValueError: what ``own_file`` raises, or the config is of no run.
    """
    file = own_file(folder, config, trust=trust, changed=changed)
    experiment = load_experiment(file)
    try:
        flags = (SweepFlags if config["verb"] == "sweep" else RunFlags)(**config["flags"])
    except TypeError as error:
        raise UsageError(f"{folder / CONFIG}: got {error}; expected the settings of a run") from None
    return Asked(
        config["verb"],
        file,
        experiment,
        flags,
        config["init"],
        config["data"],
        config.get("optimizer", {}),
        changed_flags(config),
    )


def changed_flags(config: dict[str, Any]) -> tuple[str, ...]:
    """The flags by which a run has gone on otherwise than it was started, that its rows show."""
    names = {name for change in config.get("changes", ()) for name in change}
    return tuple(name for name in ("learning_rate", "batch_size") if name in names)


def worth_keeping(folder: Path) -> bool:
    """Whether a run has come to anything yet."""
    return bool(read_rows(folder / METRICS)) or (folder / BLOCKS).exists() or (folder / RESULT).exists()


def digest_of(*batches: Any) -> str:
    """A SHA-256 over the dtypes, shapes and data of some batches."""
    total = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(batches)):
        total.update(f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


class Beginning(NamedTuple):
    """What an experiment begins with.

    Attributes:
        params: the first parameters.
        train: the training batch; or what reads batches, as ``fit`` takes it.
        held: by their names the batches that it does not learn from: "test", and "validation" where there is one.
        order_key: for the order of minibatches.
        draw_key: for an objective that draws numbers; None for any other.
    """

    params: Any
    train: Any
    held: dict[str, Any]
    order_key: jax.Array
    draw_key: jax.Array | None


def begin(
    experiment: Experiment,
    seed: int,
    precision: str,
    init_options: dict,
    data_options: dict,
    compiler_options: dict | None = None,
) -> Beginning:
    """Draw an experiment's parameters and get its data, floats in the given precision.

    With ``compiler_options`` the parameters may be others in their last places.

    Raises:
        ValueError: a seed out of range, data that cannot be used.
        TypeError: data that is not two batches.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed}; expected a number from 0 to {2**32 - 1}")
    data = batches_of(experiment, precision, data_options)
    start_key, order_key, draw_key = keys_of(seed)
    init = jax.jit(functools.partial(experiment.init, **init_options), compiler_options=compiler_options)
    params = cast_floats(init(start_key), precision)
    return Beginning(params, data.pop("train"), data, order_key, draw_key if draws(experiment.objective) else None)


def keys_of(seed: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a seed stands for: the key of the start, of the order of minibatches, and of what an objective draws."""
    start_key, order_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    return start_key, order_key, draw_key


def first_batch(data: Any, batch_size: int | None) -> Any:
    """What a step sees: the first points, or all; the first batch where batches are read."""
    data = first_batch_of(data)
    return data if batch_size is None else jax.tree.map(lambda leaf: leaf[:batch_size], data)


def batches_of(experiment: Experiment, precision: str, options: dict) -> dict[str, Any]:
    """The experiment's batches by their names, checked, with floats in the given precision."""
    return {name: _cast(batch, jnp.dtype(precision)) for name, batch in _data(experiment, options).items()}


def _data(experiment: Experiment, options: dict) -> dict[str, Any]:
    """The experiment's batches by their names, checked."""
    if loads_its_share(experiment):
        options = options | {"process_id": jax.process_index(), "num_processes": jax.process_count()}
    batches = experiment.data(**options)
    names = {2: ("train", "test"), 3: ("train", "validation", "test")}
    if not isinstance(batches, tuple | list) or len(batches) not in names:
        size = f" of {len(batches)}" if isinstance(batches, tuple | list) else ""
        expected = "batches (train, test), or (train, validation, test)"
        raise TypeError(f"data: it returns a {type(batches).__name__}{size}; expected {expected}")
    found = dict(zip(names[len(batches)], batches, strict=True))
    read = {"train": found.pop("train")} if is_read(found["train"]) else {}
    for name, batch in found.items():
        check_batch(batch, name)
    return read | {name: numbers(batch, name) for name, batch in found.items()}


def _cast(batch: Any, dtype: Any) -> Any:
    """A batch with its floats in a dtype; of what reads batches the same, read so."""
    if not is_read(batch):
        return cast_floats(batch, dtype)
    return lambda first_step: (cast_floats(numbers(each, "batch"), dtype) for each in batch(first_step))


def draws(objective: Callable[..., Any]) -> bool:
    """Whether an objective takes a key as its third argument."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(objective).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters) >= 3
