"""run and resume in several processes: one folder, the same bits, after a signal and after a kill."""

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from kits.command import control_characters, rows_in
from kits.processes import LINE, MINIJAXNET, commands, ended, in_time, output_of, python, started
from kits.stopped import only, results

SHARES = (
    LINE.replace("*, noise=0.0", "*, process_id=0, num_processes=1")
    .replace("linspace(-1, 1, 64)", "linspace(-1, 1, 64).reshape(num_processes, -1)[process_id]")
    .replace(" + noise", "")
    .replace('"line"', '"shares"')
)
# At a step the first process has Ctrl-C sent to who launched it, and waits until it hears of it.
STOPPING = (
    LINE
    + """
import os, signal, time
from minijaxnet.run.keeper import Keeper

is_due = Keeper.is_due

def stopping(self, step):
    if step == int(os.environ.get("STOP_AT", -1)) and jax.process_index() == 0:
        before = signal.getsignal(signal.SIGINT)
        os.kill(os.getppid(), signal.SIGINT)
        while signal.getsignal(signal.SIGINT) == before:
            time.sleep(0.01)
    return is_due(self, step)

Keeper.is_due = stopping
"""
)

QUICK = ("--bench-seconds", "0", "--no-report", "--log-every", "50", "--checkpoint-every", "20")


@pytest.fixture
def line(tmp_path):
    (tmp_path / "line.py").write_text(STOPPING)
    return tmp_path


def run(folder, *arguments, **options):
    return started([*MINIJAXNET, "run", "line.py", *QUICK, *arguments], cwd=folder, **options)


def children(process):
    """The processes that a launcher started, by their ids."""
    found = {}
    for pid in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if "--process-id" in words:  # else it is just being started
            found[int(words[words.index("--process-id") + 1])] = int(pid)
    return found


def wait_for_checkpoint(process, runs):
    with in_time():
        while not list(runs.glob("*/checkpoints/step-*")):
            assert process.poll() is None
            time.sleep(0.02)


ON_TWO_DEVICES = """
import sys
from minijaxnet.cli import main

stopped, *quick = sys.argv[1:]
assert main(["run", "line.py", *quick, "--devices", "2", "--runs", "devices"]) == 0
assert main(["resume", stopped, "--processes", "1", "--devices", "2"]) == 0
"""


def test_two_processes_are_two_devices_to_the_bit_stop_together_and_go_on_in_one(line):
    stopped = run(line, "--processes", 2, "--runs", "stopped", environment={"STOP_AT": "40"})
    [(code, out, err)] = ended([stopped])
    folder = only(line / "stopped")
    assert (code, err) == (130, "")
    assert out.count("on 2 devices in 2 processes") == out.count("stopped by SIGINT after 40 steps") == 1
    assert f"minijaxnet resume {folder.relative_to(line)} goes on" in out and not control_characters(out)
    config, result = (json.loads((folder / name).read_text()) for name in ("config.json", "result.json"))
    assert config["flags"]["processes"] == 2 and "coordinator" not in config["flags"]
    assert (result["status"], result["steps_taken"]) == ("INTERRUPTED", 40)
    assert list(folder.glob("checkpoints/step-00000040.safetensors"))
    out = output_of(python(ON_TWO_DEVICES, folder, *QUICK, cwd=line))
    assert out.count("on 2 devices (cpu") == 2 and "went on from step 40" in out
    assert results(only(line / "stopped")) == results(only(line / "devices"))


@pytest.mark.slow
def test_processes_that_were_not_started_alike_are_refused_with_the_difference(line):
    (line / "other").mkdir()
    (line / "other" / "line.py").write_text(STOPPING.replace("3 * x", "2 * x"))
    other = {1: ("--learning-rate", "0.02", "--data-noise", "0.5")}
    files = ["line.py", "other/line.py"]
    both = commands(2, each=lambda rank: ("run", files[rank], *QUICK, *other.get(rank, ())), cwd=line)
    for code, _, err in ended(both):
        assert code == 2
        assert "the processes were not started alike; expected the same of each\nprocess 1:" in err
        assert "learning_rate: got 0.02; expected 0.01, as in process 0" in err
        assert "data_noise: got 0.5; expected 0.0, as in process 0" in err
        assert "data_sha256: got" in err
        assert "-    return mjn.Batch(x, 3 * x + 1 + noise)" in err
        assert "+    return mjn.Batch(x, 2 * x + 1 + noise)" in err
    assert not (line / "runs").exists()
    [(code, _, err)] = ended([run(line, "--processes", 2, "--devices", 3)])
    assert code == 2 and "devices: got 3; expected a multiple of 2, the processes" in err


def is_free(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
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
    for one, two in zip(*(rows_in(only(line / name)) for name in ("whole", "shared")), strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    config = json.loads((only(line / "shared") / "config.json").read_text())
    assert config["data"] == {} and len(config["data_sha256"].split()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_who_loses_another_machine_ends_in_time(line, how, victim):
    arguments = ("run", "line.py", *QUICK, "--steps", 1_000_000, "--heartbeat-seconds", 5)
    both = commands(2, *arguments, cwd=line)
    wait_for_checkpoint(both[0], line / "runs")
    both[victim].send_signal(how)
    _, err = both[1 - victim].communicate(timeout=120)
    # Where JAX notices first, it aborts.
    assert both[1 - victim].returncode in (3, -signal.SIGABRT), err
    assert both[1 - victim].returncode != 3 or "minijaxnet: another process of this run is gone" in err
    both[victim].kill()
    ended([both[victim]])


@pytest.mark.slow
def test_killed_at_many_moments_it_ends_in_time_and_comes_to_the_same_bits(line):
    [(code, _, err)] = ended([run(line, "--devices", 2, "--runs", "devices", "--steps", 2_000)])
    assert code == 0, err
    draw = random.Random(8)
    for attempt in range(4):
        runs = line / f"killed-{attempt}"
        flags = ("--processes", 2, "--runs", runs, "--steps", 2_000, "--resume-latest")
        killed = run(line, *flags)
        with in_time():
            while len(children(killed)) < 2:
                time.sleep(0.01)
        victim = children(killed)[draw.randrange(2)]
        time.sleep(draw.uniform(0, 12))
        if killed.poll() is None and Path(f"/proc/{victim}").exists():
            os.kill(victim, signal.SIGKILL)
        [(code, _, err)] = ended([killed])
        assert code == 0 or (code == 3 and "was ended by SIGKILL" in err), err
        [(code, _, err)] = ended([run(line, *flags)])
        assert code == 0, err
        assert results(only(runs)) == results(only(line / "devices")), attempt
