"""Experiments: the pure functions that every verb works on, and loading them from a file."""

import dataclasses
import functools
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from minijaxnet._types import Objective


@dataclass(frozen=True)
class Settings:
    """The settings of a descent: an experiment's defaults, which the flags of the command line override.

    Attributes:
        steps: the most steps to take.
        learning_rate: the optimizer's rate, positive; for ``polyak_sgd`` the largest one.
        batch_size: points per batch; all points if None.
        until_flat: stop before a step whose gradient norm is at most this.
        seed: the seed of the initial weights, the order of minibatches, and dropout.
        optimizer: "gd" is gradient descent; other names are optimizers of optax.
        precision: the dtype of parameters and data.
    """

    steps: int = 1_000
    learning_rate: float = 0.1
    batch_size: int | None = None
    until_flat: float = 0.0
    seed: int = 0
    optimizer: str = "gd"
    precision: Literal["float32", "float64", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Experiment:
    """An objective with its data, its initial params, and further functions.

    Attributes:
        name: part of the name of a run's folder; letters, digits, ``-`` and ``_``.
        init: ``init(key, *, ...) -> params``. Its keyword-only numbers become flags of the command line.
        objective: ``f(params, batch)``, a scalar to minimize; with a key as third argument if it draws random numbers.
        data: ``data(*, ...) -> (train, test)`` or ``(train, validation, test)``, batches ``(x, y)`` or other trees of
            arrays, the batch axis first. If they do not fit into memory, ``train`` may be ``batches(first_step)``,
            as for ``fit``. Its keyword-only numbers become ``--data-...`` flags. If it takes ``process_id`` and
            ``num_processes``, each of several processes loads its own share of the data.
        value_and_gradient: a gradient derived by hand, ``(params, batch) -> (loss, gradient)``, which the descent then
            uses; None for autodiff.
        predict: ``predict(params, x)``, for pictures. For two classes a single output is read as a logit, or as a
            probability if all outputs are from 0 to 1.
        metrics: ``{name: f(params, batch)}``, each a scalar, measured on all data.
        defaults: the settings, unless flags override them.
        optimizer: your own: a transformation of optax, or ``optimizer(learning_rate, *, steps, ...)`` that returns one.
            ``steps``, if it is an argument, is the most steps of the run; its other keyword-only numbers become flags.
        files: further files that the results depend on, such as data that the objective reads; paths are relative to
            the folder of the experiment's file. A run is resumed only if they have not changed.

    Example:
        >>> import jax.numpy as jnp
        >>> bowl = Experiment(
        ...     "bowl",
        ...     init=lambda key, *, start=3.0: jnp.float32(start),
        ...     objective=lambda weight, batch: jnp.mean((weight * batch[0] - batch[1]) ** 2),
        ...     data=lambda: ((jnp.ones(2), jnp.ones(2)), (jnp.ones(1), jnp.ones(1))),
        ...     defaults=Settings(steps=50),
        ... )
        >>> number_options(bowl.init)
        {'start': 3.0}
    """

    name: str
    init: Callable[..., Any]
    objective: Objective
    data: Callable[..., tuple[Any, ...]]
    value_and_gradient: Callable[[Any, Any], tuple[Any, Any]] | None = field(default=None, kw_only=True)
    predict: Callable[[Any, Any], Any] | None = field(default=None, kw_only=True)
    metrics: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict, kw_only=True)
    defaults: Settings = field(default_factory=Settings, kw_only=True)
    optimizer: Any = field(default=None, kw_only=True)
    files: Sequence[str | Path] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        """Check the fields."""
        if not isinstance(self.name, str) or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"Experiment: name: got {self.name!r}; expected letters, digits, '-' and '_'")
        for name in ("init", "objective", "data", "value_and_gradient", "predict"):
            value = getattr(self, name)
            if not callable(value) and not (value is None and name in ("value_and_gradient", "predict")):
                raise TypeError(f"Experiment: {name}: got {type(value).__name__}; expected a function")
        if not isinstance(self.metrics, Mapping):
            raise TypeError(f"Experiment: metrics: got {type(self.metrics).__name__}; expected {{name: function}}")
        for name, metric in self.metrics.items():
            if not callable(metric):
                raise TypeError(f"Experiment: metrics[{name!r}]: got {type(metric).__name__}; expected a function")
        if not isinstance(self.defaults, Settings):
            raise TypeError(f"Experiment: defaults: got {type(self.defaults).__name__}; expected Settings(...)")
        if isinstance(self.files, str) or not all(isinstance(each, str | Path) for each in self.files):
            raise TypeError(f"Experiment: files: got {self.files!r}; expected several paths")
        number_options(self.init)
        number_options(self.data)
        if self.optimizer is not None:
            if not callable(self.optimizer) and not is_transformation(self.optimizer):
                got = type(self.optimizer).__name__
                raise TypeError(
                    f"Experiment: optimizer: got {got}; expected a transformation of optax, or a function of a "
                    "learning rate that returns one (the name of an optimizer goes to defaults=Settings(optimizer=...))"
                )
            optimizer_options(self.optimizer)
            if self.defaults.optimizer == "gd":
                object.__setattr__(self, "defaults", dataclasses.replace(self.defaults, optimizer=OWN))


# The name of an experiment's own optimizer.
OWN = "own"


def is_transformation(optimizer: Any) -> bool:
    """Whether this is a transformation of optax: it has an ``init`` and an ``update``."""
    return all(callable(getattr(optimizer, name, None)) for name in ("init", "update"))


def optimizer_options(optimizer: Any) -> dict[str, int | float]:
    """The keyword-only numbers of an experiment's own optimizer with their defaults, without ``steps``.

    >>> optimizer_options(lambda learning_rate, *, steps, decay=0.1: None)
    {'decay': 0.1}
    """
    if optimizer is None or is_transformation(optimizer):
        return {}
    parameters = inspect.signature(optimizer).parameters
    options = number_options(functools.partial(optimizer, steps=0) if "steps" in parameters else optimizer)
    return {name: value for name, value in options.items() if name != "steps"}


class ExperimentError(ValueError):
    """A file that cannot be loaded as an experiment; the text says why."""


def load_experiment(path: str | Path) -> Experiment:
    """Load the ``experiment`` that a Python file defines.

    The file is run as a module, not as a script, so its ``__main__`` part does not run. Its folder becomes importable.

    Args:
        path: of the file.

    Returns:
        The experiment.

    Raises:
        ExperimentError: there is no such file, it raises an error (the text has the traceback), or it does not define
            ``experiment = Experiment(...)``.

    Example:
        >>> load_experiment("no/such/file.py")
        Traceback (most recent call last):
        minijaxnet.experiment.ExperimentError: no/such/file.py: there is no such file; expected a Python file
    """
    found = getattr(load_module(path), "experiment", None)
    if not isinstance(found, Experiment):
        got = "no experiment" if found is None else f"an experiment that is a {type(found).__name__}"
        raise ExperimentError(f"{path}: got {got}; expected a line `experiment = Experiment(...)`")
    return found


# The arguments of ``data`` with which a process loads only its own share.
_SHARE = ("process_id", "num_processes")


def loads_its_share(experiment: Experiment) -> bool:
    """Whether ``data`` has the arguments ``process_id`` and ``num_processes``."""
    return set(_SHARE) <= inspect.signature(experiment.data).parameters.keys()


def number_options(function: Callable[..., Any]) -> dict[str, int | float]:
    """The keyword-only numbers of a function with their defaults. They become flags.

    Raises:
        TypeError: a keyword-only argument has no default.

    Example:
        >>> number_options(lambda key, *, scale=1.0, name="x": None)
        {'scale': 1.0}
    """
    options: dict[str, int | float] = {}
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without a signature
        return options
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            if parameter.default is inspect.Parameter.empty:
                raise TypeError(
                    f"{parameter.name}: got a keyword-only argument without a default; expected a number as default"
                )
            number = isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool)
            if number and parameter.name not in _SHARE:
                options[parameter.name] = parameter.default
    return options


def module_name(path: str | Path) -> str:
    """The module name of a file that is loaded as an experiment.

    >>> module_name("experiments/digits.py")
    '_experiment_digits'
    """
    return f"_experiment_{Path(path).stem}"


def load_module(path: str | Path) -> ModuleType:
    """Run a Python file as a module.

    Raises:
        ExperimentError: there is no such file, or it raises an error; the text has the traceback.

    Example:
        >>> load_module("no/such/file.py")
        Traceback (most recent call last):
        minijaxnet.experiment.ExperimentError: no/such/file.py: there is no such file; expected a Python file
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise ExperimentError(f"{path}: {what}; expected a Python file")
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExperimentError(f"{path}: got a {path.suffix or 'file without a suffix'}; expected a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.pop(name, None)  # so that it comes before the modules that it imports
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as for a script; it stays, as functions may import from there later
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise ExperimentError(f"{path}: it does not import:\n{own_traceback(error, path)}") from error
    return module


def own_traceback(error: BaseException, path: Path | None = None) -> str:
    """The traceback without the loader's frames: from the given file on, else from the imported module on."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    loaders = (str(Path(__file__).parent), importlib.__file__)
    first = next(
        (i for i, frame in enumerate(frames) if Path(frame.filename).resolve() == path.resolve())
        if path
        else (i for i, frame in enumerate(frames) if not frame.filename.startswith(loaders)),
        len(frames),
    )
    lines = traceback.format_list(frames[first:][-3:]) + traceback.format_exception_only(error)
    return "".join(lines).rstrip()
