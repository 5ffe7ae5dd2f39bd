"""Loading a run: its weights and data without running code, or with its experiment."""

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
from minijaxnet._types import PyTree
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
    """An error: the code or the config of a run has changed since its start."""

    def __init__(self, folder: Path, difference: str):
        """Make the text from the run's folder and a diff."""
        expected = "expected those of its start (minijaxnet resume --force ignores this)"
        super().__init__(f"{folder}: got changed code or a changed config; {expected}\n{difference}")


def load_params(source: str | Path, like: PyTree = None) -> Any:
    """Load the weights of a run, of a checkpoint or of any safetensors file, without running code.

    Args:
        source: a file, or the folder of a run. From a folder the best weights are loaded if there are some, else those
            of the end, else those of the newest checkpoint.
        like: a tree of the same structure, shapes and dtypes; its values are not used.

    Returns:
        A tree like ``like``. Without ``like`` it is the saved nesting of dicts, lists and tuples, with named tuples as
        dicts of their fields. From another program's file it is ``{name: array}``.

    Raises:
        CheckpointError: the file is damaged, or has another tree; a node cannot be rebuilt without ``like``.
        FileNotFoundError: there is no such file, or the folder has no weights.

    Example:
        >>> import tempfile
        >>> from minijaxnet.run.checkpoint import save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/a.safetensors", ({"weights": np.arange(3.0)}, None), step=7)
        ...     print(load_params(f"{folder}/a.safetensors"))
        ({'weights': Array([0., 1., 2.], dtype=float64)}, None)
    """
    path = Path(source)
    path = _weights_in(path) if path.is_dir() else path
    try:
        header, arrays = read_arrays(path)
    except CheckpointError:
        if (plain := _plain_safetensors(path)) is None:
            raise
        return plain if like is None else _matched_by_name(path, plain, like)
    if header.kinds.get("tree") in ("DescentState", "Best"):
        header, arrays = _below(header, arrays, "tree.params")
    if like is None:
        return _nested(path, header.kinds, arrays)
    if difference := differences_of(header, like):
        raise CheckpointError(f"{path}: {difference}")
    return restored(arrays, like)


def _below(header: Header, arrays: Mapping[str, np.ndarray], node: str) -> tuple[Header, dict[str, np.ndarray]]:
    """The header and the arrays of one node of a checkpoint's tree."""

    def part(of: Mapping[str, Any]) -> dict[str, Any]:
        names = [name for name in of if name == node or name.startswith((f"{node}.", f"{node}["))]
        return {f"tree{name.removeprefix(node)}": of[name] for name in names}

    return header._replace(kinds=part(header.kinds), arrays=part(header.arrays)), part(arrays)


def _weights_in(folder: Path) -> Path:
    """The file with the weights in the folder of a run."""
    for name in (BEST, PARAMS):
        if (folder / name).is_file():
            return folder / name
    kept = checkpoints(folder / CHECKPOINTS) if (folder / CHECKPOINTS).is_dir() else []
    if not kept:
        raise FileNotFoundError(f"{folder}: got a folder without weights; expected the folder of a run with some")
    return kept[0][1]


def _nested(path: Path, kinds: Mapping[str, str], values: Mapping[str, np.ndarray]) -> Any:
    """Build a tree from its nodes, by their names."""
    children: dict[str, dict[Any, str]] = {name: {} for name in kinds}
    for name in kinds:
        steps = [*_STEP.finditer(name, len("tree"))]
        if "".join(step[0] for step in steps) != name[len("tree") :]:
            raise CheckpointError(f"{path}: {name}: got a {kinds[name]} whose name cannot be read; expected like=")
        if steps:
            (key, field), parent = steps[-1].groups(), name[: steps[-1].start()]
            if parent not in kinds or parent in values:
                raise CheckpointError(f"{path}: {name}: got a node without a container; expected one in a container")
            children[parent][field or ast.literal_eval(key)] = name
    if "tree" not in kinds:
        raise CheckpointError(f"{path}: got no tree of weights; expected one")

    def build(name: str) -> Any:
        kind, parts = kinds[name], {key: build(child) for key, child in children[name].items()}
        if name in values:
            return on_device(values[name], kind)
        if kind in ("list", "tuple"):
            return (list if kind == "list" else tuple)(parts.values())
        return None if kind == "None" else parts

    return build("tree")


def _plain_safetensors(path: Path) -> dict[str, jax.Array] | None:
    """The arrays of another program's safetensors file; None if it is not such a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with opened(path), safe_open(path, "flax") as file:  # ``opened`` refuses links and pipes
            if "header_sha256" not in (file.metadata() or {}):  # not a damaged checkpoint of ours
                return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError:
        pass
    return None


def _matched_by_name(path: Path, plain: Mapping[str, jax.Array], like: PyTree) -> Any:
    """A tree like ``like``, with each leaf taken by its name."""
    expected = {name: (np.shape(leaf), np.dtype(leaf.dtype)) for name, leaf in named_leaves(like).items()}
    found = {name: (np.shape(leaf), np.dtype(leaf.dtype)) for name, leaf in plain.items()}
    if found != expected:
        name = next(name for name in {**expected, **found} if expected.get(name) != found.get(name))
        raise CheckpointError(f"{path}: {name}: got {found.get(name)}; expected {expected.get(name)}")
    return jax.tree.unflatten(jax.tree.structure(like), [plain[name] for name in expected])


@dataclass(frozen=True)
class Run:
    """A run in a folder. Each attribute is read when it is first used.

    Attributes:
        folder: of the run.
        trust: whether to run the code of a run that another user has started.
    """

    folder: Path
    trust: bool = False

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The settings of the run."""
        return read_config(self.folder)

    @functools.cached_property
    def result(self) -> dict[str, Any]:
        """The result; empty until the run has ended."""
        return read_json(self.folder / RESULT)

    @functools.cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """The logged rows, one array for each name, such as ``rows["step"]``; NaN where a row has no such number."""
        rows = read_rows(self.folder / METRICS)
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}

    @functools.cached_property
    def params(self) -> Any:
        """The weights: see ``load_params``."""
        return load_params(self.folder)

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The experiment, loaded by running its file.

        Raises:
            ValueError: another user has started the run, and ``trust`` is False; or the file is missing.
            OtherCode: the code or the config has changed.
        """
        return load_experiment(own_file(self.folder, self.config, trust=self.trust))

    def predict(self, x: Any) -> Any:
        """The experiment's ``predict`` of some inputs, with the run's weights."""
        if (predict := self.experiment.predict) is None:
            raise ValueError(f"{self.folder}: got an experiment without predict; expected Experiment(..., predict=...)")
        with jax.enable_x64(self.config["flags"].get("precision") == "float64"):
            return predict(self.params, x)

    def __repr__(self) -> str:
        """The folder and the status."""
        return f"Run({str(self.folder)!r}, {self.result.get('status', 'not ended')})"


def load_run(folder: str | Path, *, trust: bool = False) -> Run:
    """Load a run: ``.params``, ``.config``, ``.rows``, ``.result``, ``.experiment`` and ``.predict(x)``.

    The last two run the experiment's file, if this user has started the run with the same code.

    Args:
        folder: of the run.
        trust: whether to run the code of a run that another user has started.

    Returns:
        The run. Its attributes are read when they are first used.

    Raises:
        ValueError: this is not the folder of a run.

    Example:
        >>> load_run("no/such/folder")
        Traceback (most recent call last):
        ValueError: no/such/folder: there is no config.json; expected the folder of a run
    """
    run = Run(Path(folder), trust)
    _ = run.config
    return run


def own_file(folder: Path, config: Mapping[str, Any], *, trust: bool = False, changed: bool = False) -> str:
    """The file of a run's experiment, if its code may be run.

    Args:
        folder: of the run.
        config: of the run.
        trust: whether code may be run that another user has started.
        changed: whether this user's own code may have changed.

    Raises:
        OtherCode: the code or the config has changed.
        ValueError: the file is missing, or another user has started the run.
    """
    places = (str(config.get("file_here")), str(config.get("file")))
    file = next((place for place in places if Path(place).is_file()), None)
    if file is None:
        raise ValueError(f"{folder}: its experiment {config.get('file')} is not there; expected the file where it was")
    if not trust:
        if not is_own(folder, file):
            got = "got a run that was not started by you, on this machine"
            raise ValueError(f"{folder}: {got}; expected a run of yours (--trust or trust=True runs its code, {file})")
        if (difference := changes_before_loading(folder, file)) and not changed:
            raise OtherCode(folder, difference)
    return file
