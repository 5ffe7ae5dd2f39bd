"""Several processes for tests: started and ended together, each with a time limit."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap

from minijaxnet.cli.launcher import free_port

LINE = """
import jax, jax.numpy as jnp
import minijaxnet as mjn

def data(*, noise=0.0):
    x = jnp.linspace(-1, 1, 64)
    return mjn.Batch(x, 3 * x + 1 + noise), mjn.Batch(x, 3 * x + 1)

experiment = mjn.Experiment(
    "line",
    lambda key: {"slope": jax.random.normal(key), "offset": jnp.zeros(())},
    lambda params, batch: jnp.mean((params["slope"] * batch.x + params["offset"] - batch.y) ** 2),
    data,
    defaults=mjn.Settings(steps=300, learning_rate=0.01),
)
"""


@contextlib.contextmanager
def in_time():
    """An error where something in this process would be waited for without end."""

    def too_long(signum, frame):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(120)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


MINIJAXNET = [sys.executable, "-P", "-m", "minijaxnet"]


def started(command, **options):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | options.pop("environment", {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([str(word) for word in command], env=environment, **options)


def ended(processes, timeout=120):
    """The exit code, the output and the complaints of each."""
    try:
        found = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def output_of(process):
    """What a process says that must end well."""
    [(code, out, err)] = ended([process])
    assert code == 0, out + err
    return out


def python(code, *arguments, cwd=None, **environment):
    """One process that runs some lines."""
    return started([sys.executable, "-c", textwrap.dedent(code), *arguments], environment=environment, cwd=cwd)


def processes(code, count, *arguments, **environment):
    """So many processes that run the same lines; ``sys.argv`` begins with the address, how many, and which one."""
    address = f"127.0.0.1:{free_port()}"
    return [python(code, address, count, rank, *arguments, **environment) for rank in range(count)]


def commands(count, *arguments, each=lambda rank: (), **options):
    """So many commands of minijaxnet that find one another."""
    place = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", count]
    return [
        started([*MINIJAXNET, *arguments, *each(rank), *place, "--process-id", rank], **options)
        for rank in range(count)
    ]
