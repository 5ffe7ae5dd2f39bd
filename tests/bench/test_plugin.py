"""The fixture ``benchmark_step``, in a test suite of its own: what fails, what is saved and compared with."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from minijaxnet import StepComparison
from minijaxnet.bench import ArmTiming

SUITE = """
import pytest

@pytest.mark.parametrize("at_most", [3, 1.4, None, float("nan"), "2"])
def test_steps(benchmark_step, at_most):
    limits = {"none": 2} if at_most is None else {"other": at_most}
    found = benchmark_step({"plain": 1, "other": 1.5}, "params", "batch", baseline="plain", at_most=limits)
    assert found.rounds == 40
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Run the suite in this process, the other arm so many times as slow: ``{parameter: why the test failed}``."""
    (tmp_path / "test_it.py").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    draw = np.random.default_rng(0)

    def run(slower, *options, seconds=2.0):
        def made_up(arms, params, batch, **given):
            assert (params, batch, given) == ("params", "batch", {"baseline": "plain", "seconds": seconds})
            factors = arms | {"other": slower * arms["other"]}
            taken = {name: 1e-6 * factor * (1 + 0.01 * draw.random(40)) for name, factor in factors.items()}
            timings = {name: ArmTiming(0.5, 1e-7, samples) for name, samples in taken.items()}
            fixed = 1e-6 * (1 + 0.01 * draw.random(40))
            machine = dict.fromkeys(("processor", "cores", "devices", "platform"), "the same")
            return StepComparison("plain", timings, 1e-6 * (1 + 0.01 * draw.random(40)), fixed, machine=machine)

        words = {}

        class Listener:
            def pytest_runtest_logreport(self, report):
                if report.when == "call":
                    words[report.nodeid.split("[")[1].strip("]")] = str(report.longrepr) if report.failed else ""

        monkeypatch.setattr("minijaxnet.bench.compare_steps", made_up)
        monkeypatch.delitem(sys.modules, "test_it", raising=False)
        quick = ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]  # which collects this process's garbage
        flags = ["-q", *quick, "-c", "/dev/null", "--rootdir", ".", "--import-mode=importlib"]
        pytest.main(["-p", "minijaxnet.pytest_plugin", *flags, *options, "test_it.py"], plugins=[Listener()])
        return words

    return run


def test_a_test_fails_where_a_step_is_surely_beyond_its_bound_or_surely_slower_than_what_was_saved(suite, tmp_path):
    words = suite(1, "--bench-save", "saved", "--bench-seconds", "0.5", seconds=0.5)
    assert words["3"] == ""
    assert "certainly slower than allowed: other (at most 1.4)" in words["1.4"] and "95 % interval" in words["1.4"]
    assert "at_most: got 'none'; expected arms beside the baseline: plain, other" in words["None"]
    assert "at_most['other']: got nan; expected a ratio such as 1.2, a positive number" in words["nan"]
    assert "at_most['other']: got '2'; expected a ratio" in words["2"]
    files = {path.name: json.loads(path.read_text()) for path in (tmp_path / "saved").iterdir()}
    assert {name.rpartition("-")[0] for name in files} == {"test_it.py-test_steps-3", "test_it.py-test_steps-1.4"}
    assert all(len(content["arms"]) == 2 for content in files.values())

    assert suite(1.05, "--bench-against", "saved")["3"] == ""
    assert "certainly slower than saved: other" in suite(1.3, "--bench-against", "saved")["3"]
    assert suite(1.3, "--bench-against", "saved", "--bench-slower", "1.5")["3"] == ""
    assert "--bench-slower: got nan; expected a ratio" in suite(1.3, "--bench-slower", "nan")["3"]


def test_pytest_finds_it_by_itself_and_imports_no_jax(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_it(request):\n"
        "    assert request.config.getoption('--bench-seconds') == 2\n"
        "    assert [name for name in sys.modules if name.startswith('minijaxnet.')] == ['minijaxnet.pytest_plugin']\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-c", "/dev/null", "--rootdir", ".", "test_it.py"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    found = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
