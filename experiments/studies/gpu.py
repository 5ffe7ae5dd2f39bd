"""This library on the accelerator at hand: what is fast, what is right, and which bits are the same.

    python experiments/studies/gpu.py             # at most eight minutes on one GPU, from a checkout
    python experiments/studies/gpu.py --tiny      # the same at a small size, on a CPU too
    python experiments/studies/gpu.py --only steps,rates --minutes 3

Each part runs in a process of its own, one after the other, so that one that fails ends no other. A row is printed as
soon as it is known; at the end they are a Markdown table, with a list of what does not hold. Nothing is set on the
device.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# TFLOP/s of dense products of float32 (as TF32) and bfloat16, and TB/s of memory, by the makers' data sheets.
STATED = {
    "H200": (494, 989, 4.8),
    "H100 PCIe": (378, 756, 2.0),
    "H100": (494, 989, 3.35),
    "A100-SXM4-80GB": (156, 312, 2.04),
    "A100": (156, 312, 1.56),
    "L4": (60, 121, 0.3),
    "RTX 4090": (82.6, 165, 1.01),
}


class Row(NamedTuple):
    """A result.

    Attributes:
        part: of the script.
        what: was measured.
        found: in words.
        expected: in words; "" where nothing is.
        holds: whether it is as expected; None where that is not judged.
    """

    part: str
    what: str
    found: str
    expected: str = ""
    holds: bool | None = None


class Size(NamedTuple):
    """How much is done.

    Attributes:
        tiny: whether it is for a CPU, whose speed is not judged.
        seconds: that a part may take before it leaves out what is left.
    """

    tiny: bool
    seconds: float

    def left(self, began: float) -> float:
        """The seconds that are left of a part."""
        return self.seconds - (time.perf_counter() - began)


# --- The parts --------------------------------------------------------------------------------------------------------


def steps(size: Size) -> Iterator[Row]:
    """A step in our loop, in a bare ``lax.scan`` and called from Python."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    import minijaxnet as mjn

    plans = {(2, 2, 1): (4, 16_384), (64, 128, 10): (128, 4_096), (1024, 1024, 1024): (1024, 512)}
    if size.tiny:
        plans = {(2, 2, 1): (4, 512), (64, 16, 10): (16, 128)}
    began, draw = time.perf_counter(), np.random.default_rng(0)
    for (sizes, (points, count)), dtype in ((plan, d) for plan in plans.items() for d in ("float32", "bfloat16")):
        if size.left(began) < 0:
            return
        x, y = draw.normal(size=(points, sizes[0])), draw.normal(size=(points, sizes[-1]))
        batch = jax.device_put(mjn.Batch(jnp.asarray(x, dtype), jnp.asarray(y, dtype)))
        network = mjn.mlp(sizes, dtype=dtype)
        params = network.init(jax.random.key(0))
        descent = mjn.gradient_descent(mjn.objective(network, mjn.mean_squared_error), 1e-3)
        state = descent.init(params)

        @jax.jit
        def scan(state: Any, batch: Any, descent: Any = descent, count: int = count) -> Any:
            def step(state: Any, _: None) -> Any:
                state, info = descent.step(state, batch)
                return state, info.loss

            return lax.scan(step, state, None, length=count)

        rounds = []
        for _ in range(4):  # in turns; the first compiles
            timing = mjn.time_step(descent, params, batch, seconds=0.1 if size.tiny else 1.0)
            before = time.perf_counter()
            jax.block_until_ready(scan(state, batch))
            scan_s = (time.perf_counter() - before) / count
            rounds.append((timing.fused_s.median, scan_s, timing.latency_s.median))
        fused_s, scan_s, called_s = np.median(rounds[1:], axis=0)
        what, judged = f"{'-'.join(map(str, sizes))}, {dtype}", not size.tiny and dtype == "float32"
        times = f"{1e6 * fused_s:.3g} us in our loop, {1e6 * scan_s:.3g} in a scan, {1e6 * called_s:.3g} called"
        yield Row("steps", what, times, "our loop at most 1.05 scan", fused_s <= 1.05 * scan_s if judged else None)


def rates(size: Size) -> Iterator[Row]:
    """Rates of products and of memory, beside those that the maker states."""
    from minijaxnet.bench import measure_roofline

    found = measure_roofline(("float32", "bfloat16"), seconds=0.1 if size.tiny else 5.0)
    kind = next((kind for kind in STATED if kind in found.device), "")
    stated = dict(zip(("float32", "bfloat16", "memory"), STATED.get(kind, ()), strict=False))
    measured = {name: rate / 1e12 for name, rate in found.peaks.items()} | {"memory": found.bandwidth() / 1e12}
    for name, rate in measured.items():
        unit = "TB/s" if name == "memory" else "TFLOP/s"
        share = f", {rate / stated[name]:.0%} of the {stated[name]:g} stated" if name in stated else ""
        holds = 0.5 <= rate / stated[name] <= 1.05 if name in stated else None
        expected = "half of what is stated" if name in stated else ""
        yield Row("rates", f"{found.device}, {name}", f"{rate:.3g} {unit}{share}", expected, holds)
    yield Row("rates", "an empty call, an empty kernel", f"{1e6 * found.dispatch_s:.3g}, {1e6 * found.launch_s:.3g} us")


def compared(size: Size) -> Iterator[Row]:
    """How often equal steps are called different, and how often 3 per cent are found, in one second each."""
    from benchmarks_compared import Task, measured
    from timers import TOOLS

    equal, planted, seconds = (2, 1, 0.2) if size.tiny else (40, 10, 1.0)
    tasks = [Task(0.03 * (i % 5 == 0), bool(i % 2), seconds) for i in range(equal + planted)]
    began, found = time.perf_counter(), []
    for task in tasks:
        if size.left(began) < 3 * seconds:
            break
        found.append((task, measured(TOOLS["minijaxnet"], task).get("verdict")))
    for name, share, most in (("equal steps called different", 0.0, 0.05), ("planted 3 %, missed", 0.03, 0.1)):
        some = [(task.truth, said if said in ("faster", "slower") else None) for task, said in found]
        some = [pair for (task, _), pair in zip(found, some, strict=True) if task.planted == share]
        wrong = sum(said != truth for truth, said in some)
        holds = wrong <= max(1, most * len(some)) if some and not size.tiny else None
        yield Row("compared", name, f"{wrong} of {len(some)}", f"at most {most:.0%}", holds)


def bits(size: Size) -> Iterator[Row]:
    """Whether a descent that was killed ends with the same bits, in a new process, with and without kept programs."""
    import jax

    for keep in ("yes", "no"):
        with tempfile.TemporaryDirectory() as folder:
            whole, broken = Path(folder) / "whole", Path(folder) / "broken"
            one = _descended(whole, keep, size, kill=False)
            _descended(broken, keep, size, kill=True)
            same = one == _descended(broken, keep, size, kill=False)
        judged = same if keep == "yes" or jax.default_backend() == "cpu" else None
        what = f"digits killed and resumed, programs {'kept' if keep == 'yes' else 'not kept'}"
        yield Row("bits", what, "the same bits" if same else "other bits", "the same bits", judged)


def _descended(folder: Path, keep: str, size: Size, *, kill: bool) -> str:
    """Descend in a process of its own, from where the folder is; the SHA-256 of where it ends.

    Raises:
        RuntimeError: it failed, or ended before it could be killed.
    """
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--part", "descent", "--folder", str(folder), "--keep", keep]
    process = subprocess.Popen([*command, *(["--tiny"] if size.tiny else [])], stdout=subprocess.PIPE, text=True)
    while kill and process.poll() is None:
        if [*(folder / "checkpoints").glob("*.safetensors")]:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    text, _ = process.communicate()
    if process.returncode != (-signal.SIGKILL if kill else 0):
        raise RuntimeError(f"the descent ended with {process.returncode}")
    return text.strip()


def descent(folder: Path, keep: str, size: Size) -> None:
    """What ``_descended`` starts."""
    import jax
    import numpy as np

    import minijaxnet as mjn
    from minijaxnet.run.programs import kept_programs

    train, _ = mjn.digits()
    network = mjn.mlp((64, 128, 10))
    steps = 2_000 if size.tiny else 20_000
    of = mjn.gradient_descent(mjn.objective(network, mjn.softmax_cross_entropy), 0.05)
    with kept_programs(folder, keep):
        start, options = of.init(network.init(jax.random.key(0))), {"batch_size": 32, "key": jax.random.key(1)}
        options |= {"run_dir": folder, "resume": (folder / "checkpoints").exists(), "checkpoint_every": steps // 20}
        state = mjn.fit(of, start, train, steps=steps, **options).state
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.params)]
    print(hashlib.sha256(b"".join(leaves)).hexdigest())


def checker(size: Size) -> Iterator[Row]:
    """Right and wrong gradients of the tests' corpus, in the dtypes and at the precisions of this device."""
    import jax
    from checkers_compared import corpus, ours

    rules = corpus()
    every = 40 if size.tiny else 12
    cases = [case for pair in zip(rules.RIGHT[::every], rules.WRONG[::every], strict=False) for case in pair]
    settings = [("float32", None), ("float32", "highest"), ("bfloat16", None)]
    judged: dict[Any, list[tuple[Any, bool]]] = {setting: [] for setting in settings}
    began = time.perf_counter()
    for case in cases:
        for dtype, precision in settings:
            applies = dtype in case.dtypes and (case.slip is None or dtype in case.slip.dtypes)
            if applies and size.left(began) > 0:
                with jax.default_matmul_precision(precision):
                    judged[dtype, precision].append((case, ours(case, case.args(jax.numpy.dtype(dtype)))))
    for (dtype, precision), all_of in judged.items():
        wrongly = [case.name for case, verdict in all_of if verdict != (case.slip is None)]
        found = "; ".join([f"{len(all_of) - len(wrongly)} of {len(all_of)} judged right", *wrongly])
        what = f"rules of the corpus, {dtype}, products {precision or 'by default'}"
        yield Row("checker", what, found, "all", not wrongly and bool(all_of))


def replicas(size: Size) -> Iterator[Row]:
    """Thousands of the smallest network, in one program."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import minijaxnet as mjn

    count, taken = (100, 100) if size.tiny else (10_000, 1_000)
    points, network = jax.device_put(mjn.lesson_points()), mjn.mlp((2, 2, 1))
    objective, start = mjn.objective(network, mjn.mean_squared_error), network.init(jax.random.key(0))

    def run(learning_rate: Any) -> Any:
        of = mjn.gradient_descent(objective, learning_rate)
        return mjn.descend(of, of.init(start), points, steps=taken)[1].loss[-1]

    seconds, finite = [], 0
    for _ in range(2):
        began = time.perf_counter()
        output = mjn.sweep(run, {"learning_rate": jnp.linspace(1e-4, 1e-2, count)}).output
        seconds.append(time.perf_counter() - began)
        finite = int(np.isfinite(output).sum())
    each = 1e9 * seconds[1] / count / taken
    words = f"{seconds[0]:.2f} s, then {seconds[1]:.2f} s: {each:.3g} ns a step of one"
    yield Row("replicas", f"{count:,} descents of {taken:,} steps", words, "all finite", finite == count)


def tests(size: Size) -> Iterator[Row]:
    """The tests that are for an accelerator; skipped on a CPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-o", "addopts=--import-mode=importlib", "-q", "-rfs"]
    done = subprocess.run([*command, "tests/test_gpu.py"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing"]
    yield Row("tests", "pytest -m gpu", lines[-1].strip("= "), "all pass", done.returncode == 0)


# By name the part, and its share of the time.
PARTS: dict[str, tuple[Callable[[Size], Iterator[Row]], float]] = {
    "rates": (rates, 0.06),
    "steps": (steps, 0.3),
    "bits": (bits, 0.14),
    "tests": (tests, 0.1),
    "replicas": (replicas, 0.06),
    "compared": (compared, 0.16),
    "checker": (checker, 0.18),
}


# --- One by one -------------------------------------------------------------------------------------------------------


def part_in_process(name: str, size: Size) -> Iterator[Row]:
    """The rows of a part, from a process of its own, and a last one if that fails."""
    command = [sys.executable, __file__, "--part", name, "--seconds", str(size.seconds)]
    command += ["--tiny"] if size.tiny else []
    environment = dict(os.environ)
    if name in ("bits", "tests"):  # they start others, which need the memory
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("ROW "):
                    yield Row(*json.loads(line[4:]))
        if process.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            yield Row(name, "the part itself", last[:200], "to end", False)


def markdown(rows: list[Row]) -> str:
    """The rows as a table, and what does not hold."""
    lines = ["| part | what | found | expected |", "|---|---|---|---|"]
    marks = {True: " (holds)", False: " (DOES NOT HOLD)", None: ""}
    lines += [f"| {row.part} | {row.what} | {row.found} | {row.expected}{marks[row.holds]} |" for row in rows]
    failed = [f"- {row.part}, {row.what}: {row.found}; expected {row.expected}" for row in rows if row.holds is False]
    return "\n".join([*lines, "", *(["What does not hold:", *failed] if failed else ["All that is judged holds."])])


def main() -> int:
    """Run all parts; the exit code is 1 if something does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="at a small size, for a CPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="at most about so long")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    for own in ("--part", "--folder", "--keep"):  # of a process of its own
        parser.add_argument(own, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = Size(options.tiny, options.seconds)
    if options.part == "descent":
        descent(Path(options.folder), options.keep, size)
        return 0
    if options.part:
        for row in PARTS[options.part][0](size):
            print(f"ROW {json.dumps(row)}", flush=True)
        return 0
    needs = ("jax", "jaxlib", "numpy", "safetensors", "filelock", "pytest", "sklearn")
    if missing := [name for name in needs if importlib.util.find_spec(name) is None]:
        print(f"missing here: {', '.join(missing)}", file=sys.stderr)
        return 2
    if unknown := set(options.only.split(",")) - set(PARTS):
        parser.error(f"--only: got {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    rows: list[Row] = []
    began, total = time.perf_counter(), 60 * options.minutes
    for name in options.only.split(","):
        if time.perf_counter() - began > 0.95 * total:
            rows.append(Row(name, "the part itself", "left out: no time", "to end", False))
            continue
        for row in part_in_process(name, size._replace(seconds=PARTS[name][1] * total)):
            print(f"{row.part:<9} {row.what}: {row.found}" + (f" ({row.expected})" if row.expected else ""), flush=True)
            rows.append(row)
    print(f"\n{markdown(rows)}")
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
