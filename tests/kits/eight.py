"""Checks in one process whose CPU is divided into eight devices, which must be set before JAX starts."""

import itertools
import os
import re
import sys
import traceback

import numpy as np
import pytest
from kits.command import call
from kits.processes import ended, python

from minijaxnet.batches import InMemory, OneBatch
from minijaxnet.experiment import load_module
from minijaxnet.history import OUT_OF_STEPS
from minijaxnet.loop import chunk_capacity, run_chunk

ENTRIES = [f"ignore:Error {verb} persistent compilation cache entry:UserWarning" for verb in ("reading", "writing")]
FLAGS = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONWARNINGS": ",".join(["error", *ENTRIES])}


def assert_all_hold(prefix, *files):
    """All functions of some files whose names begin so, carried out in such a process."""
    code = "import sys; from kits.eight import carry_out; carry_out(*sys.argv[1:])"
    [(code, out, err)] = ended(
        [python(code, prefix, *files, PYTHONPATH=os.pathsep.join(sys.path), **FLAGS)], timeout=600
    )
    assert (code, out.splitlines()[-1:]) == (0, ["all hold"]), out + err


def carry_out(prefix, *files):
    """Carry out all checks, and tell of all that do not hold."""
    found = [item for file in files for item in vars(load_module(file)).items()]
    checks = [(name, check) for name, check in found if name.startswith(prefix)]
    failed = []
    for name, check in checks:
        try:
            check()
        except (Exception, pytest.fail.Exception):
            failed.append(name)
            print(f"{name}\n{traceback.format_exc()}\n")
    print(f"{len(failed)} of {len(checks)} do not hold: {failed}" if failed or not checks else "all hold")


def called(*arguments):
    """The command's exit code and what it says."""
    code, out, err, _ = call(*arguments)
    return code, out + err


def collectives(text):
    """The names of the collectives in a compiled program."""
    names = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
    return re.findall(rf"({names})(?:-start)?\(", text)


def exchanged(descent, order, state, arrays):
    """The collectives in the program of many steps."""
    capacity = chunk_capacity(descent.step, state, InMemory(order, arrays))
    rest = (1, np.float32(0 if isinstance(order, OneBatch) else -1), np.int32(OUT_OF_STEPS))
    program = run_chunk.trace(descent.step, order, capacity, 1, state, arrays, *rest).lower().compile()
    return collectives(program.as_text())


def weights(*sizes):
    """The parameters of an ``mlp``, without a program that draws them."""
    draw = np.random.default_rng(0)
    matrices = [(draw.normal(size=shape) / shape[0] ** 0.5).astype(np.float32) for shape in itertools.pairwise(sizes)]
    return tuple({"bias": np.zeros(leaf.shape[1], np.float32), "weights": leaf} for leaf in matrices)
