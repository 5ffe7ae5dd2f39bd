"""The run folder: what was asked for, where it ran, what happened, on disk as it happens."""

import importlib.metadata
import json
import math
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.pytrees import named_leaves

METRICS = "metrics.jsonl"


def create_run_folder(parent: str | Path, name: str) -> Path:
    """A new folder ``parent/name-YYYYMMDD-HHMMSS`` (UTC) that nobody else has; a number is added if need be.

    Args:
        parent: made if it is not there.
        name: of the experiment.

    Returns:
        Its path.
    """
    stem = Path(parent) / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for attempt in range(1, 1000):
        folder = stem if attempt == 1 else stem.with_name(f"{stem.name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{stem}: got 999 runs of the same second; expected fewer")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all; numbers that JSON lacks (NaN, infinity) become null."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(_plain(content), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def write_params(path: Path, params: Any) -> None:
    """Write parameters as safetensors, each leaf under its name in the tree, such as ``[0]['weights']``."""
    from safetensors.flax import save_file

    temporary = path.with_name(path.name + ".part")
    save_file(named_leaves(params), temporary)
    os.replace(temporary, path)


class Log:
    """The logged rows, kept, and written to ``metrics.jsonl`` as they come: step, loss, gradient norm and metrics.

    Used within a ``with``. Nothing is written without a folder.
    """

    def __init__(self, folder: str | Path | None):
        """Open a new file in the folder."""
        self.rows: list[dict[str, float]] = []
        self._file = None if folder is None else (Path(folder) / METRICS).open("x", encoding="utf-8")

    def append(self, step: int, loss: Any, gradient_norm: Any, measured: dict[str, float]) -> None:
        """Keep a row and write it."""
        self.rows.append({"step": step, "loss": float(loss), "gradient_norm": float(gradient_norm)} | measured)
        if self._file is not None:
            self._file.write(json.dumps(_plain(self.rows[-1])) + "\n")
            self._file.flush()

    def __enter__(self) -> "Log":
        """Append within a ``with``."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def environment() -> dict[str, Any]:
    """What a result depends on beside the code: versions, device, flags.

    >>> sorted(environment())[:3]
    ['devices', 'platform', 'processor_count']
    """
    packages = ("minijaxnet", "jax", "jaxlib", "numpy", "optax", "scikit-learn")
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "platform": platform.platform(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "processor_count": os.cpu_count(),
        "x64": jnp.result_type(float) == jnp.float64,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "python_executable": Path(sys.executable).name,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """JSON's own kinds: arrays as lists or numbers, what is not finite as None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
