"""C, with the backward pass by hand, for 2-2-1 and its copies: what the processor itself can do.

A loop over a few copies side by side, which the compiler turns into vector instructions, stands inside the loop over
the steps, so that their weights stay near the processor.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from . import Arm, Run, Workload

FLAGS = ("-O3", "-march=native", "-ffast-math", "-fPIC", "-c")
LANES = 8  # copies side by side; one alone has one

SOURCE = r"""
#define POINTS 4
#define WEIGHTS 9  /* a copy's: W1[0][0], W1[0][1], W1[1][0], W1[1][1], b1[0], b1[1], W2[0], W2[1], b2 */

/* weights: (WEIGHTS, copies), losses: (steps, copies); copies first <= c < last, a multiple of LANES apart. */
void descend(const float *start, const float *x, const float *y, float rate, long steps, long copies, long first,
             long last, float *end, float *losses) {
  for (long c = first; c < last; c += LANES) {
    float w[WEIGHTS][LANES];
    for (int i = 0; i < WEIGHTS; i++)
      for (int k = 0; k < LANES; k++) w[i][k] = start[i * copies + c + k];
    for (long s = 0; s < steps; s++) {
      for (int k = 0; k < LANES; k++) {
        float g0 = 0, g1 = 0, g2 = 0, g3 = 0, g4 = 0, g5 = 0, g6 = 0, g7 = 0, g8 = 0, loss = 0;
        for (int p = 0; p < POINTS; p++) {
          float a = x[2 * p], b = x[2 * p + 1];
          float z0 = a * w[0][k] + b * w[2][k] + w[4][k], z1 = a * w[1][k] + b * w[3][k] + w[5][k];
          float h0 = z0 > 0 ? z0 : 0, h1 = z1 > 0 ? z1 : 0;
          float error = h0 * w[6][k] + h1 * w[7][k] + w[8][k] - y[p];
          float delta = error * (2.0f / POINTS);
          float d0 = z0 > 0 ? delta * w[6][k] : 0, d1 = z1 > 0 ? delta * w[7][k] : 0;
          loss += error * error;
          g0 += a * d0; g1 += a * d1; g2 += b * d0; g3 += b * d1; g4 += d0; g5 += d1;
          g6 += h0 * delta; g7 += h1 * delta; g8 += delta;
        }
        w[0][k] -= rate * g0; w[1][k] -= rate * g1; w[2][k] -= rate * g2;
        w[3][k] -= rate * g3; w[4][k] -= rate * g4; w[5][k] -= rate * g5;
        w[6][k] -= rate * g6; w[7][k] -= rate * g7; w[8][k] -= rate * g8;
        losses[s * copies + c + k] = loss / POINTS;
      }
    }
    for (int i = 0; i < WEIGHTS; i++)
      for (int k = 0; k < LANES; k++) end[i * copies + c + k] = w[i][k];
  }
}
"""


def compiled(lanes: int) -> Callable[..., None]:
    """The function, built anew in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        source, compiled, library = (Path(folder) / f"descend.{kind}" for kind in ("c", "o", "so"))
        source.write_text(SOURCE, encoding="utf-8")
        subprocess.run(["gcc", *FLAGS, f"-DLANES={lanes}", "-o", compiled, source], check=True)
        # Linked with -ffast-math it would turn off subnormal numbers in the whole process.
        subprocess.run(["gcc", "-shared", "-o", library, compiled], check=True)
        function = ctypes.CDLL(str(library)).descend
    array, whole = np.ctypeslib.ndpointer(np.float32, flags="C"), ctypes.c_long
    function.argtypes = [array, array, array, ctypes.c_float, whole, whole, whole, whole, array, array]
    function.restype = None
    return function


def arms(workload: Workload) -> dict[str, Arm] | str:
    """The loop in C on one thread; copies also on two, half of them each."""
    if workload.sizes != (2, 2, 1) or workload.points != 4:
        return "written for 2-2-1 only"
    if shutil.which("gcc") is None:
        raise ImportError("no gcc")
    copies, lanes = (1, 1) if workload.copies is None else (workload.copies, LANES)
    x, y = workload.data()
    # One row a weight, so that copies lie side by side: W1 and W2 row by row, each followed by its bias.
    weights = np.concatenate([leaf.reshape(copies, -1).T for layer in workload.weights() for leaf in layer])
    weights = np.ascontiguousarray(weights)

    @functools.cache
    def buffers(steps: int) -> tuple[np.ndarray, np.ndarray]:
        return np.ones_like(weights), np.ones((steps, copies), np.float32)

    def start_on(threads: int) -> Callable[[], Run]:
        cuts = [copies * part // (threads * lanes) * lanes for part in range(threads + 1)]
        program = functools.cache(lambda: compiled(lanes))  # by the first run, as the other arms are

        def run(steps: int) -> np.ndarray:
            descend, (end, losses) = program(), buffers(steps)

            def part(first: int, last: int) -> None:
                descend(weights, x, y, workload.learning_rate, steps, copies, first, last, end, losses)

            if threads == 1:
                part(*cuts)
            else:
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(part, cuts[:-1], cuts[1:]))
            return losses[:, 0] if workload.copies is None else losses

        return lambda: run

    one = {"C, by hand, one thread": Arm(start_on(1), whole=True)}
    return one if workload.copies is None else one | {"C, by hand, two threads": Arm(start_on(2), whole=True)}
