"""The flags of the verbs: settings, and the experiment's own numbers, with its defaults."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

from minijaxnet.experiment import Settings


@dataclasses.dataclass(frozen=True)
class PlaceFlags:
    """Where a run is carried out."""

    devices: int | Literal["all"] | None = None
    """Over how many devices each batch is divided, or "all"; if left out one, or all that several processes have. A CPU
    is divided into as many, which share its cores."""
    processes: int = 1
    """Start so many processes on this machine, with the devices divided over them."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where processes are started one by one; "auto" where JAX knows the cluster."""
    num_processes: int | None = None
    """How many processes are started one by one."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    heartbeat_seconds: int = 30
    """For how long a process may not be heard from before it is taken for dead."""
    deterministic: bool = False
    """On a GPU only kernels that return the same bits each time: sums into one place, as in the gradient of an
    embedding, then take longer, and how much ``bench --deterministic`` against ``bench`` tells."""


# What one start is told and the next one anew: no settings of the run.
EACH_START = ("coordinator", "num_processes", "process_id", "heartbeat_seconds", "resume_latest")


@dataclasses.dataclass(frozen=True)
class RunFlags(PlaceFlags, Settings):
    """What ``minijaxnet run`` can be told, beside the experiment's own numbers."""

    runs: str = "runs"
    """The folder in which the run's own folder is made."""
    resume_latest: bool = False
    """Go on with the latest run of these settings, if there is one: the same command starts and restarts a job."""
    optimizer_options: str = ""
    """The numbers of the optimizer, of optax or one's own, such as "momentum=0.9 nesterov=1"."""
    bench_seconds: float = 1.0
    """How long to time the step against optax's; 0 leaves it out."""
    log_every: int | None = None
    """Steps from one line of metrics to the next; about 20 lines if left out."""
    keep_best: str | None = None
    """Keep the weights where this number is best: test_loss, test_accuracy or another that is measured; "highest NAME"
    or "lowest NAME" where the name leaves it open."""
    patience: int | None = None
    """Stop when that number has not become better for so many lines of metrics."""
    checkpoint_every: int | None = None
    """Steps from one checkpoint to the next; by time if left out."""
    checkpoint_seconds: float = 60.0
    """Seconds from one checkpoint to the next."""
    diagnose: bool = False
    """Name the first operation that was not finite, if it diverges."""
    keep_programs: Literal["auto", "yes", "no"] = "auto"
    """Keep what XLA compiles in the run's folder, so that resume comes to the same bits: auto for on an accelerator."""
    unchecked: bool = False
    """Descend though the gradient by hand, or a derivative rule within the loss, is wrong."""
    report: bool = True
    """Leave a page in the run's folder, report.html, that tells what came out."""


@dataclasses.dataclass(frozen=True)
class CheckFlags:
    """What ``minijaxnet check`` can be told, beside the experiment's own numbers."""

    args: str | None = None
    """The arguments of package.module:function, in Python, with np, jnp and jax at hand."""
    quick: bool = False
    """At the start alone, in one dtype."""
    precision: Literal["float32", "bfloat16", "float64"] | None = None
    """In this dtype alone; in all three if left out, or, if quick, in the experiment's own."""
    seed: int = 0
    """Of the start, and of whatever the check draws."""
    order: int = 1
    """2 to check the gradient's own derivative, too."""
    steps: int = 100
    """How many steps of descent lead to the trained point."""
    runs: str = "runs"
    """The folder in which the check's own folder is made."""


@dataclasses.dataclass(frozen=True)
class BenchFlags:
    """What ``minijaxnet bench`` can be told, beside the experiment's own numbers; the rest are its defaults."""

    seed: int = 0
    """Of the start, and of whatever is drawn."""
    seconds: float = 5.0
    """How long to compare steps; half as long goes to the step alone."""
    batch_size: int | None = None
    """How many points a step sees; as many as the experiment says if left out."""
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    """The dtype of parameters and data."""
    save: str | None = None
    """Where to write the comparison, with every sample."""
    since: str | None = None
    """An earlier result to hold this one against."""
    devices: str = "1"
    """Numbers of devices, such as 1,2,4, over which the batch is divided in turn; a CPU is divided into as many."""
    deterministic: bool = False
    """On a GPU only kernels that return the same bits each time: without it and with it shows what they cost."""
    peak: bool = False
    """Tell only the most bytes that a step takes on its device, as observed; a CPU does not tell."""


@dataclasses.dataclass(frozen=True)
class SweepFlags(PlaceFlags):
    """What ``minijaxnet sweep`` can be told; RANGE is a number, several with commas, or ``from:to:count[log]``."""

    learning_rate: str = "0.1"
    """A RANGE: a number, several with commas (0.1,0.3), or from:to:count (0:1:5, evenly), with log by even factors
    (1e-3:1:16log)."""
    seeds: int = 1
    """How many seeds, from 0 on: of the start, of the order of minibatches and of dropout."""
    batch_size: str = "all"
    """A RANGE, or all points; each size is a program of its own."""
    optimizer_options: str = ""
    """A RANGE for each number of optax's optimizer, such as "momentum=0:0.9:4"."""
    by: str = "loss"
    """Choose the best by this number: loss, which is the training loss, validation_loss, test_accuracy or another;
    "highest NAME" or "lowest NAME" where the name leaves it open."""
    steps: int = 1_000
    """How many steps at most."""
    until_flat: float = 0.0
    """Each descent stops before a step whose gradient norm is at most this."""
    optimizer: str = "gd"
    """"gd" is gradient descent; any other name is an optimizer of optax."""
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    """The dtype of parameters and data."""
    block: int | None = None
    """How many descents run at once on a device; as many as fit into memory if left out."""
    devices: int | Literal["all"] | None = None
    """Over how many devices the descents are divided, or all there are; a CPU is divided into as many."""
    keep_programs: Literal["auto", "yes", "no"] = "auto"
    """Keep what XLA compiles in the sweep's folder, for resume to come to the same bits: auto for on an accelerator."""
    runs: str = "runs"
    """The folder in which the sweep's own folder is made."""


def place_flags_of(arguments: Sequence[str]) -> PlaceFlags:
    """Where a run is to be carried out: to be known before an experiment is loaded, which may ask JAX for a device.

    What is no number is left to the parser, which says so.

    >>> place_flags_of(["--seed", "3", "--devices", "4"]).devices, place_flags_of(["--process_id=2"]).process_id
    (4, 2)
    """
    words = [word for argument in arguments for word in argument.split("=", 1)]
    pairs = {name.replace("_", "-"): text for name, text in itertools.pairwise(words) if name.startswith("--")}
    texts = {field.name: pairs.get(f"--{field.name.replace('_', '-')}") for field in dataclasses.fields(PlaceFlags)}
    said: dict[str, Any] = {name: int(text) for name, text in texts.items() if text and text.lstrip("-").isdecimal()}
    said |= {name: texts[name] for name in ("coordinator",) if texts[name] is not None}
    said |= {"devices": "all"} if texts["devices"] == "all" else {}
    said |= {"deterministic": True} if "--deterministic" in words else {}
    return PlaceFlags(**said)
