"""Faults, one after the other, injected into tools that train networks and keep checkpoints, and one judge for all.

A fault is survived if the tool ends, within five seconds and without harm to any file, in one of two ways: an error
that names the argument, the leaf or the file and what is wrong with it; or the right result, the bits of a run without
the fault. NaN, another result without an error, an error that names nothing, a hang and a lost checkpoint are failures.

``judge.py`` judges; ``inputs.py``, ``numbers.py``, ``reading.py`` and ``writing.py`` have the faults; ``tool.py`` says
what a tool can do, and ``ours.py``, ``raw_jax.py``, ``equinox_tool.py`` and ``sklearn_tool.py`` are the tools, used as
their documentation says; ``worker.py`` runs a tool in a process of its own, so that a hang ends nothing else.
"""

TOOLS = {
    "minijaxnet": "faulty.ours:Ours",
    "npz": "faulty.raw_jax:Npz",
    "safetensors": "faulty.raw_jax:Safetensors",
    "orbax": "faulty.raw_jax:Orbax",
    "equinox": "faulty.equinox_tool:Equinox",
    "flax": "faulty.raw_jax:Flax",
    "scikit-learn": "faulty.sklearn_tool:ScikitLearn",
}
