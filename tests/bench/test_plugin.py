"""The fixture ``benchmark_step``, in a test suite of its own: what fails, what is saved, what is held against it."""

import json
import sys
import textwrap

import pytest

SUITE = """
    import itertools
    from types import SimpleNamespace
    import jax.numpy as jnp
    import numpy as np
    import pytest
    import minijaxnet as mjn
    from minijaxnet.bench import compare, rounds

    def bowl(weights, batch):
        return jnp.sum((weights - batch) ** 2)

    plain = mjn.gradient_descent(bowl, 0.1)

    @pytest.fixture(autouse=True)
    def times(monkeypatch):
        # Each arm takes a time of its own, with a percent of noise; the clock stands still but for a tick a look.
        factors, draw = {"plain": BASE, "other": OTHER}, np.random.default_rng(0)
        def block(name, program, state, batch):
            return lambda: 1e-6 * factors[name] * (1 + 0.01 * draw.random())
        ticks = itertools.count(0.0, 0.01)
        monkeypatch.setattr(compare, "_block", block)
        monkeypatch.setattr(rounds, "sentinel", lambda: lambda: 1e-6 * (1 + 0.01 * draw.random()))
        monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))

    def test_steps(benchmark_step):
        arms = {"plain": plain, "other": plain}
        found = benchmark_step(arms, jnp.zeros(3), 1.0, baseline="plain", at_most=LIMITS)
        assert found.rounds > 20
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Run the suite with these times in this process, and say which of its tests failed, with what words."""

    def run(base, other, limits, *options):
        text = SUITE.replace("BASE", str(base)).replace("OTHER", str(other)).replace("LIMITS", repr(limits))
        (tmp_path / "test_it.py").write_text(textwrap.dedent(text))
        failures = []

        class Listener:
            def pytest_runtest_logreport(self, report):
                failures.extend([str(report.longrepr)] if report.failed else [])

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file changed within a second would not be read again
        monkeypatch.delitem(sys.modules, "test_it", raising=False)
        flags = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".", "--import-mode=importlib"]
        code = pytest.main(["-p", "minijaxnet.bench.plugin", *flags, *options, "test_it.py"], plugins=[Listener()])
        return code, "\n".join(failures)

    return run


def test_a_step_within_its_bound_passes_and_one_surely_beyond_it_fails(suite):
    assert suite(1, 1.5, {"other": 1.6})[0] == 0
    code, words = suite(1, 1.5, {"other": 1.4})
    assert code == 1 and "surely slower than allowed: other (at most 1.4)" in words
    assert "95 % interval" in words


def test_a_bound_for_no_arm_is_an_error(suite):
    assert "at_most: got 'none'; expected arms beside the baseline: plain, other" in suite(1, 1, {"none": 2})[1]


def test_what_was_saved_is_held_against_later_runs(suite, tmp_path):
    assert suite(1, 1, {}, "--bench-save", "saved")[0] == 0
    (file,) = (tmp_path / "saved").iterdir()
    assert file.name == "test_it.py-test_steps.json" and len(json.loads(file.read_text())["arms"]) == 2
    assert suite(1, 1, {}, "--bench-against", "saved")[0] == 0
    code, words = suite(1, 1.3, {}, "--bench-against", "saved")
    assert code == 1 and "surely slower than then: other" in words
    assert suite(1, 1.3, {}, "--bench-against", "saved", "--bench-slower", "1.5")[0] == 0
