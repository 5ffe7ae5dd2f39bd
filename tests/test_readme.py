"""The README does what it says: its commands are those of CI, its code runs."""

import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minijaxnet as mjn
from minijaxnet.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
DESCEND, VERIFY, BENCHMARK, OWN_EXPERIMENT, LOAD, SINKS, ON_DEVICES, OWN_RULE = re.findall(
    r"```python\n(.*?)```", README, re.DOTALL
)


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
    for block in (VERIFY, BENCHMARK, ON_DEVICES, OWN_RULE):
        run(block, names)
    assert trained["trace"].loss[-1] < 0.1 < trained["trace"].loss[0]
    printed = capsys.readouterr().out
    assert "gradient by hand against autodiff: right" in printed
    assert "paired rounds" in printed


def test_its_experiment_runs(tmp_path, capsys):
    file = tmp_path / "my_experiment.py"
    file.write_text(OWN_EXPERIMENT, encoding="utf-8")
    assert main(["run", str(file), "--bench-seconds", "0", "--no-report", "--scale", "2", "--runs", str(tmp_path)]) == 0
    assert "gradient by hand against autodiff: right" in capsys.readouterr().out
    assert len(list(tmp_path.glob("line-*/result.json"))) == 1


def test_its_run_is_loaded_and_predicts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = OWN_EXPERIMENT.replace("defaults=", "predict=lambda params, x: params['slope'] * x, defaults=")
    Path("my_experiment.py").write_text(text, encoding="utf-8")
    assert main(["run", "my_experiment.py", "--bench-seconds", "0", "--no-report"]) == 0
    [folder] = Path("runs").iterdir()
    names = run(LOAD.replace("runs/line-20261130-120000", str(folder)), {"mjn": mjn, "x": np.ones(3)})
    np.testing.assert_allclose(names["prediction"], names["params"]["slope"] * np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(names["params"]["slope"], 3, atol=0.2)


def scalars(folder):
    """``{(name, step)}`` of TensorBoard's event files: records of a length, a checksum, an event and a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = set()
    for path in folder.iterdir():
        content, at = path.read_bytes(), 0
        while at < len(content):
            [length] = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found |= {(value.tag, event.step) for value in event.summary.value}
            at += length + 16
    return found


def test_its_sinks_hand_each_row_to_tensorboard_wandb_and_mlflow(trained, tmp_path, monkeypatch):
    """The last two are stand-ins with the same calls."""
    to_wandb, to_mlflow = [], []

    def init(project=None, id=None, resume=None):
        return SimpleNamespace(log=lambda data, step=None: to_wandb.append((step, data)))

    def log_metrics(metrics, step=None):
        to_mlflow.append((step, metrics))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(log_metrics=log_metrics))
    monkeypatch.chdir(tmp_path)
    names = run(SINKS, dict(trained))
    names["events"].close()
    steps = range(0, 101, 5)
    assert scalars(tmp_path / "events") == {(name, at) for name in ("step", "loss", "gradient_norm") for at in steps}
    for rows in (to_wandb, to_mlflow):
        assert [step for step, _ in rows] == list(steps)
        assert all(step == row["step"] and isinstance(row["loss"], float) for step, row in rows)


def test_it_opens_with_the_two_commands():
    first, second, *_ = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert first.strip() == 'pip install -e ".[all]" && minijaxnet run experiments/digits.py'
    assert second.strip() == 'pip install -e ".[test]" && pytest'
