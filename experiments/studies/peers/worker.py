"""A peer's process: it opens one peer's file for one workload, and takes its turns."""

import importlib
import sys

from . import WORKLOADS, Arm, Workload
from .arms import connected, serve


def open_peer(module: str, workload: Workload) -> dict[str, Arm] | str:
    """A peer's arms, or why there are none."""
    try:
        return importlib.import_module(module).arms(workload)
    except ImportError as error:
        return f"not installed ({error})"


if __name__ == "__main__":
    with connected(sys.argv[3]) as pipe:
        serve(pipe, open_peer(sys.argv[1], WORKLOADS[sys.argv[2]]))
