"""The run folder of a request: made for a new one, found for an earlier one, and read back as a request."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minijaxnet._files import plain, read_json
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import EACH_START, RunFlags, SweepFlags
from minijaxnet.cli.request import Request, defaults_of
from minijaxnet.experiment import load_experiment
from minijaxnet.load import own_file
from minijaxnet.parallel.processes import is_lost
from minijaxnet.run.blocks import BLOCKS
from minijaxnet.run.checkpoint_format import CheckpointError
from minijaxnet.run.folder import CONFIG, RESULT, create_run_folder, result_state, write_beginning, write_json
from minijaxnet.run.log import METRICS, read_rows

# Makes or finds a run folder, given the SHA-256 of the data, once all that can be checked without it has been.
OpenFolder = Callable[[str], contextlib.AbstractContextManager[Path]]


@contextlib.contextmanager
def new_folder(request: Request, data_sha256: str) -> Iterator[Path]:
    """A new run folder, which is removed if what runs in it fails before there is anything to keep."""
    name = request.experiment.name
    folder = create_run_folder(request.flags.runs, name if request.verb == "run" else f"{name}-{request.verb}")
    try:
        config = {"file": request.file} | _settings(request)
        config |= {"data_sha256": data_sha256, "defaults": defaults_of(type(request.flags), request.experiment)}
        write_beginning(folder, config, request.file, request.experiment.files)
        yield folder
    except BaseException:
        if not _has_results(folder):
            shutil.rmtree(folder)
        raise


def _settings(request: Request) -> dict[str, Any]:
    """The settings by which a request differs from others."""
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
        ValueError: what ``own_file`` raises, or the config is not that of a run.
    """
    file = own_file(folder, config, trust=trust, changed=changed)
    experiment = load_experiment(file)
    try:
        flags = (SweepFlags if config["verb"] == "sweep" else RunFlags)(**config["flags"])
    except TypeError as error:
        raise UsageError(f"{folder / CONFIG}: got {error}; expected the settings of a run") from None
    numbers = (config["init"], config["data"], config.get("optimizer", {}))
    return Request(config["verb"], file, experiment, flags, *numbers, changed_flags(config))


def changed_flags(config: dict[str, Any]) -> tuple[str, ...]:
    """The flags that were changed when the run was resumed, and that its rows show."""
    names = {name for change in config.get("changes", ()) for name in change}
    return tuple(name for name in ("learning_rate", "batch_size") if name in names)


@contextlib.contextmanager
def failure_recorded(folder: Path) -> Iterator[None]:
    """Have the result say how a descent failed, unless it was done before or can go on from a checkpoint."""
    try:
        yield
    except Exception as error:
        can_go_on = isinstance(error, CheckpointError) or is_lost(error)
        if not can_go_on and _has_results(folder) and result_state(folder) != "done":
            with contextlib.suppress(OSError):  # on a full disk the first error is the one to show
                write_json(folder / RESULT, {"status": "FAILED", "error": f"{type(error).__name__}: {error}"})
        raise


def _has_results(folder: Path) -> bool:
    return bool(read_rows(folder / METRICS)) or (folder / BLOCKS).exists() or (folder / RESULT).exists()
