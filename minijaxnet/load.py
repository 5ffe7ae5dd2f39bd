"""A run and its weights, back in Python: by data alone, or with the experiment that it came from."""

import ast
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minijaxnet._files import read_json
from minijaxnet._trees import named_leaves
from minijaxnet.experiment import Experiment, load_experiment
from minijaxnet.run.checkpoint import differences_of, on_device, read_arrays, restored
from minijaxnet.run.checkpoint_folder import checkpoints
from minijaxnet.run.checkpoint_format import CheckpointError, Header, opened
from minijaxnet.run.folder import BEST, PARAMS, RESULT, changes_before_loading, is_own, read_config
from minijaxnet.run.keeper import CHECKPOINTS
from minijaxnet.run.log import METRICS, read_rows

# A key, an index or a field in the name of a node.
_STEP = re.compile(r"""\[('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+)\]|\.([^\W\d]\w*)""")


class OtherCode(ValueError):
    """The code or the config of a run has changed since it was started."""

    def __init__(self, folder: Path, difference: str):
        """Say so, with a diff."""
        expected = "expected the same (minijaxnet resume --force goes on all the same)"
        got = "got other code or another config than it was started with"
        super().__init__(f"{folder}: {got}; {expected}\n{difference}")


def load_params(source: str | Path, like: Any = None) -> Any:
    """The weights of a run, of a checkpoint or of any safetensors file; runs no code.

    Args:
        source: the folder of a run: the best weights that it kept, or else where it ended or has come to; or a file.
        like: a tree of the same structure, shapes and dtypes, whose values are not looked at.

    Returns:
        A tree like ``like``; without it the nested dicts, lists and tuples that it was, named tuples as dicts of their
        fields. Of another program's file it is ``{name: array}``.

    Raises:
        CheckpointError: a file that is damaged or of another tree; nodes that only a template can make again.
        FileNotFoundError: no such file, or a folder in which no weights are.

    Example:
        >>> import tempfile
        >>> from minijaxnet.run.checkpoint import save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/a.safetensors", ({"weights": np.arange(3.0)}, None), step=7)
        ...     load_params(f"{folder}/a.safetensors")
        ({'weights': Array([0., 1., 2.], dtype=float64)}, None)
    """
    path = Path(source)
    path = _weights_in(path) if path.is_dir() else path
    try:
        header, arrays = read_arrays(path)
    except CheckpointError:
        if (plain := _of_another_program(path)) is None:
            raise
        return plain if like is None else _by_names(path, plain, like)
    if header.kinds.get("tree") in ("DescentState", "Best"):
        header, arrays = _below(header, arrays, "tree.params")
    if like is None:
        return _nested(path, header.kinds, arrays)
    if difference := differences_of(header, like):
        raise CheckpointError(f"{path}: {difference}")
    return restored(arrays, like)


def _below(header: Header, arrays: Mapping[str, np.ndarray], node: str) -> tuple[Header, dict[str, np.ndarray]]:
    """A node of a checkpoint's tree, as a checkpoint of its own."""

    def part(of: Mapping[str, Any]) -> dict[str, Any]:
        its = [name for name in of if name == node or name.startswith((f"{node}.", f"{node}["))]
        return {f"tree{name.removeprefix(node)}": of[name] for name in its}

    return header._replace(kinds=part(header.kinds), arrays=part(header.arrays)), part(arrays)


def _weights_in(folder: Path) -> Path:
    """The file in a run's folder that has its weights."""
    for name in (BEST, PARAMS):
        if (folder / name).is_file():
            return folder / name
    kept = checkpoints(folder / CHECKPOINTS) if (folder / CHECKPOINTS).is_dir() else []
    if not kept:
        raise FileNotFoundError(f"{folder}: there are no weights here; expected the folder of a run that has some")
    return kept[0][1]


def _nested(path: Path, kinds: Mapping[str, str], values: Mapping[str, np.ndarray]) -> Any:
    """The tree of some nodes by their names."""
    children: dict[str, dict[Any, str]] = {name: {} for name in kinds}
    for name in kinds:
        steps = [*_STEP.finditer(name, len("tree"))]
        if "".join(step[0] for step in steps) != name[len("tree") :]:
            raise CheckpointError(f"{path}: {name}: got a {kinds[name]} whose name cannot be read; expected like=")
        if steps:
            (key, field), parent = steps[-1].groups(), name[: steps[-1].start()]
            if parent not in kinds or parent in values:
                raise CheckpointError(f"{path}: {name}: got a node of nothing; expected one of a container")
            children[parent][field or ast.literal_eval(key)] = name
    if "tree" not in kinds:
        raise CheckpointError(f"{path}: got no tree of weights; expected one")

    def made(name: str) -> Any:
        kind, parts = kinds[name], {key: made(child) for key, child in children[name].items()}
        if name in values:
            return on_device(values[name], kind)
        if kind in ("list", "tuple"):
            return (list if kind == "list" else tuple)(parts.values())
        return None if kind == "None" else parts

    return made("tree")


def _of_another_program(path: Path) -> dict[str, jax.Array] | None:
    """The arrays of a safetensors file that is none of ours; None if it is none at all."""
    from safetensors import SafetensorError, safe_open

    try:
        with opened(path), safe_open(path, "flax") as file:  # which refuses links and pipes
            if "header_sha256" not in (file.metadata() or {}):  # one of ours that is damaged stays so
                return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError:
        pass
    return None


def _by_names(path: Path, plain: Mapping[str, jax.Array], like: Any) -> Any:
    """A tree like another, each leaf by its name there."""
    wanted = {name: (np.shape(leaf), np.dtype(leaf.dtype)) for name, leaf in named_leaves(like).items()}
    found = {name: (np.shape(leaf), np.dtype(leaf.dtype)) for name, leaf in plain.items()}
    if found != wanted:
        name = next(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
        raise CheckpointError(f"{path}: {name}: got {found.get(name)}; expected {wanted.get(name)}")
    return jax.tree.unflatten(jax.tree.structure(like), [plain[name] for name in wanted])


@dataclass(frozen=True)
class Run:
    """A run, by its folder; nothing is read before it is asked for.

    Attributes:
        folder: of the run.
        trust: whether to run the code of a run that this user has not started.
    """

    folder: Path
    trust: bool = False

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """What it was asked for."""
        return read_config(self.folder)

    @functools.cached_property
    def result(self) -> dict[str, Any]:
        """What came out; empty while it runs."""
        return read_json(self.folder / RESULT)

    @functools.cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """What was logged, an array a name, such as ``rows["step"]``; NaN where a row lacks it."""
        rows = read_rows(self.folder / METRICS)
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}

    @functools.cached_property
    def params(self) -> Any:
        """The weights: see ``load_params``."""
        return load_params(self.folder)

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The experiment that its file defines; the file is run for that.

        Raises:
            ValueError: this user has not started the run, and ``trust`` is not given; or the file is not there.
            OtherCode: the file has changed since.
        """
        return load_experiment(own_file(self.folder, self.config, trust=self.trust))

    def predict(self, x: Any) -> Any:
        """What the experiment's ``predict`` makes of some points, with the run's weights."""
        if (predict := self.experiment.predict) is None:
            raise ValueError(f"{self.folder}: its experiment has no predict; expected Experiment(..., predict=...)")
        with jax.enable_x64(self.config["flags"].get("precision") == "float64"):
            return predict(self.params, x)

    def __repr__(self) -> str:
        """The folder, and how it ended."""
        return f"Run({str(self.folder)!r}, {self.result.get('status', 'not ended')})"


def load_run(folder: str | Path, *, trust: bool = False) -> Run:
    """A run back in Python: ``.params``, ``.config``, ``.rows``, ``.result``, ``.experiment`` and ``.predict(x)``.

    The last two run the experiment's file, if this user has started the run with the same code.

    Args:
        folder: of the run.
        trust: whether to run the code of a run that this user has not started.

    Returns:
        The run. Nothing more of its folder is read before an attribute needs it.

    Raises:
        ValueError: the folder is none of a run.

    Example:
        >>> load_run("no/such/folder")
        Traceback (most recent call last):
        ValueError: no/such/folder: there is no config.json; expected the folder of a run
    """
    run = Run(Path(folder), trust)
    _ = run.config
    return run


def own_file(folder: Path, config: Mapping[str, Any], *, trust: bool = False, changed: bool = False) -> str:
    """The file of a run's experiment, if its code may be run: by this user, unchanged, or trusted.

    Args:
        folder: of the run.
        config: as it stands there.
        trust: whether to run the code of somebody else.
        changed: whether the user's own may have changed.

    Raises:
        OtherCode: it has changed.
        ValueError: the file is not there, or it is not the user's own.
    """
    places = (str(config.get("file_here")), str(config.get("file")))
    file = next((place for place in places if Path(place).is_file()), None)
    if file is None:
        raise ValueError(f"{folder}: its experiment {config.get('file')} is not there; expected it where it was")
    if not trust:
        if not is_own(folder, file):
            got = "got a run that was not started by you, on this machine"
            raise ValueError(
                f"{folder}: {got}; expected a run of yours (--trust, trust=True, runs its code, {file}, all the same)"
            )
        if (difference := changes_before_loading(folder, file)) and not changed:
            raise OtherCode(folder, difference)
    return file
