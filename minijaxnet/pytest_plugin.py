"""The pytest fixture ``benchmark_step``, which pytest finds by itself where minijaxnet is installed.

A test fails where an interval's bound says that a step is too slow, never because a single figure does. JAX is imported
when the fixture is used.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from minijaxnet.bench import StepComparison


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--bench-seconds``, ``--bench-save``, ``--bench-against``, ``--bench-slower``."""
    group = parser.getgroup("minijaxnet", "comparisons of steps")
    group.addoption("--bench-seconds", type=float, default=2.0, help="how long each comparison takes")
    group.addoption("--bench-save", metavar="FOLDER", help="where to save each comparison, under its test's name")
    group.addoption("--bench-against", metavar="FOLDER", help="hold each against the one that was saved there")
    group.addoption(
        "--bench-slower",
        type=float,
        default=1.1,
        metavar="RATIO",
        help="with --bench-against: fail where a step surely takes more than so many times as long as then",
    )


@pytest.fixture
def benchmark_step(request: pytest.FixtureRequest) -> "Callable[..., StepComparison]":
    """``benchmark_step({name: descent}, params, batch, baseline=..., at_most={name: ratio})``: compare, save, gate.

    Takes what ``compare_steps`` takes but for ``seconds``, and ``at_most``: for arms that may not take more than so
    many times as long as the baseline. The test fails where the interval's lower bound is above that: the arm is too
    slow, with 95 % confidence. An unsound run fails nothing. Returns the ``StepComparison``.
    """
    counted = itertools.count(1)

    def compare(
        arms: Mapping[str, Any], params: Any, batch: Any, *, at_most: Mapping[str, float] | None = None, **options: Any
    ) -> "StepComparison":
        from minijaxnet._trees import is_number
        from minijaxnet.bench import compare_steps

        limits = dict(at_most or {})
        if unknown := [name for name in limits if name not in arms or name == options.get("baseline")]:
            raise ValueError(f"at_most: got {unknown[0]!r}; expected arms beside the baseline: {', '.join(arms)}")
        option: Any = request.config.getoption
        ratios = {f"at_most[{name!r}]": limit for name, limit in limits.items()}
        for what, ratio in (ratios | {"--bench-slower": option("--bench-slower")}).items():
            if not (is_number(ratio) and 0 < float(ratio) < math.inf):  # nothing would be above NaN
                raise ValueError(f"{what}: got {ratio!r}; expected a ratio such as 1.2, a positive number")
        found = compare_steps(arms, params, batch, seconds=option("--bench-seconds"), **options)
        file = _file_of(request.node.nodeid, next(counted))
        if folder := option("--bench-save"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            found.save(Path(folder) / file)
        too_slow = [name for name, limit in limits.items() if found.ratios[name].low > limit]
        if found.sound and too_slow:
            listed = ", ".join(f"{name} (at most {limits[name]:g})" for name in too_slow)
            pytest.fail(f"{found}\n\nsurely slower than allowed: {listed}", pytrace=False)
        if folder := option("--bench-against"):
            since = found.against(Path(folder) / file)
            limit = option("--bench-slower") * max(1.0, since.sentinel.high)
            if slower := [name for name, ratio in since.ratios.items() if ratio.low > limit]:
                pytest.fail(f"{since}\n\nsurely slower than then: {', '.join(slower)}", pytrace=False)
        return found

    return compare


def _file_of(test: str, count: int) -> str:
    """The file of a test's first, second, ... comparison: readable, and another one for each.

    >>> _file_of("test_it.py::test_steps[a b]", 1), _file_of("test_it.py::test_steps[a-b]", 2)
    ('test_it.py-test_steps-a-b-e8807ee9.json', 'test_it.py-test_steps-a-b-b363b9c9-2.json')
    """
    readable = re.sub(r"[^\w.-]+", "-", test).strip("-")[:100]
    digest = hashlib.sha256(test.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{readable}-{digest}{f'-{count}' if count > 1 else ''}.json"
