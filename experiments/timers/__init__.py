"""Tools that time steps, each used as its documentation says, and the rules that make verdicts of their figures."""

import contextlib
import io
import re
import sys
import tempfile
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import minijaxnet as mjn

ROUNDS = 400
PLANTED = {"A/A": 0.0, "3 %": 0.03, "10 %": 0.1}  # how much more of them the slower arm takes
SAME, SLOWER, FASTER = "indistinguishable", "slower", "faster"

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


class Tool(NamedTuple):
    """A tool that is judged.

    Attributes:
        needs: the package that it is in, if it has to be installed.
        measure: ``measure(arms, seconds) -> figures``; where these have ``seconds``, they are those of both arms.
        rules: ``{row of the table: figures -> verdict on the second arm}``.
    """

    needs: str | None
    measure: Callable[[Arms, float], dict[str, Any]]
    rules: dict[str, Callable[[dict[str, Any]], str]]


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


# --- Verdicts from figures --------------------------------------------------------------------------------------------


def apart(times: Sequence[float], least: float) -> str:
    """The verdict on the second of two times, if it takes more than ``least`` for a difference.

    >>> apart((1.0, 1.02), 0.01), apart((1.02, 1.0), 0.01), apart((1.0, 1.02), 0.03)
    ('slower', 'faster', 'indistinguishable')
    """
    first, second = times
    if max(times) <= (1 + least) * min(times):
        return SAME
    return SLOWER if second > first else FASTER


def printed(times: Sequence[float]) -> str:
    """The verdict on the second of two times, if a difference in three digits is one."""
    return apart([float(f"{t:.3g}") for t in times], 0.0)


def factor(times: Sequence[float]) -> str:
    """The verdict on the second of two times, if a factor that is not 1.00 when printed is a difference."""
    return SAME if f"{max(times) / min(times):.2f}" == "1.00" else apart(times, 0.0)


def careful(figures: dict[str, Any]) -> str:
    """The verdict on the second of two medians of torch, if a difference in digits significant for both is one.

    There is none where the spread of a measurement is so large that it comes with a warning.
    """
    digits = min(figures["digits"])
    return SAME if figures["warned"] else apart([float(f"{t:.{digits}g}") for t in figures["seconds"]["median"]], 0.0)


def half_of_what_is_planted(tool: str, statistics: Sequence[str]) -> dict[str, Callable[[dict[str, Any]], str]]:
    """Rules that know what was planted."""

    def rule(statistic: str, least: float) -> Callable[[dict[str, Any]], str]:
        return lambda figures: apart(figures["seconds"][statistic], least)

    return {
        f"{tool}, {statistic}, {100 * least:g} % apart *": rule(statistic, least)
        for statistic in statistics
        for least in (PLANTED["3 %"] / 2, PLANTED["10 %"] / 2)
    }


# --- The tools --------------------------------------------------------------------------------------------------------


def calls_of(arms: Arms) -> list[Callable[[], Any]]:
    """The arms as the other tools time them: the jitted step is called, and waited for; already compiled."""

    def call_of(descent: mjn.Descent) -> Callable[[], Any]:
        step = jax.jit(lambda state, batch: descent.step(state, batch))
        state = jax.device_put(descent.init(arms.params))
        jax.block_until_ready(step(state, arms.batch))
        return lambda: jax.block_until_ready(step(state, arms.batch))

    return [call_of(descent) for descent in (arms.first, arms.second)]


def by_ours(arms: Arms, seconds: float) -> dict[str, Any]:
    """``compare_steps``, which gives the verdict itself."""
    steps = {"first": arms.first, "second": arms.second}
    options = {"baseline": "first", "seconds": seconds, "same_result": False}
    found = mjn.compare_steps(steps, arms.params, arms.batch, **options)
    ratio, control = list(found.ratios["second"]), list(found.control)
    return {"verdict": found.verdicts["second"], "sound": found.sound, "ratio": ratio, "control": control}


def by_timeit(arms: Arms, seconds: float) -> dict[str, Any]:
    """``timeit``: as many samples as there is time for, each of as many calls as ``autorange`` finds."""
    medians, best = [], []
    for call in calls_of(arms):
        timer = timeit.Timer(call)
        number, took = timer.autorange()
        samples = timer.repeat(max(1, round(seconds / 2 / took)), number)
        medians.append(float(np.median(samples)) / number)
        best.append(min(samples) / number)
    return {"seconds": {"median": medians, "best": best}}


def by_pytest_benchmark(arms: Arms, seconds: float) -> dict[str, Any]:
    """The fixture ``benchmark`` in a session of pytest within this process, one test an arm.

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
    return {"seconds": {name: [getattr(found[arm], name) for arm in (0, 1)] for name in ("median", "min")}}


def by_torch(arms: Arms, seconds: float) -> dict[str, Any]:
    """``Timer.blocked_autorange``, and what ``Compare`` prints of both measurements."""
    from torch.utils import benchmark  # pyright: ignore[reportMissingImports]

    found = [
        benchmark.Timer("call()", globals={"call": call}, label="steps", sub_label=name, description="time")
        .blocked_autorange(min_run_time=seconds / 2)
        for name, call in zip(("first", "second"), calls_of(arms), strict=True)
    ]  # fmt: skip
    table = benchmark.Compare(found)
    table.trim_significant_figures()
    return {
        "seconds": {"median": [measurement.median for measurement in found]},
        "printed": [float(cell) for cell in re.findall(r"^ *(?:first|second) *\| *([\d.]+)", str(table), re.MULTILINE)],
        "digits": [measurement.significant_figures for measurement in found],
        "warned": any(measurement.has_warnings for measurement in found),
    }


TOOLS = {
    "minijaxnet": Tool(None, by_ours, {"minijaxnet, compare_steps": lambda figures: figures["verdict"]}),
    "timeit": Tool(
        None,
        by_timeit,
        {
            "timeit, median, printed digits": lambda figures: printed(figures["seconds"]["median"]),
            "timeit, best, printed digits": lambda figures: printed(figures["seconds"]["best"]),
            **half_of_what_is_planted("timeit", ("median", "best")),
        },
    ),
    "pytest-benchmark": Tool(
        "pytest_benchmark",
        by_pytest_benchmark,
        {
            "pytest-benchmark, median, printed factor": lambda figures: factor(figures["seconds"]["median"]),
            "pytest-benchmark, min, printed factor": lambda figures: factor(figures["seconds"]["min"]),
            **half_of_what_is_planted("pytest-benchmark", ("median", "min")),
        },
    ),
    "torch": Tool(
        "torch",
        by_torch,
        {
            "torch Timer, median, printed digits": lambda figures: apart(figures["printed"], 0.0),
            "torch Timer, median, digits of both": careful,
            "torch Timer, median, not both the best": lambda figures: apart(figures["seconds"]["median"], 0.01),
            **half_of_what_is_planted("torch Timer", ("median",)),
        },
    ),
}
