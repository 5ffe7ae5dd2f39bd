"""What is known of a run: what its folder tells, and what it learnt from."""

from pathlib import Path
from typing import Any, NamedTuple

from minijaxnet._files import read_json
from minijaxnet.experiment import Experiment
from minijaxnet.run.folder import COMPARISON, ENVIRONMENT, RESULT, read_config, result_state, run_state
from minijaxnet.run.log import METRICS, read_rows


class Known(NamedTuple):
    """What is known of a run beside its folder.

    Attributes:
        experiment: that was run.
        params: where it ended, or where it is.
        train: the training batch.
        test: the test batch.
        key: for an objective that draws numbers; None for any other.
    """

    experiment: Experiment
    params: Any
    train: Any
    test: Any
    key: Any = None


class Told(NamedTuple):
    """What the folder of a run tells.

    Attributes:
        folder: of the run.
        state: running, done, interrupted, diverged or failed.
        config: what was asked for.
        environment: where it ran.
        result: what came out; empty while it runs.
        timing: what it cost.
        comparison: of its step with others, samples included; empty where there is none.
        rows: what was logged.
    """

    folder: Path
    state: str
    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    timing: dict[str, Any]
    comparison: dict[str, Any]
    rows: list[dict[str, Any]]


def told_by(folder: Path, *, ended: bool = False) -> Told:
    """Read the folder of a run, as far as it is whole.

    Args:
        folder: of the run.
        ended: whether whoever asks holds the folder, at the end of the run.

    Raises:
        ValueError: it is none of a run.
    """
    names = (ENVIRONMENT, RESULT, "timing.json", COMPARISON)
    environment, result, timing, comparison = (read_json(folder / name) for name in names)
    rows = read_rows(folder / METRICS)
    return Told(
        folder,
        result_state(folder) if ended else run_state(folder),
        read_config(folder),
        environment,
        result,
        timing,
        comparison,
        rows,
    )
