"""C, with the backward pass by hand, for 2-2-1: what the processor itself can do."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import Arm, Workload

FLAGS = ("-O3", "-march=native", "-ffast-math", "-fPIC", "-c")

SOURCE = r"""
/* w: W1[0][0], W1[0][1], W1[1][0], W1[1][1], b1[0], b1[1], W2[0], W2[1], b2 */
void descend(float *start, const float *x, const float *y, float rate, long steps, float *losses) {
  float w[9];
  for (int i = 0; i < 9; i++) w[i] = start[i];
  for (long s = 0; s < steps; s++) {
    float g[9] = {0}, loss = 0;
    for (int p = 0; p < 4; p++) {
      float a = x[2 * p], b = x[2 * p + 1];
      float z0 = a * w[0] + b * w[2] + w[4], z1 = a * w[1] + b * w[3] + w[5];
      float h0 = z0 > 0 ? z0 : 0, h1 = z1 > 0 ? z1 : 0;
      float error = h0 * w[6] + h1 * w[7] + w[8] - y[p];
      float delta = error * (2.0f / 4);
      float d0 = z0 > 0 ? delta * w[6] : 0, d1 = z1 > 0 ? delta * w[7] : 0;
      loss += error * error;
      g[0] += a * d0; g[1] += a * d1; g[2] += b * d0; g[3] += b * d1; g[4] += d0; g[5] += d1;
      g[6] += h0 * delta; g[7] += h1 * delta; g[8] += delta;
    }
    for (int i = 0; i < 9; i++) w[i] -= rate * g[i];
    losses[s] = loss / 4;
  }
  for (int i = 0; i < 9; i++) start[i] = w[i];
}
"""


@functools.cache
def compiled() -> Callable[..., None]:
    """The function, built in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        source, compiled, library = (Path(folder) / f"descend.{kind}" for kind in ("c", "o", "so"))
        source.write_text(SOURCE, encoding="utf-8")
        subprocess.run(["gcc", *FLAGS, "-o", compiled, source], check=True)
        # Linked with -ffast-math it would turn off subnormal numbers in the whole process.
        subprocess.run(["gcc", "-shared", "-o", library, compiled], check=True)
        function = ctypes.CDLL(str(library)).descend
    array = np.ctypeslib.ndpointer(np.float32, flags="C")
    function.argtypes = [array, array, array, ctypes.c_float, ctypes.c_long, array]
    function.restype = None
    return function


def arms(workload: Workload) -> dict[str, Arm] | str:
    """The loop in C, on one thread."""
    if workload.sizes != (2, 2, 1) or workload.points != 4:
        return "written for 2-2-1 only"
    if shutil.which("gcc") is None:
        raise ImportError("no gcc")
    x, y = workload.data()
    starting = np.concatenate([leaf.ravel() for layer in workload.weights() for leaf in layer])
    kept_losses = functools.cache(lambda steps: np.ones(steps, np.float32))

    def run(steps: int) -> np.ndarray:
        losses = kept_losses(steps)
        compiled()(starting.copy(), x, y, workload.learning_rate, steps, losses)
        return losses

    return {"C, by hand, one thread": Arm(lambda: run, whole=True)}
