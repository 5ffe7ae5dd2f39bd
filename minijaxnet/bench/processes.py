"""A comparison in processes of its own: where memory lies, and what the compiler makes of a step, differs in each.

Steps are exported as StableHLO, which no code of the user's is needed for; each process compiles them anew.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.bench.rounds import Samples, block, take_rounds
from minijaxnet.pytrees import is_keys

_PATIENCE_S = 600.0  # for starting, compiling and the rounds beyond the seconds that were asked for


def measure_elsewhere(
    programs: Mapping[str, Callable[..., Any]],
    states: Mapping[str, Any],
    batch: Any,
    *,
    baseline: str,
    seconds: float,
    processes: int,
) -> list[Samples]:
    """Rounds of the same arms in several processes, one after the other.

    Args:
        programs: ``{name: repeat(state, batch, steps)}``, as ``fused`` makes them.
        states: ``{name: the state it starts from}``.
        batch: what each step looks at.
        baseline: the arm that enters twice.
        seconds: for all of them together, compilation not counted.
        processes: how many.

    Raises:
        ImportError: flatbuffers, in which JAX writes an exported program, is not installed.
        ValueError: a step for several devices; ``seconds`` too short for the rounds an interval needs.
        RuntimeError: a process failed; its last words are in the text.
    """
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(programs):
            _export(Path(folder), i, name, programs[name], states[name], batch)
        order = {"names": list(programs), "baseline": baseline, "seconds": seconds / processes}
        Path(folder, "order.json").write_text(json.dumps(order), encoding="utf-8")
        return [_run_one(Path(folder), seconds, processes) for _ in range(processes)]


def _export(folder: Path, i: int, name: str, program: Callable[..., Any], state: Any, batch: Any) -> None:
    leaves, tree = jax.tree.flatten((state, batch))
    keys = [jax.random.key_impl(leaf) if is_keys(leaf) else None for leaf in leaves]

    def of_leaves(steps: Any, *leaves: Any) -> list[Any]:
        pairs = zip(leaves, keys, strict=True)
        wrapped = [leaf if key is None else jax.random.wrap_key_data(leaf, impl=key) for leaf, key in pairs]
        return jax.tree.leaves(program(*jax.tree.unflatten(tree, wrapped), steps))

    arrays = [jax.random.key_data(leaf) if is_keys(leaf) else leaf for leaf in leaves]
    exported = jax.export.export(jax.jit(of_leaves))(np.int32(1), *arrays)
    if exported.nr_devices != 1:
        raise ValueError(f"arms[{name!r}]: got a step for {exported.nr_devices} devices; expected one, or processes=1")
    try:
        Path(folder, f"{i}.program").write_bytes(exported.serialize())
    except ImportError:
        raise ImportError('processes: flatbuffers is not installed: pip install "minijaxnet[bench]"') from None
    # As bytes: NumPy's own files do not know every dtype of JAX, and the program knows which they are.
    np.savez(Path(folder, f"{i}.npz"), *[np.frombuffer(np.asarray(leaf).tobytes(), np.uint8) for leaf in arrays])


def _run_one(folder: Path, seconds: float, processes: int) -> Samples:
    call = [sys.executable, "-m", "minijaxnet.bench.processes", str(folder)]
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_ENABLE_X64": "1" if jnp.result_type(float) == jnp.float64 else "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # this process may hold most of the device's memory
    }
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=seconds + _PATIENCE_S)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"processes: one of them failed: {words[-1]}")
    found = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    if "refused" in found:
        raise ValueError(f"{found['refused']}, in each of {processes} processes")
    arms = {name: np.array(samples) for name, samples in found["arms"].items()}
    return Samples(arms, np.array(found["control"]), np.array(found["sentinel"]))


def _run_of(folder: Path, i: int) -> Callable[[int], Any]:
    """An arm that was exported, compiled in this process and on its device."""
    exported = jax.export.deserialize(bytearray(Path(folder, f"{i}.program").read_bytes()))
    with np.load(Path(folder, f"{i}.npz")) as file:
        raw = [file[name] for name in file.files]
    avals = exported.in_avals[1:]
    arrays = [
        jax.device_put(np.frombuffer(b.tobytes(), a.dtype).reshape(a.shape)) for b, a in zip(raw, avals, strict=True)
    ]
    program = jax.jit(exported.call).lower(np.int32(1), *arrays).compile()
    return lambda steps: program(np.int32(steps), *arrays)


def main(folder: Path) -> None:
    """Measure what another process has put into a folder, and leave there what was found."""
    order = json.loads(Path(folder, "order.json").read_text(encoding="utf-8"))
    try:
        runs = {name: _run_of(folder, i) for i, name in enumerate(order["names"])}
        again = _run_of(folder, order["names"].index(order["baseline"]))
        blocks = {name: block(name, run) for name, run in runs.items()}
        samples = take_rounds(blocks, block(order["baseline"], again), seconds=order["seconds"])
        found: dict[str, Any] = {
            "arms": {name: taken.tolist() for name, taken in samples.arms.items()},
            "control": samples.control.tolist(),
            "sentinel": samples.sentinel.tolist(),
        }
    except ValueError as error:
        found = {"refused": str(error)}
    Path(folder, "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
