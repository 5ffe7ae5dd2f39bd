"""``run`` and ``resume`` in several processes: one folder, the same bits, whoever dies, and no quarrel unheard."""

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from kits.processes import LINE, MINIJAXNET, commands, ended, started

from minijaxnet.cli import main, supervisor
from minijaxnet.cli.supervisor import stop_with_supervisor
from minijaxnet.run.signals import heard

SHARES = (
    LINE.replace("*, noise=0.0", "*, process_id=0, num_processes=1")
    .replace("linspace(-1, 1, 64)", "linspace(-1, 1, 64).reshape(num_processes, -1)[process_id]")
    .replace(" + noise", "")
    .replace('"line"', '"shares"')
)

QUICK = ("--bench-seconds", "0", "--no-report", "--log-every", "50", "--checkpoint-every", "20")


@pytest.fixture
def line(tmp_path):
    (tmp_path / "line.py").write_text(LINE)
    return tmp_path


def run(folder, *arguments, **options):
    return started([*MINIJAXNET, "run", "line.py", *QUICK, *arguments], cwd=folder, **options)


def the_run(folder):
    [found] = folder.glob("*")
    return found


def rows(folder):
    return [json.loads(line) for line in (the_run(folder) / "metrics.jsonl").read_text().splitlines()]


def bits(folder):
    return [(the_run(folder) / name).read_bytes() for name in ("metrics.jsonl", "params.safetensors", "result.json")]


def is_free(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def children(process):
    """The processes that a supervisor started, by their ids."""
    found = {}
    for pid in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if "--process-id" in words:  # else it is just being started
            found[int(words[words.index("--process-id") + 1])] = int(pid)
    return found


def wait_for_checkpoint(process, runs):
    deadline = time.monotonic() + 100
    while not list(runs.glob("*/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_are_two_devices_to_the_bit_also_when_one_is_killed(line):
    [(code, _, err)] = ended([run(line, "--devices", 2, "--runs", "devices")])
    assert code == 0, err
    killed = run(line, "--processes", 2, "--restarts", 1, "--runs", "killed", "--steps", 300)
    wait_for_checkpoint(killed, line / "killed")
    os.kill(children(killed)[1], signal.SIGKILL)
    [(code, out, err)] = ended([killed])
    assert code == 0, err
    assert "process 1 was ended by SIGKILL" in err and "all start again (1 of 1)" in err and "went on from step" in out
    assert "on 2 devices in 2 processes" in out
    assert bits(line / "killed") == bits(line / "devices")


def test_stopped_in_two_processes_it_goes_on_in_one(line):
    stopped = run(line, "--processes", 2, "--devices", 4, "--runs", "stopped", "--steps", 100_000)
    wait_for_checkpoint(stopped, line / "stopped")
    os.kill(children(stopped)[1], signal.SIGINT)  # one of them is asked, and both stop after the same step
    [(code, out, err)] = ended([stopped])
    folder = the_run(line / "stopped")
    assert (
        code == 130 and "stopped by SIGINT" in out and f"minijaxnet resume {folder.relative_to(line)} goes on" in out
    ), err
    config = json.loads((folder / "config.json").read_text())
    assert config["flags"]["processes"] == 2 and "coordinator" not in config["flags"]
    at = json.loads((folder / "result.json").read_text())["steps_taken"]
    goes_on = started([*MINIJAXNET, "resume", folder, "--processes", 1, "--devices", 1], cwd=line)
    deadline = time.monotonic() + 60
    while json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] <= at:
        assert goes_on.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    goes_on.terminate()
    [(code, out, err)] = ended([goes_on])
    assert code == 143 and f"went on from step {at:,}" in out and "float32 on cpu" in out, err
    found = rows(line / "stopped")
    assert [row["step"] for row in found] == sorted({row["step"] for row in found})
    losses = [row["loss"] for row in found]
    assert losses == sorted(losses, reverse=True) or losses[-1] < 1e-9


def test_processes_that_were_not_started_alike_are_refused_with_the_difference(line):
    (line / "other").mkdir()
    (line / "other" / "line.py").write_text(LINE.replace("3 * x", "2 * x"))
    other = {1: ("--learning-rate", "0.02", "--data-noise", "0.5")}
    files = ["line.py", "other/line.py"]
    both = commands(2, each=lambda rank: ("run", files[rank], *QUICK, *other.get(rank, ())), cwd=line)
    for code, _, err in ended(both):
        assert code == 2
        assert "the processes were not started alike; expected the same of each\nprocess 1:" in err
        assert "learning_rate: got 0.02; expected 0.01, as in process 0" in err
        assert "data_noise: got 0.5; expected 0.0, as in process 0" in err
        assert "data_sha256: got" in err
        assert (
            "-    return mjn.Batch(x, 3 * x + 1 + noise)" in err
            and "+    return mjn.Batch(x, 2 * x + 1 + noise)" in err
        )
    assert not (line / "runs").exists()


def test_on_a_cluster_that_jax_knows_each_process_may_load_its_own_share(line):
    (line / "line.py").write_text(SHARES)
    [(code, _, err)] = ended([run(line, "--devices", 2, "--runs", "whole")])
    assert code == 0, err
    job = next(job for job in itertools.count(random.randrange(4096)) if is_free(61440 + job % 4096))
    slurm = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    arguments = ("--coordinator", "auto", "--runs", "shared")
    both = [
        run(line, *arguments, environment=slurm | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in ("0", "1")
    ]
    assert [code for code, _, _ in ended(both)] == [0, 0]
    for one, two in zip(rows(line / "whole"), rows(line / "shared"), strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    config = json.loads((the_run(line / "shared") / "config.json").read_text())
    assert config["data"] == {} and len(config["data_sha256"].split()) == 2


@pytest.mark.parametrize(
    ("how", "victim"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
    ],
)
def test_who_loses_another_machine_ends_in_time_and_says_so(line, how, victim):
    arguments = ("run", "line.py", *QUICK, "--steps", 1_000_000, "--heartbeat-seconds", 5)
    both = commands(2, *arguments, cwd=line)
    wait_for_checkpoint(both[0], line / "runs")
    [dying], [left] = (children(process).values() for process in (both[victim], both[1 - victim]))
    both[victim].kill()
    os.kill(dying, how)
    _, err = both[1 - victim].communicate(timeout=5 + 5 + 20)  # the machine may be busy
    assert both[1 - victim].returncode == 3 and f"process {1 - victim} lost another process" in err, err
    assert not Path(f"/proc/{left}").exists()
    os.kill(dying, signal.SIGKILL) if how == signal.SIGSTOP else None
    ended([both[victim]])


def test_what_processes_cannot_be_is_refused(line, capsys):
    for arguments, words in {
        ("--processes", "0"): "processes: got 0; expected at least 1",
        ("--processes", "2", "--coordinator", "h:1"): "processes: got 2, and a coordinator; expected one of the two",
        ("--restarts", "-1"): "restarts: got -1; expected at least 0",
        ("--heartbeat-seconds", "0"): "heartbeat_seconds: got 0; expected at least 1",
    }.items():
        code = main(["run", str(line / "line.py"), *arguments])
        assert (code, words in capsys.readouterr().err) == (2, True)


def test_what_a_supervisor_hears_its_processes_hear_once_and_without_it_they_stop(monkeypatch):
    theirs, held = os.pipe()
    monkeypatch.setenv("MINIJAXNET_PIPE", str(theirs))
    heard_of, asked = [], threading.Event()
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, lambda signum, frame: (heard_of.append(signum), asked.set()))
    try:
        stop_with_supervisor()
        with supervisor._signals_to([supervisor.Process(0, None, held, None)]) as came:
            signal.raise_signal(signal.SIGINT)
        assert came == [signal.SIGINT]
        assert asked.wait(10) and heard_of == [signal.SIGINT]
        asked.clear()
        with heard() as stop:  # it was told directly, too
            signal.raise_signal(signal.SIGTERM)
            os.write(held, bytes([signal.SIGTERM]))
            time.sleep(2 * supervisor._ECHO_S)
        assert stop.signum == signal.SIGTERM and heard_of == [signal.SIGINT]
        os.close(held)
        assert asked.wait(10) and heard_of == [signal.SIGINT, signal.SIGTERM]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        os.close(theirs)


def test_devices_that_processes_do_not_divide_are_refused(line):
    [(code, _, err)] = ended([run(line, "--processes", 2, "--devices", 3)])
    assert code == 2 and err.count("devices: got 3; expected a multiple of 2, the processes") == 1


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_in_time_and_comes_to_the_same_bits(line):
    [(code, _, err)] = ended([run(line, "--devices", 2, "--runs", "devices", "--steps", 2_000)])
    assert code == 0, err
    draw = random.Random(8)
    for attempt in range(20):
        runs = line / f"killed-{attempt}"
        killed = run(line, "--processes", 2, "--restarts", 1, "--runs", runs, "--steps", 2_000)
        while len(children(killed)) < 2:
            time.sleep(0.01)
        victim = children(killed)[draw.randrange(2)]
        time.sleep(draw.uniform(0, 12))
        if killed.poll() is None and Path(f"/proc/{victim}").exists():
            os.kill(victim, signal.SIGKILL)
        [(code, _, err)] = ended([killed])
        assert code == 0, err
        assert bits(runs) == bits(line / "devices"), attempt
