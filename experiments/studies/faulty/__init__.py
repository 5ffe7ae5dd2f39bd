"""One fault after the other, injected into tools that train networks and keep checkpoints, and one judge for all.

A fault is survived if what follows is, within five seconds and without harm to any file, either an error that names the
argument, the leaf or the file and what is wrong with it, or a right result: the bits of a run without the fault. NaN,
another result in silence, an error that names nothing, a hang and a lost checkpoint are not.

``judge.py`` judges; ``inputs.py``, ``numeric.py``, ``reading.py`` and ``writing.py`` have the faults; ``tool.py`` says
what a tool can do, and each other file is a tool, used as its documentation says; ``worker.py`` has a tool in a process
of its own, so that a hang or a crash ends nothing else.
"""

TOOLS = {
    "minijaxnet": "faulty.ours:Ours",
    "npz": "faulty.raw_jax:Npz",
    "pickle": "faulty.raw_jax:Pickle",
    "safetensors": "faulty.raw_jax:Safetensors",
    "orbax": "faulty.raw_jax:Orbax",
    "equinox": "faulty.equinox_tool:Equinox",
    "flax": "faulty.flax_tool:Flax",
    "scikit-learn": "faulty.sklearn_tool:ScikitLearn",
    "keras": "faulty.keras_tool:Keras",
}
# They have threads that no forked process has, so they start anew in each.
COLD = ("orbax", "equinox", "flax", "keras")
GROUPS = ("inputs", "numbers", "reading", "writing")
