"""Tools that time steps, each used as its documentation says."""

import contextlib
import io
import math
import sys
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import minijaxnet as mjn

ROUNDS = 200
SLOWER, FASTER = "slower", "faster"

_PYTEST = """
import pytest

@pytest.mark.parametrize("arm", [0, 1])
def test_arm(benchmark, arm, calls, found):
    benchmark(calls[arm])
    found[arm] = benchmark.stats.stats
"""


class Arms(NamedTuple):
    """The two arms of a comparison, where they start and what they look at."""

    first: mjn.Descent
    second: mjn.Descent
    params: Any
    batch: Any


class Found(NamedTuple):
    """What a tool found.

    Attributes:
        ratio: the second arm's time over the first one's.
        verdict: on the second arm; None where the tool gives none.
        sound: whether the tool itself believes it.
    """

    ratio: float
    verdict: str | None = None
    sound: bool = True


class Tool(NamedTuple):
    """A tool that is judged.

    Attributes:
        needs: the package that it is in, if it has to be installed.
        measure: ``measure(arms, seconds)``.
    """

    needs: str | None
    measure: Callable[[Arms, float], Found]


# --- What is compared -------------------------------------------------------------------------------------------------


def rounds_of(count: int) -> mjn.Descent:
    """A descent of which a step takes so many equal rounds, and no other floating-point operation.

    The step's value goes through all of them and no round can be left out. XLA keeps the loop, and a product this small
    runs in one thread.
    """

    def init(params: Any, key: Any = None) -> mjn.DescentState:
        return mjn.DescentState(params, (), jnp.int32(0), key)

    def step(state: mjn.DescentState, batch: Any) -> tuple[mjn.DescentState, mjn.StepInfo]:
        x = lax.fori_loop(0, count, lambda _, x: jnp.tanh(x @ batch), state.params)
        return state._replace(params=x, step=state.step + 1), mjn.StepInfo(x[0, 0], x[0, 1])

    return mjn.Descent(init, step)


# --- The tools --------------------------------------------------------------------------------------------------------


def calls_of(arms: Arms) -> list[Callable[[], Any]]:
    """The arms as the other tools time them: the jitted step is called, and waited for; already compiled."""

    def call_of(descent: mjn.Descent) -> Callable[[], Any]:
        step = jax.jit(lambda state, batch: descent.step(state, batch))
        state = jax.device_put(descent.init(arms.params))
        jax.block_until_ready(step(state, arms.batch))
        return lambda: jax.block_until_ready(step(state, arms.batch))

    return [call_of(descent) for descent in (arms.first, arms.second)]


def by_ours(arms: Arms, seconds: float) -> Found:
    """``compare_steps``, which gives the verdict itself."""
    steps = {"first": arms.first, "second": arms.second}
    options = {"baseline": "first", "seconds": seconds, "same_result": False}
    found = mjn.compare_steps(steps, arms.params, arms.batch, **options)
    return Found(found.ratios["second"].median, found.verdicts["second"], found.sound)


def by_timeit(arms: Arms, seconds: float) -> Found:
    """``timeit``: as many samples as there is time for, each of as many calls as ``autorange`` finds."""
    medians = []
    for call in calls_of(arms):
        timer = timeit.Timer(call)
        number, took = timer.autorange()
        medians.append(float(np.median(timer.repeat(max(1, round(seconds / 2 / took)), number))) / number)
    return Found(medians[1] / medians[0])


def by_tokamax(arms: Arms, seconds: float) -> Found:
    """``tokamax.benchmarking``: as many iterations as there is time for; it calls twice in each."""
    from tokamax import benchmarking  # pyright: ignore[reportMissingImports]

    medians = []
    for descent in (arms.first, arms.second):
        given = (jax.device_put(descent.init(arms.params)), arms.batch)
        run = benchmarking.compile_benchmark(lambda given, step=descent.step: step(*given), given)
        once_s = run(given).median_evaluation_time_ms / 1e3
        medians.append(run(given, iterations=math.ceil(seconds / 4 / once_s)).median_evaluation_time_ms)
    return Found(medians[1] / medians[0])


def by_pytest_benchmark(arms: Arms, seconds: float) -> Found:
    """The fixture ``benchmark`` in a session of pytest within this process, one test an arm; its medians.

    Raises:
        RuntimeError: a test failed, or there was none.
    """
    import pytest

    calls, found = calls_of(arms), {}

    class Given:
        """What the tests ask for."""

        @pytest.fixture(name="calls")
        def give_calls(self) -> Any:
            return calls

        @pytest.fixture(name="found")
        def give_found(self) -> Any:
            return found

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()) as said:
        tests, settings = Path(scratch, "test_arms.py"), Path(scratch, "pytest.ini")
        tests.write_text(_PYTEST, encoding="utf-8")
        settings.write_text("[pytest]\n", encoding="utf-8")
        quiet = ["-q", "--capture=no", "-p", "no:cacheprovider", "--import-mode=importlib", f"--rootdir={scratch}"]
        options = [f"--benchmark-max-time={seconds / 2}", f"--benchmark-storage=file://{scratch}"]
        code = pytest.main([str(tests), "-c", str(settings), *quiet, *options], plugins=[Given()])
    sys.modules.pop("test_arms", None)  # else the next session would find this one's
    if code or len(found) != 2:
        raise RuntimeError(f"pytest ended with {code!r}: {' '.join(said.getvalue().split())[-300:]}")
    return Found(found[1].median / found[0].median)


def by_torch(arms: Arms, seconds: float) -> Found:
    """``Timer.blocked_autorange``; its medians."""
    from torch.utils import benchmark  # pyright: ignore[reportMissingImports]

    first, second = (
        benchmark.Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=seconds / 2).median
        for call in calls_of(arms)
    )
    return Found(second / first)


TOOLS = {
    "minijaxnet": Tool(None, by_ours),
    "timeit": Tool(None, by_timeit),
    "pytest-benchmark": Tool("pytest_benchmark", by_pytest_benchmark),
    "torch": Tool("torch", by_torch),
    "tokamax": Tool("tokamax", by_tokamax),
}
