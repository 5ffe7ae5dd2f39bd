"""run, resume, runs and show: what a stopped run leaves, and that it goes on to the same files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minijaxnet.cli import main
from minijaxnet.run.lock import hold, owner

fit_module = sys.modules["minijaxnet.run.fit"]

LINE = """
"A line through points."
import jax, jax.numpy as jnp
import minijaxnet as mjn
from beside import FACTOR

def init(key, *, scale=1.0):
    return {"slope": scale * jax.random.normal(key), "offset": jnp.zeros(())}

def loss(params, batch):
    return jnp.mean((params["slope"] * batch.x + params["offset"] - batch.y) ** 2)

def value_and_gradient(params, batch):
    errors = params["slope"] * batch.x + params["offset"] - batch.y
    return jnp.mean(errors**2), {"slope": FACTOR * jnp.mean(errors * batch.x), "offset": FACTOR * jnp.mean(errors)}

def data():
    x = jnp.linspace(-1, 1, 20)
    return mjn.Batch(x, 3 * x + 1), mjn.Batch(x, 3 * x + 1)

experiment = mjn.Experiment("line", init, loss, data, defaults=mjn.Settings(steps=60, learning_rate=0.1))
"""
BY_HAND = LINE.replace("loss, data,", "loss, data, value_and_gradient=value_and_gradient,")
SAME = ("metrics.jsonl", "params.safetensors", "result.json")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with an experiment."""
    (tmp_path / "line.py").write_text(LINE, encoding="utf-8")
    (tmp_path / "beside.py").write_text("FACTOR = 2\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(fit_module, "_CHUNK_S", 0.0)
    sys.modules.pop("beside", None)
    yield tmp_path
    sys.modules.pop("beside", None)


def run(*flags, runs="runs"):
    code = main(["run", "line.py", "--bench-seconds", "0", "--no-report", "--runs", runs, *map(str, flags)])
    return code, next(Path(runs).glob("*"), None)


def read(folder, *names):
    return {name: (Path(folder) / name).read_bytes() for name in names}


def stop_after(monkeypatch, steps, signum=signal.SIGINT):
    """The next runs are stopped when they have come so far."""
    keep = sys.modules["minijaxnet.run.keeper"].Keeper.look

    def look(self, step, state):
        if step == steps:
            os.kill(os.getpid(), signum)
        keep(self, step, state)

    monkeypatch.setattr("minijaxnet.run.keeper.Keeper.look", look)


@pytest.mark.parametrize(
    ("signum", "flags"),
    [
        (signal.SIGINT, ()),
        (signal.SIGTERM, ("--batch-size", 6)),
        (signal.SIGTERM, ("--optimizer", "adam", "--batch-size", 6)),
    ],
    ids=str,
)
def test_a_stopped_run_is_resumed_to_the_same_files(here, monkeypatch, capsys, signum, flags):
    code, whole = run(*flags, runs="whole")
    assert code == 0
    with monkeypatch.context() as patched:
        stop_after(patched, 21, signum)
        code, folder = run(*flags)
    out = capsys.readouterr().out
    assert code == 128 + signum and f"stopped by {signum.name} after 22 steps" in out
    assert f"minijaxnet resume {folder} goes on" in out
    main(["runs"])
    assert "interrupted" in capsys.readouterr().out
    moved = shutil.move(folder, here / "elsewhere")
    assert main(["resume", str(moved)]) == 0
    assert "went on from step 22" in capsys.readouterr().out
    assert read(moved, *SAME) == read(whole, *SAME)


def test_what_another_process_carries_out_is_running_and_not_resumed(here, capsys):
    _, folder = run()
    before = read(folder, *SAME)
    capsys.readouterr()
    with hold(folder):
        main(["runs"])
        assert "running" in capsys.readouterr().out
        assert main(["resume", str(folder), "--force"]) == 2
    assert f"process {os.getpid()}" in capsys.readouterr().err
    assert before == read(folder, *SAME)


def test_a_run_that_is_done_is_not_resumed_unless_forced_and_stays_as_it_is(here, capsys):
    _, folder = run()
    before = read(folder, *SAME)
    assert main(["resume", str(folder)]) == 2
    assert "this run is done" in capsys.readouterr().err
    assert main(["resume", str(folder), "--force"]) == 0
    assert before == read(folder, *SAME)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("line.py", "3 * x + 1), mjn", "3 * x + 2), mjn"),
        ("beside.py", "2", "2.0"),
        ("config", '"steps": 60', '"steps": 80'),
    ],
)
def test_other_code_or_another_config_is_refused_with_a_diff(here, monkeypatch, capsys, file, old, new):
    with monkeypatch.context() as patched:
        stop_after(patched, 21)
        _, folder = run()
    capsys.readouterr()
    path = here / file if file != "config" else here / folder / "config.json"
    path.write_text(path.read_text().replace(old, new), encoding="utf-8")
    sys.modules.pop("beside", None)
    assert main(["resume", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "got other code or another config than it was started with" in err
    assert any(line.startswith("-") and old in line for line in err.splitlines())
    assert any(line.startswith("+") and new in line for line in err.splitlines())
    assert main(["resume", str(folder), "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "resume: got nothing; expected the folder of one run"),
        (["a", "b"], "resume: got a b; expected the folder of one run"),
        (["nowhere"], "nowhere: there is no config.json; expected the folder of a run"),
        (["odd"], "odd/config.json: expected the settings of a run"),
        (["broken"], "broken/config.json: expected the settings of a run"),
        (["lost"], "lost: its experiment gone.py is not there"),
    ],
)
def test_what_is_no_run_is_not_resumed(here, capsys, arguments, words):
    for name, text in {
        "odd": "[]",
        "broken": "{",
        "lost": '{"verb": "run", "file": "gone.py", "flags": {}, "init": {}, "data": {}}',
    }.items():
        (here / name).mkdir()
        (here / name / "config.json").write_text(text)
    assert main(["resume", *arguments]) == 2
    err = capsys.readouterr().err
    assert re.search(words, err), err


def test_a_wrong_gradient_is_refused_unless_unchecked(here, capsys):
    (here / "line.py").write_text(BY_HAND)
    (here / "beside.py").write_text("FACTOR = 1.99\n")
    code, folder = run()
    assert code == 1 and folder is None and "The descent was not started" in capsys.readouterr().out
    code, folder = run("--unchecked")
    assert code == 0 and json.loads((folder / "result.json").read_text())["gradient_check"]["ok"] is False


def test_a_descent_that_diverges_goes_on_at_half_the_rate_if_asked(here, capsys):
    assert run("--learning-rate", 1.5, "--steps", 2000)[0] == 1
    shutil.rmtree("runs")
    code, folder = run("--learning-rate", 1.5, "--steps", 2000, "--on-divergence", "halve-rate")
    out = capsys.readouterr().out
    assert code == 0 and "at half the learning rate" in out
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows if "event" in row]
    assert rows[-1]["loss"] < 1e-6


def test_diagnose_names_the_operation_that_is_not_finite(here, capsys):
    text = LINE.replace("return jnp.mean((params", "return jnp.log(params['slope'] - 100) + jnp.mean((params")
    (here / "line.py").write_text(text)
    assert run("--diagnose")[0] == 1
    out = capsys.readouterr().out
    assert "the first operation whose result is not finite is log, line.py:" in out and "is NaN" in out


def test_runs_and_show_tell_how_it_stands(here, monkeypatch, capsys):
    (here / "line.py").write_text(BY_HAND)
    _, folder = run("--log-every", 10)
    capsys.readouterr()
    assert main(["show", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"{folder}: done" in out and "run line.py: steps 60, learning_rate 0.1" in out and "jax " in out
    assert [line.split()[0] for line in out.splitlines() if line[:2].strip().isdigit()] == [
        "0",
        "10",
        "20",
        "30",
        "40",
        "50",
        "60",
    ]
    assert "gradient by hand: right" in out
    assert main(["runs"]) == 0
    assert "done" in (out := capsys.readouterr().out) and "60" in out and "train_loss" in out
    (folder / "result.json").unlink()
    main(["runs"])
    assert "interrupted" in capsys.readouterr().out
    (here / "empty").mkdir()
    assert main(["runs", "empty"]) == 0
    assert capsys.readouterr().out == "empty: no runs\n"
    assert main(["runs", "none"]) == 2
    assert main(["show"]) == 2


def test_a_run_that_fails_midway_says_so(here, monkeypatch, capsys):
    def fails(self, step, state):
        if step == 30:
            raise RuntimeError("no more")

    monkeypatch.setattr("minijaxnet.run.keeper.Keeper.look", fails)
    code, folder = run()
    assert code == 2
    assert json.loads((folder / "result.json").read_text()) == {
        "status": "FAILED",
        "error": "RuntimeError: no more",
    }
    capsys.readouterr()
    main(["runs"])
    out = capsys.readouterr().out
    assert "failed" in out and "no more" in out
    monkeypatch.undo()
    os.chdir(here)
    assert main(["resume", str(folder)]) == 0


def test_killed_from_outside_it_is_resumed(here, capsys):
    """A process of its own, so many steps that it never ends by itself."""
    flags = [
        "--steps",
        "300000",
        "--log-every",
        "1000",
        "--bench-seconds",
        "0",
        "--no-report",
        "--checkpoint-seconds",
        "0",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "minijaxnet", "run", "line.py", "--runs", "runs", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 60
    while not list(here.glob("runs/*/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [folder] = here.glob("runs/*")
    main(["runs"])
    assert "interrupted" in capsys.readouterr().out
    fit_module._CHUNK_S = 0.1
    assert main(["resume", str(folder)]) == 0
    code = main(["run", "line.py", "--runs", "whole", *flags])
    [whole] = here.glob("whole/*")
    assert code == 0
    assert read(folder, *SAME) == read(whole, *SAME)


@pytest.mark.parametrize(
    ("signum", "flags"), [(signal.SIGINT, ("--batch-size", "5,10")), (signal.SIGTERM, ())], ids=str
)
def test_a_stopped_sweep_is_resumed_block_by_block_to_the_same_files(here, monkeypatch, capsys, signum, flags):
    command = ["sweep", "line.py", "--learning-rate", "0.01,0.1,0.5", "--seeds", "4", "--steps", "30", "--block", "1"]
    command += flags
    assert main([*command, "--runs", "whole"]) == 0
    [whole] = here.glob("whole/*")
    grid = sys.modules["minijaxnet.sweeps.grid"]
    on_host = grid._on_host

    def slowly(leaf):
        time.sleep(0.02)
        return on_host(leaf)

    def stop(done, count):
        if done == 3:
            os.kill(os.getpid(), signum)

    with monkeypatch.context() as patched:
        patched.setattr("minijaxnet.sweeps.program._workers", lambda _: (1, 1_000))
        patched.setattr(grid, "_on_host", slowly)
        patched.setattr("minijaxnet.cli.sweep._on_progress", lambda: stop)
        assert main([*command, "--runs", "runs"]) == 128 + signum
    [folder] = here.glob("runs/*")
    out = capsys.readouterr().out
    assert f"stopped by {signum.name}" in out and f"minijaxnet resume runs/{folder.name} goes on" in out
    kept = [path.name for path in folder.glob("blocks/*/*")]
    assert 3 <= len(kept) < 12 and "from-0-size-1.safetensors" in kept
    main(["runs"])
    assert "interrupted" in capsys.readouterr().out
    assert main(["resume", str(folder)]) == 0
    assert not (folder / "blocks").exists()
    assert read(folder, "sweep.npz", "result.json") == read(whole, "sweep.npz", "result.json")
    assert main(["resume", str(folder)]) == 2


def test_a_damaged_block_is_run_again(here, monkeypatch, capsys):
    from minijaxnet.run.blocks import blocks_below

    blocks = blocks_below(here / "blocks")
    blocks.save(0, {"loss": np.arange(3.0)})
    [path] = here.glob("blocks/*")
    again = blocks_below(here / "blocks")
    like = {"loss": np.zeros(3)}
    assert again.size == 3 and again.load(0, like)["loss"].tolist() == [0, 1, 2] and again.load(3, like) is None
    path.write_bytes(path.read_bytes()[:-2])
    assert blocks_below(here / "blocks").load(0, like) is None


def test_event_files_hold_the_metrics_also_after_a_resume(here, monkeypatch, capsys):
    records = pytest.importorskip("tensorboardX.record_writer")
    from tensorboardX.proto.event_pb2 import Event

    with monkeypatch.context() as patched:
        stop_after(patched, 21)
        _, folder = run("--tensorboard", "--log-every", 6)
    assert main(["resume", str(folder)]) == 0
    found: dict = {}
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.suffix):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[12 + length + 4 :]
            if event.session_log.status:  # a restart: what came from this step on is void
                found = {key: value for key, value in found.items() if key[0] < event.step}
            found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    assert records
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = {(row["step"], name): value for row in rows for name, value in row.items() if name != "step"}
    assert found == pytest.approx(expected, rel=1e-6)


def test_without_tensorboardx_it_says_what_to_install_and_leaves_nothing(here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    code, folder = run("--tensorboard")
    assert code == 2 and folder is None
    assert 'pip install "minijaxnet[tensorboard]"' in capsys.readouterr().err


def test_a_module_that_names_no_file_of_its_own_is_not_kept(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "odd", type(sys)("odd"))
    monkeypatch.setattr(sys.modules["odd"], "__file__", "odd.py", raising=False)
    _, folder = run()
    assert sorted(path.name for path in (folder / "code").iterdir()) == ["beside.py", "config.json", "line.py"]


def test_the_run_is_held_until_all_of_it_is_written(here, monkeypatch):
    module, owners = sys.modules["minijaxnet.cli.carry_out"], []
    for name in ("write_params", "write_json", "compare_with_rivals"):
        real = getattr(module, name)

        def spied(*arguments, real=real, **options):
            owners.append(owner(next(Path("runs").glob("*"))))
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, spied)
    assert main(["run", "line.py", "--bench-seconds", "0.05", "--no-report"]) == 0
    assert len(owners) >= 4 and {found["pid"] for found in owners} == {os.getpid()}


def test_what_has_come_to_something_is_kept_when_its_end_fails(here, monkeypatch):
    def fails(*arguments, **options):
        raise KeyboardInterrupt(signal.SIGTERM)

    monkeypatch.setattr("minijaxnet.cli.sweep.shutil.rmtree", fails)
    command = ["sweep", "line.py", "--seeds", "3", "--steps", "5"]
    assert main(command) == 143
    [folder] = here.glob("runs/*")
    assert (folder / "sweep.npz").exists() and (folder / "result.json").exists()


def test_a_module_that_is_imported_late_is_no_change(here, monkeypatch, capsys):
    (here / "late.py").write_text("POINTS = 20\n")
    text = LINE.replace("x = jnp.linspace(-1, 1, 20)", "from late import POINTS; x = jnp.linspace(-1, 1, POINTS)")
    (here / "line.py").write_text(text)
    with monkeypatch.context() as patched:
        stop_after(patched, 21)
        _, folder = run()
    assert (folder / "code" / "late.py").exists()
    sys.modules.pop("late")
    assert main(["resume", str(folder)]) == 0
    sys.modules.pop("late", None)


def test_other_data_is_refused(here, monkeypatch, capsys):
    (here / "y.txt").write_text("3")
    text = LINE.replace("return mjn.Batch(x, 3 * x + 1)", "f = float(open('y.txt').read()); return mjn.Batch(x, f * x)")
    (here / "line.py").write_text(
        text.replace("open('y.txt').read()", "__import__('pathlib').Path('y.txt').read_text()")
    )
    with monkeypatch.context() as patched:
        stop_after(patched, 21)
        _, folder = run()
    (here / "y.txt").write_text("4")
    assert main(["resume", str(folder)]) == 2
    assert "got other data than it was started with" in capsys.readouterr().err
    assert main(["resume", str(folder), "--force"]) == 0


def test_other_surroundings_are_told(here, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        stop_after(patched, 21)
        _, folder = run()
    path = folder / "environment.json"
    found = json.loads(path.read_text())
    found["versions"]["jax"], found["xla_flags"] = "0.1", "--xla_odd"
    path.write_text(json.dumps(found))
    assert main(["resume", str(folder)]) == 0
    err = capsys.readouterr().err
    assert "warning: jax was 0.1, now it is" in err and "warning: xla_flags was --xla_odd, now it is : bits" in err


def test_a_run_is_resumed_from_elsewhere_and_without_an_environment(here, monkeypatch, tmp_path_factory, capsys):
    with monkeypatch.context() as patched:
        stop_after(patched, 21)
        _, folder = run()
    (folder / "environment.json").unlink()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert main(["resume", f"{here / folder}/"]) == 0


def test_all_checkpoints_damaged_is_an_error_that_leaves_the_result_alone(here, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        stop_after(patched, 21)
        _, folder = run()
    before = read(folder, "result.json", "metrics.jsonl")
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert main(["resume", str(folder)]) == 2
    assert "got no checkpoint that is whole" in capsys.readouterr().err
    assert read(folder, "result.json", "metrics.jsonl") == before


def test_the_batch_that_is_diagnosed_is_that_of_the_step(here, capsys):
    text = LINE.replace(
        "return jnp.mean((params", "return jnp.sum(jnp.log(1 - (batch.x == -1))) * params['slope'] + jnp.mean((params"
    )
    (here / "line.py").write_text(text)
    code, _ = run("--diagnose", "--batch-size", 4, "--seed", 2)
    out = capsys.readouterr().out
    assert code == 1 and "DIVERGED at step" in out and "DIVERGED at step 0" not in out
    assert "the first operation whose result is not finite is log, line.py:" in out


def test_a_sweep_that_another_holds_is_refused(here, monkeypatch, capsys):
    assert main(["sweep", "line.py", "--seeds", "2", "--steps", "5"]) == 0
    [folder] = here.glob("runs/*")
    with hold(folder):
        assert main(["resume", str(folder), "--force"]) == 2
    assert "holds this run" in capsys.readouterr().err


def test_show_prints_each_row_once(here, capsys):
    _, folder = run("--log-every", 1)
    capsys.readouterr()
    main(["show", str(folder)])
    steps = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:2].strip().isdigit()]
    assert len(steps) == len(set(steps)) and steps[-1] == "60"


def test_texts_that_are_divided_otherwise_have_another_digest():
    from minijaxnet.run.code import digest

    assert digest({"ab": "c"}) != digest({"a": "bc"})
