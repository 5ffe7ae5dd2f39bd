"""The pytest fixture ``benchmark_step``; pytest finds it where minijaxnet is installed.

A test fails if the bound of a confidence interval shows that a step is too slow, never because of a single time. JAX is
imported only when the fixture is used.
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
    """Add ``--bench-seconds``, ``--bench-save``, ``--bench-against`` and ``--bench-slower``."""
    group = parser.getgroup("minijaxnet", "comparisons of steps")
    group.addoption("--bench-seconds", type=float, default=2.0, help="how long each comparison takes")
    group.addoption("--bench-save", metavar="FOLDER", help="where to save each comparison, under its test's name")
    group.addoption("--bench-against", metavar="FOLDER", help="compare each with the one saved in this folder")
    group.addoption(
        "--bench-slower",
        type=float,
        default=1.1,
        metavar="RATIO",
        help="with --bench-against: fail if a step certainly takes more than this many times the saved time",
    )


@pytest.fixture
def benchmark_step(request: pytest.FixtureRequest) -> "Callable[..., StepComparison]":
    """``benchmark_step({name: descent}, params, batch, baseline=..., at_most={name: ratio})``: compare, save, fail.

    It takes the arguments of ``compare_steps`` except ``seconds``, and ``at_most``: the largest allowed ratio of an
    arm's time to the baseline's. The test fails if the lower bound of the ratio's interval is above that: the arm is
    too slow, with 95 % confidence. An unsound comparison fails no test. Returns the ``StepComparison``.
    """
    numbers = itertools.count(1)

    def compare(
        arms: Mapping[str, Any], params: Any, batch: Any, *, at_most: Mapping[str, float] | None = None, **options: Any
    ) -> "StepComparison":
        from minijaxnet.bench import compare_steps

        option: Any = request.config.getoption
        limits, slower = dict(at_most or {}), option("--bench-slower")
        if unknown := [name for name in limits if name not in arms or name == options.get("baseline")]:
            raise ValueError(f"at_most: got {unknown[0]!r}; expected arms beside the baseline: {', '.join(arms)}")
        for name, limit in limits.items():
            _check_ratio(f"at_most[{name!r}]", limit)
        _check_ratio("--bench-slower", slower)
        found = compare_steps(arms, params, batch, seconds=option("--bench-seconds"), **options)
        file = _file_of(request.node.nodeid, next(numbers))
        if folder := option("--bench-save"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            found.save(Path(folder) / file)
        too_slow = [f"{name} (at most {limit:g})" for name, limit in limits.items() if found.ratios[name].low > limit]
        if found.sound and too_slow:
            pytest.fail(f"{found}\n\ncertainly slower than allowed: {', '.join(too_slow)}", pytrace=False)
        if folder := option("--bench-against"):
            since = found.against(Path(folder) / file)
            limit = slower * max(1.0, since.sentinel.high)
            if too_slow := [name for name, ratio in since.ratios.items() if ratio.low > limit]:
                pytest.fail(f"{since}\n\ncertainly slower than saved: {', '.join(too_slow)}", pytrace=False)
        return found

    return compare


def _check_ratio(where: str, ratio: Any) -> None:
    from minijaxnet._checks import is_number

    if not (is_number(ratio) and 0 < float(ratio) < math.inf):  # no ratio would be above NaN
        raise ValueError(f"{where}: got {ratio!r}; expected a ratio such as 1.2, a positive number")


def _file_of(test: str, count: int) -> str:
    """The file name for a test's first, second, ... comparison: readable and unique.

    >>> _file_of("test_it.py::test_steps[a b]", 1), _file_of("test_it.py::test_steps[a-b]", 2)
    ('test_it.py-test_steps-a-b-e8807ee9.json', 'test_it.py-test_steps-a-b-b363b9c9-2.json')
    """
    readable = re.sub(r"[^\w.-]+", "-", test).strip("-")[:100]
    digest = hashlib.sha256(test.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{readable}-{digest}{f'-{count}' if count > 1 else ''}.json"
