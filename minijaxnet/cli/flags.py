"""The flags of each verb that takes an experiment; numbers of the experiment's own functions are added to them."""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

from minijaxnet.experiment import Settings


@dataclasses.dataclass(frozen=True)
class PlaceFlags:
    """The devices and processes of a run."""

    devices: int | Literal["all"] | None = None
    """Divide each batch over this many devices, or "all". A CPU is divided into as many, which share its cores."""
    processes: int = 1
    """Start this many processes on this machine, and divide the devices over them."""
    coordinator: str | None = None
    """HOST:PORT of process 0, if you start the processes yourself; "auto" on a cluster that JAX knows."""
    num_processes: int | None = None
    """The number of processes, if you start them yourself."""
    process_id: int | None = None
    """The number of this process, from 0, if you start them yourself."""
    heartbeat_seconds: int = 30
    """A process that sends nothing for so many seconds counts as dead."""
    deterministic: bool = False
    """On a GPU: only kernels that return the same bits each time, which may take longer."""


# Given at each start, and not among the settings of a run.
EACH_START = ("coordinator", "num_processes", "process_id", "heartbeat_seconds", "resume_latest")


@dataclasses.dataclass(frozen=True)
class RunFlags(PlaceFlags, Settings):
    """The flags of ``minijaxnet run``, beside the experiment's own numbers."""

    runs: str = "runs"
    """The folder in which the run's own folder is made."""
    resume_latest: bool = False
    """Resume the latest run of the same settings, or start one if there is none: for jobs that restart."""
    optimizer_options: str = ""
    """Numbers of the optimizer, such as "momentum=0.9 nesterov=1"."""
    bench_seconds: float = 1.0
    """Seconds to time the step against autodiff's and optax's; 0 leaves it out."""
    log_every: int | None = None
    """Steps between two lines of metrics; about 20 lines if left out."""
    keep_best: str | None = None
    """Keep the parameters where this metric is best, such as test_accuracy, "highest NAME" or "lowest NAME"."""
    patience: int | None = None
    """Stop when that metric has not become better for so many lines of metrics."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; by time if left out."""
    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints."""
    diagnose: bool = False
    """If the descent diverges, name the first operation whose result was not finite."""
    keep_programs: Literal["auto", "yes", "no"] = "auto"
    """Keep compiled programs in the run's folder, so that resume gives the same bits; auto: on a GPU."""
    unchecked: bool = False
    """Descend even if the gradient by hand, or a derivative rule within the loss, is wrong."""
    report: bool = True
    """Write a page with the results, report.html, into the run's folder."""


@dataclasses.dataclass(frozen=True)
class CheckFlags:
    """The flags of ``minijaxnet check``, beside the experiment's own numbers."""

    args: str | None = None
    """The arguments of package.module:function, as Python code; np, jnp and jax are imported."""
    quick: bool = False
    """Check at the start only, in one dtype."""
    precision: Literal["float32", "bfloat16", "float64"] | None = None
    """Check in this dtype only; if left out in all three, or with --quick in the experiment's own."""
    seed: int = 0
    """The seed of the start, and of the check's random directions."""
    order: int = 1
    """2 checks the derivative of the gradient, too."""
    steps: int = 100
    """The number of steps that lead to the trained point."""
    runs: str = "runs"
    """The folder in which the check's own folder is made."""


@dataclasses.dataclass(frozen=True)
class BenchFlags:
    """The flags of ``minijaxnet bench``, beside the experiment's own numbers; other settings are the experiment's."""

    seed: int = 0
    """The seed of the start, and of dropout."""
    seconds: float = 5.0
    """Seconds to compare the steps; timing one step alone takes half as long again."""
    batch_size: int | None = None
    """Points in a batch; the experiment's own number if left out."""
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    """The dtype of parameters and data."""
    save: str | None = None
    """Write the comparison, with every sample, to this file."""
    since: str | None = None
    """Compare with an earlier result that --save wrote."""
    devices: str = "1"
    """Numbers of devices, such as 1,2,4, over which the batch is divided in turn."""
    deterministic: bool = False
    """On a GPU: only kernels that return the same bits each time; compare with and without."""


@dataclasses.dataclass(frozen=True)
class SweepFlags(PlaceFlags):
    """The flags of ``minijaxnet sweep``; RANGE is a number, several with commas, or ``from:to:count[log]``."""

    learning_rate: str = "0.1"
    """A RANGE: a number, several with commas (0.1,0.3), or from:to:count (0:1:5); by even factors 1e-3:1:16log."""
    seeds: int = 1
    """The number of seeds, from 0 on: of the start, the order of minibatches and dropout."""
    batch_size: str = "all"
    """A RANGE, or all points; each size is a program of its own."""
    optimizer_options: str = ""
    """A RANGE for each number of optax's optimizer, such as "momentum=0:0.9:4"."""
    by: str = "loss"
    """Choose the best by this number: loss (of training), test_accuracy, "highest NAME" or "lowest NAME"."""
    steps: int = 1_000
    """The most steps of a descent."""
    until_flat: float = 0.0
    """A descent stops before a step whose gradient norm is at most this."""
    unchecked: bool = False
    """Descend though the gradient by hand, or a derivative rule within the loss, is wrong."""
    optimizer: str = "gd"
    """"gd" is gradient descent; any other name is an optimizer of optax."""
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    """The dtype of parameters and data."""
    block: int | None = None
    """The number of descents that run at once on a device; as many as fit into memory if left out."""
    devices: int | Literal["all"] | None = None
    """Divide the descents over this many devices, or "all"; a CPU is divided into as many."""
    keep_programs: Literal["auto", "yes", "no"] = "auto"
    """Keep compiled programs in the sweep's folder, so that resume gives the same bits; auto: on a GPU."""
    runs: str = "runs"
    """The folder in which the sweep's own folder is made."""


def place_flags_of(arguments: Sequence[str]) -> PlaceFlags:
    """The flags for devices and processes, which count before an experiment is loaded: it may ask JAX for a device.

    Of several numbers of devices it is the largest. What is not a number is left to the parser, which refuses it.

    >>> place_flags_of(["--seed", "3", "--devices", "1,4,2"]).devices, place_flags_of(["--process_id=2"]).process_id
    (4, 2)
    """
    words = [word for argument in arguments for word in argument.split("=", 1)]
    texts = {name[2:].replace("-", "_"): text for name, text in itertools.pairwise(words) if name.startswith("--")}
    flags: dict[str, Any] = {"deterministic": "--deterministic" in words}
    for name in ("devices", "processes", "num_processes", "process_id", "heartbeat_seconds"):
        with contextlib.suppress(KeyError, ValueError):
            flags[name] = max(map(int, texts[name].split(",")))
    if texts.get("devices") == "all":
        flags["devices"] = "all"
    return PlaceFlags(coordinator=texts.get("coordinator"), **flags)
