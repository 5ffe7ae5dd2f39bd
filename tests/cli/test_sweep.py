"""``minijaxnet sweep``: a grid from flags, a table, arrays on disk, what it refuses, and that it goes on."""

import json
import os
import signal
import textwrap
import time

import jax
import numpy as np
import pytest
from kits.command import call, rows_in, run

import minijaxnet as mjn
from minijaxnet.cli import sweep as cli_sweep
from minijaxnet.run.lock import hold
from minijaxnet.sweeps import grid

FILE = """
    import jax, jax.numpy as jnp, numpy as np
    import minijaxnet as mjn

    def init(key, *, scale=1.0, power=1):
        return {"w": scale**power * jax.random.normal(key)}

    def loss(params, batch):
        return jnp.mean((params["w"] * batch.x - batch.y) ** 2)

    def data(*, slope=3.0):
        x = np.linspace(-1, 1, 8)
        return mjn.Batch(x, slope * x), mjn.Batch(x, slope * x)

    experiment = mjn.Experiment(
        "line", init, loss, data, metrics={"weight": lambda params, batch: params["w"]},
        defaults=mjn.Settings(steps=40, learning_rate=0.5),
    )
"""


# One program for all that these stand in.
BLOCKWISE = ("--learning-rate", "0.01,0.1,0.5", "--seeds", 4, "--steps", 30, "--block", 1)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Call a verb on the file: how it went, and the folder that it made."""
    jax.devices()  # which no flag can divide any more
    monkeypatch.chdir(tmp_path)
    return lambda *flags, verb="sweep": run(tmp_path, textwrap.dedent(FILE), *flags, verb=verb, head="")


def test_a_grid_of_rates_and_seeds_is_shown_and_written_and_a_seed_is_the_run_of_that_seed(sweep):
    code, out, _, folder = sweep("--learning-rate", "1e-3:1:4log", "--seeds", 3, "--scale", "2:2:1")
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
    alone = sweep("--seed", 2, "--scale", 2, "--learning-rate", 0.1, verb="run")
    first, *_, last = rows_in(alone.folder)
    assert arrays["losses"][2, 2, 0] == pytest.approx(first["loss"], rel=1e-6)
    assert arrays["test_weight"][2, 2] == pytest.approx(last["test_weight"], rel=1e-6)


def test_sizes_of_init_have_a_program_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = FILE.replace("scale=1.0, power=1", "width=2").replace(
        "scale**power * jax.random.normal(key)", "jnp.sum(jax.random.normal(key, (width,)))"
    )
    called = run(tmp_path, textwrap.dedent(text), "--width", "2,3", "--seeds", 2, "--steps", 5, verb="sweep", head="")
    assert called.code == 0, called
    arrays = np.load(called.folder / "sweep.npz")
    assert arrays["axis_width"].tolist() == [2, 3] and arrays["losses"].shape == (2, 2, 5)


def test_a_wrong_gradient_by_hand_is_not_swept_unless_unchecked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_hand = "value_and_gradient=lambda p, b: (loss(p, b), {'w': jnp.mean((p['w'] * b.x - b.y) * b.x)}),"
    text = textwrap.dedent(FILE.replace('"line", init, loss, data,', f'"line", init, loss, data, {by_hand}'))
    called = run(tmp_path, text, "--steps", 5, verb="sweep", head="")
    assert (called.code, called.folder) == (1, None)
    assert "NOT RIGHT" in called.out and "a factor 1/2" in called.out and "The sweep was not started" in called.out
    assert run(tmp_path, text, "--steps", 5, "--unchecked", verb="sweep", head="").code == 0


@pytest.mark.parametrize("sizes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_numbers_of_init_batch_sizes_and_options_of_optax_are_axes(sizes, sweep):
    batches = ("--batch-size", "2,4") if sizes > 1 else ()
    flags = ("--scale", "0.5,2", "--optimizer", "sgd", "--optimizer-options", "momentum=0:0.9:3", *batches)
    code, out, _, folder = sweep(*flags, "--seeds", 2, "--steps", 5, "--power", 2, "--data-slope", 1)
    assert code == 0
    arrays = np.load(folder / "sweep.npz")
    losses = arrays["losses"]
    assert losses.shape == (*[2] * (sizes > 1), 2, 3, 2, 5)  # batch size, scale, momentum, seed, steps
    if sizes > 1:
        np.testing.assert_array_equal(arrays["axis_batch_size"], [2, 4])
    for table in ("scale", "momentum", *["batch_size"] * (sizes > 1)):
        assert f"\n{table} " in out
    np.testing.assert_array_equal(losses[..., 0, 0, :, 0], losses[..., 0, 2, :, 0])
    assert not np.array_equal(losses[..., 0, 0, :, -1], losses[..., 0, 2, :, -1])


def test_where_everything_diverges_the_table_is_printed_and_the_code_is_1(sweep):
    code, out, _, folder = sweep(*BLOCKWISE, "--learning-rate", "1e20,1e30")
    assert code == 1
    assert out.count("100.0 %") == 2 and "no descent ended at a finite loss" in out
    assert (np.load(folder / "sweep.npz")["status"] == mjn.DIVERGED).all()
    assert json.loads((folder / "result.json").read_text()) == {"status": "DONE", "best": None}


# --- Stopped, and resumed ---------------------------------------------------------------------------------------------


def interrupting(monkeypatch, signum, at=1):
    """Sweeps are stopped when so many descents are done, each of which takes a while."""
    on_host = grid._on_host

    def slowly(leaf):
        time.sleep(0.02)
        return on_host(leaf)

    def stop(done, count):
        if done >= at:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr("minijaxnet.sweeps.program._workers", lambda _: (1, 1_000))
    monkeypatch.setattr(grid, "_on_host", slowly)
    monkeypatch.setattr(cli_sweep, "_on_progress", lambda: stop)


@pytest.mark.parametrize(
    ("signum", "flags", "count"),
    [(signal.SIGTERM, (), 12), pytest.param(signal.SIGINT, ("--batch-size", "2,4"), 24, marks=pytest.mark.slow)],
    ids=["SIGTERM", "SIGINT, batch sizes"],
)
def test_a_stopped_sweep_keeps_what_is_finished_and_is_resumed_block_by_block_to_the_same_files(
    sweep, tmp_path, monkeypatch, signum, flags, count
):
    flags = (*BLOCKWISE, *flags)
    whole = sweep(*flags).folder
    with monkeypatch.context() as patched:
        interrupting(patched, signum, at=3)
        code, out, _, folder = sweep(*flags)
    assert code == 128 + signum and f"minijaxnet resume {folder} goes on" in out
    arrays = np.load(folder / "sweep.npz")
    done = arrays["finished"].sum()
    assert f"stopped by {signum.name} after {done} of {count} descents" in out and 3 <= done < 12
    if count == 24:  # nothing is known of the second size
        assert arrays["axis_batch_size"].tolist() == [2, 4] and not arrays["finished"][1].any()
    kept = [path.name for path in folder.glob("blocks/*/*")]
    assert len(kept) == done and "from-0-size-1.safetensors" in kept
    assert "interrupted" in call("runs").out
    with hold(folder):
        called = call("resume", folder)
    assert called.code == 2 and "holds this run" in called.err
    assert call("resume", folder).code == 0
    assert not (folder / "blocks").exists()
    for name in ("sweep.npz", "result.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert call("resume", folder).code == 2


def test_what_has_come_to_something_is_kept_when_its_end_fails(sweep, monkeypatch):
    def fails(*arguments, **options):
        raise KeyboardInterrupt(signal.SIGTERM)

    monkeypatch.setattr("minijaxnet.cli.sweep_report.shutil.rmtree", fails)
    code, _, _, folder = sweep(*BLOCKWISE)
    assert code == 143
    assert (folder / "sweep.npz").exists() and (folder / "result.json").exists()


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        *(
            (
                ["--learning-rate", text],
                f"learning_rate: got '{text}'; expected a number, several with commas, or from:",
            )
            for text in ("", "fast", "1:2", "1:2:3:4", "1:2:x", "1:2:0", "0:1:3log", "nan", "1,,2", "inf")
        ),
        (["--learning-rate", "0:1:3"], "learning_rate: got 0.0; expected a positive"),
        (["--seeds", "0"], "seeds: got 0; expected at least 1"),
        (["--batch-size", "1.5"], "batch_size: got 1.5; expected whole numbers"),
        (["--batch-size", "99"], "batch_size: got 99; expected at most 8"),
        (["--power", "0.5"], "power: got 0.5; expected whole numbers"),
        (["--optimizer-options", "momentum"], "optimizer_options: got 'momentum'; expected name=number"),
        (["--optimizer-options", "momentum=0.9"], "optimizer: gd takes no momentum"),
        (["--devices", "0"], "devices: got 0; expected at least 1"),
        (["--devices", "99"], "devices: got 99; expected at most"),
        (["--devices", "some"], "--devices"),
        (["--resume-latest"], "Unrecognized options: --resume-latest"),
    ],
)
def test_what_cannot_be_swept_is_refused_and_leaves_no_folder(sweep, flags, words):
    code, out, err, folder = sweep(*flags)
    assert code == 2 and words in err and folder is None
    assert not out or "--devices" in flags, "nothing is announced"
