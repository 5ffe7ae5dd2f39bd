"""The README does what it says: its commands are those of CI, its code runs."""

import re
from pathlib import Path

import numpy as np
import pytest

import minijaxnet as mjn
from minijaxnet.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
DESCEND, VERIFY, BENCHMARK, OWN_EXPERIMENT, LOAD = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(block, names):
    exec(compile(re.sub(r"seconds=[\d.]+", "seconds=0.1", block), "README.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def trained():
    """What the first snippet leaves behind."""
    return run(DESCEND, {})


def test_the_three_jobs_fit_into_ten_lines_each_and_run(trained, capsys):
    assert all(len(job.strip().splitlines()) <= 10 for job in (DESCEND, VERIFY, BENCHMARK))
    x, y = trained["train"]
    names = trained | {"train": (x[:100], y[:100])}
    for block in (VERIFY, BENCHMARK):
        run(block, names)
    assert trained["trace"].loss[-1] < 0.1 < trained["trace"].loss[0]
    printed = capsys.readouterr().out
    assert "gradient by hand against autodiff: right" in printed
    assert "paired rounds" in printed


def test_its_experiment_runs_is_loaded_and_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my_experiment.py").write_text(OWN_EXPERIMENT, encoding="utf-8")
    flags = ["--learning-rate", "0.3", "--scale", "2", "--bench-seconds", "0", "--no-report"]
    assert main(["run", "my_experiment.py", *flags]) == 0
    assert "gradient by hand against autodiff: right" in capsys.readouterr().out
    [folder] = Path("runs").glob("line-*")
    names = run(LOAD.replace("runs/line-20261130-120000", str(folder)), {"mjn": mjn, "x": np.ones(3)})
    slope, offset = (float(names["params"][name]) for name in ("slope", "offset"))
    np.testing.assert_allclose(names["prediction"], np.full(3, slope + offset), rtol=1e-6)
    np.testing.assert_allclose((slope, offset), (3, 1), atol=0.2)


def test_it_opens_with_the_two_commands():
    first, second, *_ = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert first.strip() == 'pip install -e ".[all]" && minijaxnet run experiments/digits.py'
    assert second.strip() == 'pip install -e ".[test]" && pytest'
