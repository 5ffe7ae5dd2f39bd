"""What this library does on the accelerator at hand: what is fast, what is right, which bits are the same.

    python experiments/studies/gpu.py                  # at most eight minutes on one GPU, from a checkout without installing
    python experiments/studies/gpu.py --tiny           # the same questions at a small size, on a CPU too
    python experiments/studies/gpu.py --only steps,rates --minutes 3

It needs jax, jaxlib, safetensors, filelock and pytest, and takes digits from scikit-learn if that is there. Each part
runs in a process of its own, one after the other, so that one that fails takes no other with it. A row is printed as
soon as it is known; at the end they are a Markdown table, with a list of what did not hold. Nothing is set on the
device, and none of its limits are touched.
"""

import argparse
import functools
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

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments"), str(ROOT / "tests")]

NEEDS = ("jax", "jaxlib", "numpy", "safetensors", "filelock", "pytest")
# TFLOP/s of dense products of float32 (as TF32) and bfloat16, and TB/s of memory, by the makers' data sheets.
KINDS = {
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
        what: was looked at.
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


# --- 1: a step's time, by how the loop is written ---------------------------------------------------------------------


def steps(size: Size) -> Iterator[Row]:
    """A step inside loops of four kinds and called from Python."""
    import jax

    is_judged = jax.default_backend() != "cpu"
    for network, dtype, gradient, loops in _networks(size):
        times = _times(loops)
        what = f"{network}, {gradient}, {dtype}"
        yield Row("steps", what, ", ".join(f"{name} {1e6 * took:.3g} us" for name, took in times.items()))
        by_block, judged = times["blocks"] / times["scan"], is_judged and dtype == "float32"
        yield Row(
            "steps", f"{what}: blocks / scan", f"{by_block:.3f}", "at most 1.05", by_block <= 1.05 if judged else None
        )
        if network == "2-2-1":
            called = times["python"] / times["blocks"]
            at_least = called >= 150 if judged else None
            yield Row("steps", f"{what}: python / blocks", f"{called:.0f}", "at least 150", at_least)


def buffers(size: Size) -> Iterator[Row]:
    """The plain loop, where XLA puts loops into command buffers; it is started with that flag."""
    for network, dtype, gradient, loops in _networks(size):
        took = _times({"plain": loops["plain"]})["plain"]
        yield Row("buffers", f"{network}, {gradient}, {dtype}: plain loop", f"{1e6 * took:.3g} us")


Loops = dict[str, tuple[int, Callable[[], Any]]]


def _networks(size: Size) -> Iterator[tuple[str, str, str, Loops]]:
    """A name, a dtype, how the gradient is had, and ``{name: (steps, run)}``."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    import minijaxnet as mjn
    from minijaxnet._loops import _BLOCK
    from minijaxnet.bench.blocks import checked, fused, start_state

    plans = {(2, 2, 1): (4, 16_384), (64, 128, 10): (128, 4_096), (1024, 1024, 1024): (1024, 512)}
    if size.tiny:
        plans = {(2, 2, 1): (4, 512), (64, 16, 10): (16, 128)}
    began = time.perf_counter()
    for sizes, (points, count) in plans.items():
        draw = np.random.default_rng(0)
        x, y = draw.normal(size=(points, sizes[0])), draw.normal(size=(points, sizes[-1]))
        network, loss = mjn.mlp(sizes), mjn.mean_squared_error
        objective = mjn.objective(network, loss)
        by_hand = mjn.with_gradient(objective, mjn.mlp_gradient(sizes, activation=jax.nn.relu, loss=loss))
        for dtype in ("float32",) if size.tiny else ("float32", "bfloat16"):
            batch = jax.device_put(mjn.Batch(jnp.asarray(x, dtype), jnp.asarray(y, dtype)))
            params = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), network.init(jax.random.key(0)))
            for gradient, function in (("autodiff", objective), ("by hand", by_hand)):
                if size.left(began) < 0:
                    return
                descent = mjn.gradient_descent(function, 1e-3)
                state = start_state(descent, params, None)
                step = jax.jit(lambda state, batch, descent=descent: descent.step(state, batch))
                traced = checked(step.trace(state, batch), state, "step")
                carry = (state, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), traced.out_info[1]))

                def scan(batch: Any, carry: Any, step: Any = step, count: int = count) -> Any:
                    return lax.scan(lambda carry, _: (step(carry[0], batch), None), carry, length=count)[0]

                def called(state: Any, batch: Any, step: Any = step, count: int = count // 16) -> Any:
                    for _ in range(count):
                        state, _ = step(state, batch)
                    return state

                program = jax.jit(scan).lower(batch, carry).compile()
                plain, blocks = (jax.jit(fused(traced, n)).lower(state, batch, 1).compile() for n in (1, _BLOCK))
                yield (
                    "-".join(map(str, sizes)),
                    dtype,
                    gradient,
                    {
                        "scan": (count, functools.partial(program, batch, carry)),
                        "plain": (count, functools.partial(plain, state, batch, count)),
                        "blocks": (count, functools.partial(blocks, state, batch, count)),
                        "python": (count // 16, functools.partial(called, state, batch)),
                    },
                )


def _times(loops: Loops) -> dict[str, float]:
    """Seconds a step, the median of seven rounds in which all take their turn, after three that warm up."""
    import numpy as np

    from minijaxnet.bench.blocks import seconds_of
    from minijaxnet.bench.rounds import WARM_CALLS, in_turns

    turns = in_turns([functools.partial(seconds_of, run) for _, run in loops.values()])
    rounds = np.array([next(turns) for _ in range(WARM_CALLS + 7)])[WARM_CALLS:]
    return {name: float(took) / loops[name][0] for name, took in zip(loops, np.median(rounds, axis=0), strict=True)}


# --- 2: the machine's rates -------------------------------------------------------------------------------------------


def rates(size: Size) -> Iterator[Row]:
    """Rates of products and of memory, against those that the maker states."""
    import jax

    from minijaxnet._machine import product_note
    from minijaxnet.bench import measure_roofline

    found = measure_roofline(("float32", "bfloat16"), seconds=0.1 if size.tiny else 5.0)
    kind = next((kind for kind in KINDS if kind in found.device), None)
    stated = dict(zip(("float32", "bfloat16", "memory"), KINDS.get(kind or "", ()), strict=False))
    measured = {name: rate / 1e12 for name, rate in found.peaks.items()} | {"memory": found.bandwidth() / 1e12}
    for name, rate in measured.items():
        unit = "TB/s" if name == "memory" else "TFLOP/s"
        share = f", {100 * rate / stated[name]:.0f} % of the {stated[name]:g} stated" if name in stated else ""
        holds = 0.5 <= rate / stated[name] <= 1.05 if name in stated else None
        expected = "half of what is stated" if name in stated else ""
        yield Row("rates", f"{found.device}, {name}", f"{rate:.3g} {unit}{share}", expected, holds)
    yield Row("rates", "an empty call, an empty kernel", f"{1e6 * found.dispatch_s:.3g}, {1e6 * found.launch_s:.3g} us")
    yield Row("rates", "products of float32", product_note(jax.default_backend()) or "all 23 bits")


# --- 3: equal steps, and a planted difference -------------------------------------------------------------------------


def compared(size: Size) -> Iterator[Row]:
    """How often equal steps are called different, and how often 3 per cent are found, in one second each."""
    from benchmarks_compared import Task, measured
    from timers import TOOLS

    equal, planted, seconds = (2, 1, 0.2) if size.tiny else (40, 10, 1.0)
    tasks = [Task(0.03 * (i < planted), bool(i % 2), seconds) for i in range(equal + planted)]
    began, found = time.perf_counter(), []
    for i in range(len(tasks)):  # some of each kind, however far it comes
        task = tasks[(i // 5 if i % 5 == 0 else planted + i - i // 5 - 1) % len(tasks)]
        if size.left(began) < 3 * seconds:
            break
        found.append((task, measured(TOOLS["minijaxnet"], task)))
    for name, share, most in (("equal steps called different", 0.0, 0.05), ("planted 3 %, found", 0.03, 0.1)):
        some = [(task.truth, one) for task, one in found if task.planted == share]
        said = [one.get("verdict") if one.get("verdict") in ("faster", "slower") else None for _, one in some]
        wrong = sum(one != truth for (truth, _), one in zip(some, said, strict=True))
        right = sum(not one.get("sound", True) for _, one in some)
        count = len(some) - wrong if share else wrong
        holds = wrong <= max(1, most * len(some)) if some and not size.tiny else None
        least = "at most 5 %" if not share else "at least 90 %"
        yield Row("compared", name, f"{count} of {len(some)} ({right} unsound)", least, holds)


# --- 4: killed, and gone on with --------------------------------------------------------------------------------------


def bits(size: Size) -> Iterator[Row]:
    """Whether a descent that was killed ends with the same bits, in a new process, with and without kept programs."""
    import jax

    on_cpu = jax.default_backend() == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        for keep in ("yes", "no"):
            whole, broken = (Path(folder) / f"{keep}-{name}" for name in ("whole", "broken"))
            one = _descended(whole, keep, size, kill=False)
            _descended(broken, keep, size, kill=True)
            two = _descended(broken, keep, size, kill=False)
            same = one is not None and one == two
            words = "the same bits" if same else "other bits" if one and two else "did not end"
            judged = same if keep == "yes" or on_cpu else None
            programs = "kept" if keep == "yes" else "not kept"
            yield Row("bits", f"digits killed and resumed, programs {programs}", words, "the same bits", judged)


def _descended(folder: Path, keep: str, size: Size, *, kill: bool) -> str | None:
    """Descend in a process of its own, from where the folder is; the SHA-256 of where it ends, if it ends."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--part", "descent", "--folder", str(folder), "--keep", keep]
    process = subprocess.Popen([*command, *(["--tiny"] if size.tiny else [])], stdout=subprocess.PIPE, text=True)
    while kill and process.poll() is None:
        if [*(folder / "checkpoints").glob("*.safetensors")]:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    text, _ = process.communicate()
    if kill and process.returncode != -signal.SIGKILL:
        raise RuntimeError("the descent ended before it could be killed")
    return text.strip() or None if process.returncode == 0 else None


def descent(folder: Path, keep: str, size: Size) -> None:
    """What ``_descended`` starts."""
    import hashlib

    import jax
    import numpy as np

    import minijaxnet as mjn
    from minijaxnet.run.programs import kept_programs

    if importlib.util.find_spec("sklearn"):
        train, _ = mjn.digits()
    else:
        draw = np.random.default_rng(0)
        train = mjn.Batch(draw.normal(size=(1_437, 64)).astype(np.float32), draw.integers(10, size=1_437))
    network = mjn.mlp((64, 128, 10))
    steps = 2_000 if size.tiny else 20_000
    of = mjn.gradient_descent(mjn.objective(network, mjn.softmax_cross_entropy), 0.05)
    with kept_programs(folder, keep):
        start, options = of.init(network.init(jax.random.key(0))), {"batch_size": 32, "key": jax.random.key(1)}
        options |= {"run_dir": folder, "resume": (folder / "checkpoints").exists(), "checkpoint_every": steps // 20}
        state = mjn.fit(of, start, train, steps=steps, **options).state
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.params)]
    print(hashlib.sha256(b"".join(leaves)).hexdigest())


# --- 5: the checker ---------------------------------------------------------------------------------------------------


def checker(size: Size) -> Iterator[Row]:
    """Right and wrong gradients of the tests' corpus, in the dtypes and at the precisions of this device."""
    import jax
    import jax.numpy as jnp
    from corpora import RIGHT, WRONG, GradCase  # pyright: ignore[reportMissingImports] - of the tests

    import minijaxnet as mjn

    def is_right(case: Any, dtype: str) -> bool:
        args = case.args(jnp.dtype(dtype))
        if not isinstance(case, GradCase):
            return mjn.check_vjp(case.fun, args, reference=case.reference, order=case.order).ok
        options = {"argnums": case.argnums, "has_aux": case.has_aux, "has_value": case.has_value, "order": case.order}
        return mjn.check_grad(case.loss, case.gradient, args, **options).ok

    settings = [("float32", None), ("float32", "highest"), ("bfloat16", None)]
    every = 40 if size.tiny else 12
    cases = [pair for pairs in zip(RIGHT[::every], WRONG[::every], strict=False) for pair in pairs]
    judged: dict[Any, list[tuple[Any, bool]]] = {setting: [] for setting in settings}
    began = time.perf_counter()
    for case in cases:
        for dtype, precision in settings:
            of_kind = dtype in case.dtypes and (case.slip is None or dtype in case.slip.dtypes)
            if of_kind and size.left(began) > 0:
                with jax.default_matmul_precision(precision):
                    judged[dtype, precision].append((case, is_right(case, dtype)))
    for (dtype, precision), all_of in judged.items():
        wrongly = [case.name for case, said in all_of if said != (case.slip is None)]
        what = f"rules of the corpus, {dtype}, products {precision or 'as they come'}"
        found = f"{len(all_of) - len(wrongly)} of {len(all_of)} judged right"
        yield Row("checker", what, "; ".join([found, *wrongly]), "all", not wrongly and bool(all_of))
    yield _pallas()


def _pallas() -> Row:
    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl

    import minijaxnet as mjn

    interpret = jax.default_backend() == "cpu"

    def on(kernel: Any, *args: Any) -> Any:
        like = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
        return pl.pallas_call(kernel, out_shape=like, interpret=interpret)(*args)

    def forward(x: Any, out: Any) -> None:
        out[...] = jnp.tanh(x[...])

    def backward(y: Any, c: Any, out: Any) -> None:
        out[...] = c[...] * (1 - y[...] ** 2)

    kernel = jax.custom_vjp(lambda x: on(forward, x))
    kernel.defvjp(lambda x: (on(forward, x),) * 2, lambda y, c: (on(backward, y, c),))
    report = mjn.check_vjp(kernel, (jnp.linspace(-2.0, 2.0, 16).reshape(4, 4),), reference=jnp.tanh)
    states = ", ".join(f"{name} {verdict.state}" for name, verdict in report.verdicts.items())
    return Row("checker", f"a Pallas kernel, {'interpreted' if interpret else 'compiled'}", states, "ok", report.ok)


# --- 6: many descents at once -----------------------------------------------------------------------------------------


def replicas(size: Size) -> Iterator[Row]:
    """Thousands of the smallest network, in one program."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import minijaxnet as mjn

    count, taken = (100, 100) if size.tiny else (10_000, 1_000)
    draw = np.random.default_rng(0)
    points = jax.device_put(
        mjn.Batch(draw.normal(size=(4, 2)).astype(np.float32), draw.normal(size=(4, 1)).astype(np.float32))
    )
    network = mjn.mlp((2, 2, 1))
    objective = mjn.objective(network, mjn.mean_squared_error)
    start = network.init(jax.random.key(0))

    def run(learning_rate: Any) -> Any:
        of = mjn.gradient_descent(objective, learning_rate)
        return mjn.descend(of, of.init(start), points, steps=taken)[1].loss[-1]

    def swept() -> tuple[float, int]:
        began = time.perf_counter()
        found = mjn.sweep(run, {"learning_rate": jnp.linspace(1e-4, 1e-2, count)})
        return time.perf_counter() - began, int(np.isfinite(found.output).sum())

    (first_s, _), (second_s, finite) = swept(), swept()
    words = f"{first_s:.2f} s, then {second_s:.2f} s: {1e9 * second_s / count / taken:.3g} ns a step of one"
    yield Row("replicas", f"{count:,} descents of {taken:,} steps", words, "all finite", finite == count)


# --- 7: the tests -----------------------------------------------------------------------------------------------------


def tests(size: Size) -> Iterator[Row]:
    """The tests that are for an accelerator; skipped on a CPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-o", "addopts=--import-mode=importlib", "-q", "-rfs"]
    done = subprocess.run([*command, "tests/test_gpu.py"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing"]
    for line in lines:
        print(line, file=sys.stderr)
    yield Row("tests", "pytest -m gpu", lines[-1].strip("= "), "all pass", done.returncode == 0)


# --- Carried out one by one -------------------------------------------------------------------------------------------

# By name the part, and its share of the time.
PARTS: dict[str, tuple[Callable[[Size], Iterator[Row]], float]] = {
    "rates": (rates, 0.06),
    "steps": (steps, 0.22),
    "buffers": (buffers, 0.1),
    "bits": (bits, 0.14),
    "tests": (tests, 0.1),
    "replicas": (replicas, 0.06),
    "compared": (compared, 0.16),
    "checker": (checker, 0.16),
}


def part_in_process(name: str, size: Size) -> Iterator[Row]:
    """The rows of a part, from a process of its own, and a last one if that fails."""
    command = [sys.executable, __file__, "--part", name, "--seconds", str(size.seconds)]
    environment = dict(os.environ)
    if name == "buffers":
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer=+WHILE".strip()
    if name in ("bits", "tests"):  # they start others, which need the memory
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    command += ["--tiny"] if size.tiny else []
    with tempfile.TemporaryFile("w+") as errors:
        options: dict[str, Any] = {"env": environment, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
        with subprocess.Popen(command, **options) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("ROW "):
                    yield Row(*json.loads(line[4:]))
        if process.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            yield Row(name, "the part itself", last[:200], "to end", False)


def markdown(rows: list[Row]) -> str:
    """The rows as a table, and what did not hold."""
    lines = ["| part | what | found | expected |", "|---|---|---|---|"]
    marks = {True: " (holds)", False: " (DOES NOT HOLD)", None: ""}
    lines += [f"| {row.part} | {row.what} | {row.found} | {row.expected}{marks[row.holds]} |" for row in rows]
    failed = [f"- {row.part}, {row.what}: {row.found}; expected {row.expected}" for row in rows if row.holds is False]
    return "\n".join([*lines, "", *(["What did not hold:", *failed] if failed else ["All that is judged holds."])])


def main() -> int:
    """Carry out all parts; the exit code is 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="at a small size, for a CPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="at most about so long")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    for own in ("--part", "--folder", "--keep"):  # of a process of its own
        parser.add_argument(own, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    size = Size(asked.tiny, asked.seconds)
    if asked.part == "descent":
        descent(Path(asked.folder), asked.keep, size)
        return 0
    if asked.part:
        for row in PARTS[asked.part][0](size):
            print(f"ROW {json.dumps(row)}", flush=True)
        return 0
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        print(f"missing here: {', '.join(missing)}", file=sys.stderr)
        return 2
    if unknown := set(asked.only.split(",")) - set(PARTS):
        parser.error(f"--only: got {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    rows: list[Row] = []
    began, total = time.perf_counter(), 60 * asked.minutes
    for name in asked.only.split(","):
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
