"""What the command line was asked for, and the run folder in which that is written down."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minijaxnet._files import plain, read_json
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import EACH_START, RunFlags, SweepFlags
from minijaxnet.cli.parsing import defaults_of
from minijaxnet.experiment import Experiment, load_experiment
from minijaxnet.load import own_file
from minijaxnet.run.blocks import BLOCKS
from minijaxnet.run.folder import CONFIG, RESULT, create_run_folder, write_beginning
from minijaxnet.run.log import METRICS, read_rows


class Request(NamedTuple):
    """What ``run`` or ``sweep`` is to do.

    Attributes:
        verb: which of them.
        file: of the experiment.
        experiment: as the file defines it.
        flags: the verb's settings.
        init: the numbers for the experiment's ``init``; texts, ranges, for a sweep.
        data: the numbers for its ``data``.
        optimizer: those of its own optimizer, or of one of optax; texts, ranges, for a sweep.
        changed: which flags have changed since it was started; its rows show them.
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
def new_folder(request: Request, name: str, data_sha256: str) -> Iterator[Path]:
    """A new run folder, which goes again if what runs in it fails before there is anything to keep."""
    folder = create_run_folder(request.flags.runs, name)
    try:
        defaults = defaults_of(type(request.flags), request.experiment, ranges=request.verb == "sweep")
        config = {"file": request.file} | _settings(request)
        config |= {"data_sha256": data_sha256, "defaults": defaults}
        write_beginning(folder, config, request.file, request.experiment.files)
        yield folder
    except BaseException:
        if not worth_keeping(folder):
            shutil.rmtree(folder)
        raise


def _settings(request: Request) -> dict[str, Any]:
    """What tells a request from others."""
    return {
        "verb": request.verb,
        "file_here": str(Path(request.file).resolve()),
        "experiment": request.experiment.name,
        "flags": {name: value for name, value in dataclasses.asdict(request.flags).items() if name not in EACH_START},
        "init": request.init,
        "data": request.data,
        "optimizer": request.optimizer,
    }


def latest_run_like(request: Request) -> str | None:
    """The folder of the latest run of the same request; None if there is none."""
    settings = plain(_settings(request))
    configs = Path(request.flags.runs).glob(f"{request.experiment.name}-*/{CONFIG}")
    like = [path for path in configs if (config := read_json(path)) | settings == config]
    return str(max(like, key=lambda path: path.stat().st_mtime_ns).parent) if like else None


def request_of_run(folder: Path, config: dict[str, Any], *, trust: bool = False, changed: bool = False) -> Request:
    """The request of a run, by its config, with the experiment as its file now has it.

    The file is run only if it is the user's own: the same code as the run was started with, by this user.

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
    return Request(
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
