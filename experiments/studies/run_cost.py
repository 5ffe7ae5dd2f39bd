"""What a run folder costs: the lock, the log, the progress and a checkpoint each second.

    python experiments/studies/run_cost.py --rounds 5

The same steps on digits by ``descend_epochs``, by ``fit`` alone, and by ``fit`` with a run folder, in turns; and how
long it takes to save and to load 64 MiB.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn
from minijaxnet._tables import text_table

SIZES, BATCH_SIZE, EPOCHS, RATE = (64, 128, 10), 128, 10_000, 0.05


def seconds(run: Callable[[], Any]) -> float:
    """How long a run takes until all it computed is there."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def runs(parent: Path) -> dict[str, Callable[[], Any]]:
    """The same descent, with more and more around it; each run gets a folder of its own."""
    train, _ = mjn.digits()
    network = mjn.mlp(SIZES)
    descent = mjn.gradient_descent(mjn.objective(network, mjn.softmax_cross_entropy), RATE)
    start = descent.init(network.init(jax.random.key(0)))
    order = jax.random.key(1)
    steps = EPOCHS * (len(train.x) // BATCH_SIZE)

    def fit(**options: Any) -> Any:
        return mjn.fit(descent, start, train, steps=steps, batch_size=BATCH_SIZE, key=order, **options).state

    def fit_in_folder(**options: Any) -> Any:
        return fit(run_dir=tempfile.mkdtemp(dir=parent), sink=mjn.Sink(lambda row: None), **options)

    return {
        "descend_epochs": lambda: mjn.descend_epochs(
            descent, start, train, order, batch_size=BATCH_SIZE, epochs=EPOCHS
        )[0],
        "fit": fit,
        "fit, with lock, log and progress": lambda: fit_in_folder(checkpoint_every=timedelta(days=1)),
        "fit, and a checkpoint each second": lambda: fit_in_folder(checkpoint_every=timedelta(seconds=1)),
    }


def checkpoint_seconds(path: Path, rounds: int) -> tuple[float, float]:
    """Medians of the seconds to save and to load 64 MiB in eight leaves."""
    tree = {f"leaf {k}": jnp.asarray(np.random.default_rng(k).normal(size=(2**21,)), jnp.float32) for k in range(8)}
    taken = [
        (seconds(lambda: mjn.save_checkpoint(path, tree, step=0)), seconds(lambda: mjn.load_checkpoint(path, tree)))
        for _ in range(rounds)
    ]
    save, load = np.median(taken, axis=0)
    return float(save), float(load)


def main() -> None:
    """Print the tables."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    rounds = flags.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        arms = runs(Path(folder))
        samples: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(1 + rounds):
            for name, run in arms.items():
                taken = seconds(run)
                if turn:  # the first compiles
                    samples[name].append(taken)
        ratios = {name: np.array(values) / samples["descend_epochs"] for name, values in samples.items()}
        rows = [
            (name, f"{np.median(samples[name]):.3f}", f"{np.median(each):.3f}", f"{each.min():.3f} to {each.max():.3f}")
            for name, each in ratios.items()
        ]
        print(text_table((f"{EPOCHS:,} epochs of digits, {SIZES}", "seconds", "times the first", "all rounds"), rows))
        save, load = checkpoint_seconds(Path(folder) / "a.safetensors", 2 * rounds + 1)
        print(f"64 MiB: saved in {save:.3f} s, loaded in {load:.3f} s")


if __name__ == "__main__":
    main()
