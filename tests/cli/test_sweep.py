"""``minijaxnet sweep``: a grid from flags, a table, arrays on disk, and what it refuses."""

import json
import os
import signal
import textwrap

import jax
import numpy as np
import pytest

import minijaxnet as mjn
from minijaxnet.cli import main
from minijaxnet.cli import sweep as cli_sweep

FILE = """
    import jax, jax.numpy as jnp
    import minijaxnet as mjn

    def init(key, *, scale=1.0, power=1):
        return {"w": scale**power * jax.random.normal(key)}

    def loss(params, batch):
        return jnp.mean((params["w"] * batch.x - batch.y) ** 2)

    def data(*, slope=3.0):
        x = jnp.linspace(-1, 1, 8)
        return mjn.Batch(x, slope * x), mjn.Batch(x, slope * x)

    experiment = mjn.Experiment(
        "line", init, loss, data, metrics={"weight": lambda params, batch: params["w"]},
        defaults=mjn.Settings(steps=40, learning_rate=0.5),
    )
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Write the file and call a verb on it: the exit code, what was printed and the newest folder."""
    jax.devices()  # which no flag can divide any more
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.py").write_text(textwrap.dedent(FILE))

    def call(verb, *flags):
        code = main([verb, "line.py", *map(str, flags)])
        out, err = capsys.readouterr()
        folders = sorted((tmp_path / "runs").glob("line-*"), key=lambda folder: folder.stat().st_mtime_ns)
        return code, out, err, folders[-1] if folders else None

    return call


def test_a_grid_of_rates_and_seeds_is_shown_and_written(run):
    code, out, _, folder = run("sweep", "--learning-rate", "1e-3:1:4log", "--seeds", 3)
    assert code == 0
    assert "line: 12 descents of 40 steps" in out
    rows = [line.split()[0] for line in out.splitlines() if line and line[0].isdigit()]
    assert rows == ["0.001", "0.01", "0.1", "1"]
    assert "best: learning_rate 1" in out
    arrays = np.load(folder / "sweep.npz")
    assert arrays["losses"].shape == (4, 3, 40) and arrays["loss"].shape == arrays["test_weight"].shape == (4, 3)
    np.testing.assert_allclose(arrays["axis_learning_rate"], [1e-3, 1e-2, 1e-1, 1], rtol=1e-12)
    np.testing.assert_array_equal(arrays["axis_seed"], range(3))
    result = json.loads((folder / "result.json").read_text())
    assert result["best"]["learning_rate"] == 1 and result["loss"] == pytest.approx(arrays["loss"].min())
    assert json.loads((folder / "config.json").read_text())["flags"]["seeds"] == 3


def test_a_seed_is_the_run_of_that_seed(run):
    _, _, _, folder = run("sweep", "--seeds", 4, "--scale", 2)
    arrays = np.load(folder / "sweep.npz")
    run("run", "--seed", 3, "--scale", 2, "--bench-seconds", 0, "--no-report")
    _, _, _, folder = run("run", "--seed", 3, "--scale", 2, "--bench-seconds", 0, "--no-report")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert arrays["losses"][3, 0] == pytest.approx(rows[0]["loss"], rel=1e-6)
    assert arrays["test_weight"][3] == pytest.approx(rows[-1]["test_weight"], rel=1e-6)


def test_numbers_of_init_batch_sizes_and_options_of_optax_are_axes(run):
    flags = ["--scale", "0.5,2", "--batch-size", "2,4", "--optimizer", "sgd", "--optimizer-options", "momentum=0:0.9:3"]
    code, out, _, folder = run("sweep", *flags, "--seeds", 2, "--steps", 5, "--power", 2, "--data-slope", 1)
    assert code == 0
    arrays = np.load(folder / "sweep.npz")
    assert arrays["losses"].shape == (2, 2, 3, 2, 5)  # batch size, scale, momentum, seed, steps
    np.testing.assert_array_equal(arrays["axis_batch_size"], [2, 4])
    for table in ("batch_size", "scale", "momentum"):
        assert f"\n{table} " in out
    first = arrays["losses"][:, 0, 0, :, 0], arrays["losses"][:, 0, 2, :, 0]
    np.testing.assert_array_equal(*first)
    assert not np.array_equal(arrays["losses"][:, 0, 0, :, -1], arrays["losses"][:, 0, 2, :, -1])


def test_where_everything_diverges_the_table_is_printed_and_the_code_is_1(run):
    code, out, _, folder = run("sweep", "--learning-rate", "1e20,1e30", "--seeds", 2)
    assert code == 1
    assert out.count("100.0 %") == 2 and "no descent ended at a finite loss" in out
    assert (np.load(folder / "sweep.npz")["status"] == mjn.DIVERGED).all()
    assert json.loads((folder / "result.json").read_text()) == {"status": "DONE", "best": None}


def test_ctrl_c_ends_all_batch_sizes_and_keeps_what_is_finished(run, monkeypatch):
    def interrupt(done, count):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli_sweep, "_on_progress", lambda: interrupt)
    code, out, _, folder = run("sweep", "--seeds", 6, "--block", 2, "--batch-size", "2,4", "--steps", 3)
    arrays = np.load(folder / "sweep.npz")
    done = arrays["finished"].sum()
    assert code == 130 and f"stopped by SIGINT after {done} of 12 descents" in out
    assert arrays["axis_batch_size"].tolist() == [2] and 2 <= done <= 6


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3", [3]), ("1,2.5", [1, 2.5]), ("0:1:3", [0, 0.5, 1]), ("1e-2:1:3log", [0.01, 0.1, 1]), ("2:2:1", [2])],
)
def test_a_range_is_numbers(text, numbers):
    assert cli_sweep.parse_range("rate", text) == pytest.approx(numbers)


@pytest.mark.parametrize(
    "text", ["", "x", "1:2", "1:2:3:4", "1:2:x", "1:2:0", "1:2:-3", "0:1:3log", "nan", "1,,2", "inf"]
)
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match=r"rate: got .*; expected a number, several with commas, or from:to:count"):
        cli_sweep.parse_range("rate", text)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning-rate", "fast"], "learning_rate: got 'fast'; expected a number"),
        (["--learning-rate", "0:1:3"], "learning_rate: got 0.0; expected a positive"),
        (["--seeds", "0"], "seeds: got 0; expected at least 1"),
        (["--batch-size", "1.5"], "batch_size: got 1.5; expected whole numbers"),
        (["--batch-size", "99"], "batch_size: got 99; expected at most 8"),
        (["--power", "0.5"], "power: got 0.5; expected whole numbers"),
        (["--optimizer-options", "momentum"], "optimizer_options: got 'momentum'; expected name=range"),
        (["--optimizer-options", "momentum=0.9"], "optimizer: gd takes no momentum"),
        (["--optimizer", "sgd", "--optimizer-options", "speed=0.9"], "optimizer: sgd takes no 'speed'"),
        (["--optimizer", "sdg"], "optimizer: got 'sdg'"),
        (["--steps", "-1"], "steps: got -1; expected at least 0"),
        (["--block", "0"], "block: got 0; expected at least 1"),
        (["--devices", "0"], "devices: got 0; expected at least 1"),
        (["--devices", "99"], "devices: got 99; expected at most"),
    ],
)
def test_what_cannot_be_swept_is_refused_and_leaves_no_folder(run, flags, words):
    code, _, err, folder = run("sweep", *flags)
    assert code == 2 and words in err and folder is None


def test_a_cpu_is_divided_into_as_many_devices_as_are_asked_for_before_there_are_any(run, monkeypatch):
    divided = []
    monkeypatch.setattr("minijaxnet.cli.together.divide_cpu", divided.append)
    run("sweep", "--devices", "99")
    code, _, _, _ = run("sweep", "--devices", "all", "--steps", 2)
    assert code == 0 and divided == [99]
    with pytest.raises(SystemExit, match="2"):
        run("sweep", "--devices", "some")


def test_what_the_first_batch_size_found_stays_when_the_second_fails(run, monkeypatch):
    real, calls = cli_sweep.sweep, []

    def fails_at_the_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no more")
        return real(*arguments, **options)

    monkeypatch.setattr(cli_sweep, "sweep", fails_at_the_second)
    code, out, err, folder = run("sweep", "--seeds", 2, "--steps", 5, "--batch-size", "2,4")
    assert code == 2 and list(folder.glob("blocks/*/*")), (out, err)
