"""The command line, called in this process, and what it leaves in a run's folder."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from minijaxnet._trees import named_leaves
from minijaxnet.cli import main
from minijaxnet.load import load_params

HEAD = '''"""A line through a few points.

This second paragraph is no summary.
"""

import jax
import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn

'''

LINE = """
def init(key, *, scale=1.0, offset=2):
    return {"slope": scale * jax.random.normal(key), "offset": jnp.asarray(offset, float)}

def loss(params, batch):
    return jnp.mean((params["slope"] * batch.x + params["offset"] - batch.y) ** 2)

def value_and_gradient(params, batch):
    errors = params["slope"] * batch.x + params["offset"] - batch.y
    return jnp.mean(errors**2), {"slope": 2 * jnp.mean(errors * batch.x), "offset": FACTOR * jnp.mean(errors)}

def data(*, points=8, noise=0.0):
    x = np.linspace(-1, 1, points)
    y = x / 3 + 0.1 + noise * np.random.default_rng(1).normal(size=points)
    return mjn.Batch(x, y), mjn.Batch(2 * x, 2 * x / 3 + 0.1)

def latest_error(params, batch):
    return jnp.mean(params["slope"] * batch.x + params["offset"] - batch.y)

experiment = mjn.Experiment(
    "line", init, loss, data, MORE metrics={"latest_error": latest_error},
    defaults=mjn.Settings(steps=30, learning_rate=0.25, seed=7),
)
"""
AUTODIFF = LINE.replace("MORE", "").replace("FACTOR", "2")
BY_HAND = LINE.replace("MORE", "value_and_gradient=value_and_gradient,").replace("FACTOR", "2")

# Without what takes long and most tests do not look at.
QUICK = ("--bench-seconds", 0, "--no-report")


class Called(NamedTuple):
    """How a call went, and the run folder that it has made, if any."""

    code: int
    out: str
    err: str
    folder: Path | None = None

    def read(self, name):
        return json.loads((self.folder / name).read_text(encoding="utf-8"), parse_constant=pytest.fail)

    def rows(self):
        return rows_in(self.folder)

    def params(self):
        return named_leaves(load_params(self.folder / "params.safetensors"))


def rows_in(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def call(*arguments):
    """Call the command."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
    return Called(code, out.getvalue(), err.getvalue())


def run(home, text, *flags, head=HEAD, verb="run"):
    """``minijaxnet run`` of an experiment with this text, without its benchmark and its page."""
    file, runs = Path(home) / "my_experiment.py", Path(home) / "runs"
    file.write_text(head + text, encoding="utf-8")
    before = set(runs.glob("*"))
    called = call(verb, file, *(() if verb == "bench" else ("--runs", runs)), *(QUICK if verb == "run" else ()), *flags)
    made = set(runs.glob("*")) - before
    return called._replace(folder=made.pop() if made else None)


def control_characters(text):
    return {character for character in text if ord(character) < 0x20 or ord(character) == 0x7F} - {"\n"}


def unboxed(text):
    """Words only, one blank between them: without the frames that errors about flags are drawn in."""
    return " ".join(re.sub(r"[^\x20-\x7e]", " ", text).split())
