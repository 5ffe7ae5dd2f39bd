"""``minijaxnet tune``: what is tried, what is refused, what is suggested, and that it leaves nothing behind."""

import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minijaxnet as mjn
from minijaxnet.bench import ArmTiming, StepComparison
from minijaxnet.bench.peers import Comparison, Peer, PeerFailed, Row
from minijaxnet.bench.switches import FLATTENED, SWITCHES, export_line, joined, mildest, winners
from minijaxnet.bench.worker import Arm, first
from minijaxnet.cli import main, tune

# An experiment that computes something else, but for rounding the same or too much where XLA_FLAGS says so.
TEXT = """
    import os, jax, jax.numpy as jnp
    import minijaxnet as mjn

    FLAGS = os.environ.get("XLA_FLAGS", "")
    FACTOR = 1.01 if "vector_width=128" in FLAGS else 1 + 2**-22 if "vector_width=512" in FLAGS else 1.0

    def loss(params, batch):
        return FACTOR * jnp.mean((jnp.tanh(params["w"] * batch.x) - batch.y) ** 2)

    def data():
        x = jnp.linspace(-1, 1, 6)
        return mjn.Batch(x, x**2 + 1), mjn.Batch(x, x**2)

    experiment = mjn.Experiment(
        "line", lambda key, *, start=0.5: {"w": start * jnp.ones((3, 1))}, loss, data, defaults=mjn.Settings(steps=9)
    )
"""
A, B, C = "--xla_a=1", "--xla_b=1", "--xla_b=2"
ABC = {"a": A, "b one": B, "b two": C}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    (tmp_path / "it.py").write_text(textwrap.dedent(TEXT), encoding="utf-8")
    return tmp_path / "it.py"


@pytest.fixture
def tuned(file, capsys):
    def run(*flags):
        try:
            code = main(["tune", "it.py", "--seconds", "0.1", *flags])
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run


def comparison(control=1.0, *, untimed=(), **ratios):
    """Made up: arms whose times are so many times the baseline's, on a machine that drifts; names with _ for blanks."""
    drift = 1 + 0.3 * np.random.default_rng(0).random(30)
    jitter = np.random.default_rng(1).permutation(np.linspace(0.99, 1.01, 30))
    rows = {name.replace("_", " "): Row(True, 0.5, ratio * drift * jitter, "x") for name, ratio in ratios.items()}
    rows = {tune.NOW: Row(True, 0.5, drift, "x")} | rows
    return Comparison(rows, control * drift * jitter[::-1], drift, dict(untimed))


# --- What is tried --------------------------------------------------------------------------------------------------


def test_what_is_tried_are_flags_of_the_platform_that_do_not_change_results():
    assert set(SWITCHES) == {"cpu", "gpu"}
    for platform, other in (("cpu", "gpu"), ("gpu", "cpu")):
        groups = SWITCHES[platform]
        names = [name for group in groups for name in group]
        flags = [flag for group in groups for flag in group.values()]
        assert len(set(names)) == len(names) and len(set(flags)) == len(flags)
        assert all(flag.startswith("--xla_") and "=" in flag and not set(flag) & set(" \"'$") for flag in flags)
        assert not any(f"xla_{other}_" in flag or "fast_math" in flag or "excess_precision" in flag for flag in flags)
        assert max(map(len, groups)) <= 8, "each is a process"
    sizes = [flag.rpartition("=")[2] for flag in SWITCHES["cpu"][0].values()]
    assert sizes == sorted(sizes, key=int), "the mildest first"


def test_flags_that_are_there_come_first_and_a_shell_reads_the_line_as_it_is_meant():
    assert joined("--a=1  --b=2", [C]) == f"--a=1 --b=2 {C}"
    for flags in ("--a=1", "--a=1 --b=2", "--a=$HOME", '--a="x y"', "--a=`ls`", "--a='x'", "--a=!x"):
        command = f'{export_line(flags)}; printf %s "$XLA_FLAGS"'
        assert subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout == flags
        assert shlex.split(export_line(flags)) == ["export", f"XLA_FLAGS={flags}"]


# --- What is suggested ----------------------------------------------------------------------------------------------


def test_of_each_flag_that_wins_the_mildest_value_does_the_fastest_flag_first():
    found = tune.compared(comparison(a=0.9, b_one=0.5, b_two=0.499), share=3)
    assert winners(found, ABC) == ["b one", "a"]
    assert winners(tune.compared(comparison(a=0.3, b_one=0.5, b_two=0.4), share=3), ABC) == ["a", "b two"]
    assert winners(tune.compared(comparison(a=1.0, b_one=1.3, b_two=1.2), share=3), ABC) == []


def test_what_the_baseline_differs_by_from_itself_wins_nothing():
    assert winners(tune.compared(comparison(0.9, a=0.93, b_one=0.7), share=2), ABC) == ["b one"]


def test_many_candidates_need_wider_intervals():
    found = comparison(a=0.9)
    alone, of_many = (tune.compared(found, share=share).ratios["a"] for share in (1, 50))
    assert of_many.low < alone.low and alone.high < of_many.high
    arms = {name: ArmTiming(0.5, row.samples_s) for name, row in found.rows.items()}
    assert StepComparison(tune.NOW, arms, found.control_s, found.sentinel_s).ratios == {
        "a": tune.compared(found, share=2).ratios["a"]
    }


def test_only_one_is_mildest_of_one():
    assert mildest(tune.compared(comparison(a=0.9), share=1).ratios) == "a"


@pytest.fixture
def scripted(tuned, monkeypatch):
    """Tune with what was measured made up: what was asked for, round by round, and what came of it."""

    def run(*found, present="", groups=(ABC,), flags=()):
        monkeypatch.setenv("XLA_FLAGS", present)
        asked, answers = [], iter(found)

        def measure(arms, task, begun, *, seconds):
            asked.append((dict(arms), seconds))
            return next(answers)

        monkeypatch.setattr(tune, "SWITCHES", {"cpu": groups})
        monkeypatch.setattr(tune, "measure", measure)
        return asked, *tuned("--seconds", "4", *flags)

    return run


def test_winners_are_measured_once_more_alone_and_together(scripted):
    asked, code, out, _ = scripted(
        comparison(a=0.8, b_one=0.7, b_two=0.6), comparison(a=0.8, b_two=0.6, all_of_these=0.5), present="--xla_mine=1"
    )
    assert code == 0
    assert asked == [
        ({"a": [A], "b one": [B], "b two": [C]}, 3.0),
        ({"b two": [C], "a": [A], "all of these": [C, A]}, 1.0),
    ]
    assert f'    export XLA_FLAGS="--xla_mine=1 {C} {A}"\n' in out
    assert "a step takes 0.5 times as long" in out


def test_one_flag_is_suggested_where_two_are_not_faster(scripted):
    _, code, out, _ = scripted(comparison(a=0.8, b_two=0.6), comparison(b_two=0.5, a=0.9, all_of_these=0.5))
    assert code == 0 and f'export XLA_FLAGS="{C}"\n' in out


def test_what_wins_once_only_is_not_suggested(scripted):
    asked, code, out, _ = scripted(comparison(b_one=0.8), comparison(b_one=1.0))
    assert code == 0 and len(asked) == 2
    assert "that does not hold" in out and "export" not in out


@pytest.mark.sweep
def test_what_only_seems_faster_among_many_is_measured_once_more(scripted):
    many = {f"other {number}": f"--xla_other_{number}=1" for number in range(200)}
    seems = comparison(a=1.0, **{name.replace(" ", "_"): 1.0 for name in many})
    rows = seems.rows["a"].samples_s  # most rounds are clear, some are not
    rows *= np.where(np.arange(30) % 5 == 0, 1.2, 0.8)
    asked, code, out, _ = scripted(seems, comparison(a=0.8), groups=({"a": A} | many,))
    (shown,) = {line.split()[-1] for line in out.split("once more")[0].splitlines() if line.startswith("a  ")}
    assert shown == "indistinguishable" and asked[1][0] == {"a": [A]}
    assert code == 0 and f'export XLA_FLAGS="{A}"' in out


def test_nothing_wins_in_any_group(scripted):
    asked, code, out, _ = scripted(comparison(a=1.0), comparison(b_one=1.2), groups=({"a": A}, {"b one": B}))
    assert code == 0 and [list(flags) for flags, _ in asked] == [["a"], ["b one"]]
    assert out.endswith("nothing that was tried is surely faster than what you have\n") and "export" not in out


def test_winners_of_all_groups_are_combined(scripted):
    groups = ({"a": A}, {"b one": B})
    asked, *_ = scripted(comparison(a=0.5), comparison(b_one=0.7), comparison(all_of_these=0.4), groups=groups)
    assert asked[-1][0]["all of these"] == [A, B]


def test_an_optimizer_of_optax_is_tried_flattened_too(scripted):
    found = comparison(a=0.5, **{FLATTENED: 0.4}), comparison(**{FLATTENED: 0.4, "a": 0.5, "all_of_these": 0.2})
    asked, code, out, _ = scripted(*found, flags=("--optimizer", "adam"))
    assert code == 0 and asked[0][0] == {"a": [A], "b one": [B], "b two": [C], FLATTENED: [FLATTENED]}
    assert asked[1][0]["all of these"] == [FLATTENED, A]
    assert "mjn.optax_descent(objective, optax.flatten(optimizer))" in out and f'export XLA_FLAGS="{A}"\n' in out
    asked, _, out, _ = scripted(
        comparison(**{FLATTENED: 0.4}), comparison(**{FLATTENED: 0.4}), flags=("--optimizer", "adam")
    )
    assert "optax.flatten(optimizer)" in out and "export" not in out


def test_a_platform_of_which_no_flags_are_known(scripted, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    asked, code, out, _ = scripted()
    assert (asked, code) == ([], 0) and "nothing that was tried" in out


def test_what_was_not_timed_is_told_from_what_does_not_exist():
    untimed = {"new": "died with exit code 1: Unknown flag in XLA_FLAGS: --xla_new=1", "fast": "Differs: far off"}
    assert tune.results(comparison(untimed=untimed, a=1.0)).splitlines() == [
        f"results are x: {tune.NOW}, a",
        "not here: new",
        "refused, far off: fast",
    ]
    assert tune.results(comparison(a=1.0)) == "results are x: all"


# --- In processes ---------------------------------------------------------------------------------------------------


def test_flags_are_tried_in_processes_and_what_computes_something_else_is_refused(tuned, file, monkeypatch):
    group = {
        "bogus": "--xla_bogus=1",
        "far": "--xla_cpu_prefer_vector_width=128",
        "near": "--xla_cpu_prefer_vector_width=512",
        "alike": "--xla_cpu_multi_thread_eigen=false",
    }
    monkeypatch.setattr(tune, "SWITCHES", {"cpu": (group,)})
    before, there = dict(os.environ), sorted(file.parent.iterdir())
    code, out, err = tuned("--batch-size", "3")
    assert code == 0, err
    assert "line: a step of gradient descent on minibatches of 3, float32 on cpu" in out
    assert "as it is now: XLA_FLAGS is not set\n" in out
    lines = out.splitlines()
    assert "not here: bogus" in lines
    assert f"results are the same bits: {tune.NOW}, alike" in lines
    assert "results are the same to rounding: near" in lines
    words = " ".join(out.split())
    assert "refused, params['w'] differ by" in words and "is rounding: far" in words
    for name, timed in {tune.NOW: True, "near": True, "alike": True, "bogus": False, "far": False}.items():
        assert any(line.startswith(f"{name}  ") for line in lines) == timed
    assert "interleaved rounds; the baseline against itself" in out
    assert all(len(line) <= 100 for line in lines)
    assert dict(os.environ) == before and [p for p in sorted(file.parent.iterdir()) if p.suffix] == there


class FakePeer:
    made = ()

    def __init__(self, module, arguments, scratch, *, environment):
        self.environment, self.pipe, self.sent, self.closed = environment, self, [], 0
        FakePeer.made += (self,)

    def send(self, part):
        self.sent.append(part)
        if "--xla_dead" in self.environment["XLA_FLAGS"]:
            raise BrokenPipeError

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("present", [None, "--xla_mine=1"])
def test_the_baselines_environment_is_the_present_one_and_every_process_is_ended(monkeypatch, tmp_path, present):
    monkeypatch.setattr(FakePeer, "made", ())
    monkeypatch.setattr(tune, "Peer", FakePeer)
    seen = {}
    monkeypatch.setattr(tune, "compare_peers", lambda *arguments, **options: seen.update(it=(arguments, options)))
    monkeypatch.setenv("XLA_FLAGS", present) if present else monkeypatch.delenv("XLA_FLAGS", raising=False)
    task = tune.Task("it.py", "adam", 0.1, None, 0, False)
    arms = {"a": [A], "dead": ["--xla_dead=1"], "both": [FLATTENED, A]}
    tune.measure(arms, task, "begun", seconds=2.0)
    (peers, again, reference), options = seen["it"]
    assert list(peers) == [tune.NOW, *arms] and reference == tune.NOW and options == {"seconds": 2.0}
    own = present or ""
    expected = [own, f"{own} {A}".strip(), f"{own} --xla_dead=1".strip(), f"{own} {A}".strip(), own]
    assert [peer.environment["XLA_FLAGS"] for peer in (*peers.values(), again)] == expected
    assert again.sent == [tune.NOW, task, "begun"] and peers["a"].sent == ["a", task, "begun"]
    assert peers["both"].sent == ["both", task._replace(flattened=True), "begun"]
    assert [peer.closed for peer in FakePeer.made] == [1] * 5

    def fails(*arguments, **options):
        raise PeerFailed("as it is now: no")

    monkeypatch.setattr(tune, "compare_peers", fails)
    with pytest.raises(ValueError, match=r"it\.py: its step cannot be timed: as it is now: no"):
        tune.measure({}, task, "begun", seconds=2.0)


def test_a_process_that_cannot_be_started_leaves_none_of_the_others(monkeypatch):
    monkeypatch.setattr(FakePeer, "made", ())

    def start(*arguments, **options):
        if len(FakePeer.made) == 2:
            raise KeyboardInterrupt
        return FakePeer(*arguments, **options)

    monkeypatch.setattr(tune, "Peer", start)
    with pytest.raises(KeyboardInterrupt):
        tune.measure({"a": [A], "b": [B]}, "task", "begun", seconds=2.0)
    assert [peer.closed for peer in FakePeer.made] == [1, 1]


def processes_of(session):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_ctrl_c_ends_all_processes(file):
    call = [sys.executable, "-m", "minijaxnet", "tune", "it.py", "--seconds", "60"]
    environment = os.environ | {"PYTHONPATH": str(Path(mjn.__file__).parents[1])}
    run = subprocess.Popen(
        call, cwd=file.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        end = time.monotonic() + 60
        while len(processes_of(run.pid)) < 5 and time.monotonic() < end:
            time.sleep(0.1)
        assert len(processes_of(run.pid)) >= 5
        run.send_signal(signal.SIGINT)  # to this one only: its children have to be told
        _, said = run.communicate(timeout=60)
        assert (run.returncode, said.decode().strip()) == (130, "stopped")
        assert processes_of(run.pid) == []
    finally:
        for process in processes_of(run.pid):
            os.kill(process, signal.SIGKILL)


def test_a_process_gets_the_environment_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_mine=1")
    (tmp_path / "tells.py").write_text(
        "import os, sys\nfrom minijaxnet.bench.worker import connected\n"
        "with connected(sys.argv[1]) as pipe:\n    pipe.send((True, os.environ['XLA_FLAGS']))\n"
    )
    for environment, expected in ((None, "--xla_mine=1"), ({"XLA_FLAGS": A}, A)):
        peer = Peer("tells", (), tmp_path, path=tmp_path, environment=environment)
        try:
            assert peer.answer("open") == expected
        finally:
            peer.close()


# --- The steps ------------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(file):
    experiment = mjn.load_experiment(file)
    return experiment, experiment.init(jax.random.key(0)), experiment.data()[0]


def task_of(file, **changes):
    return tune.Task(str(file), "gd", 0.1, None, 0, False)._replace(**changes)


def test_steps_are_those_of_descend_from_the_start_again_in_each_chunk(begun, file, monkeypatch):
    experiment, params, train = begun
    descent = mjn.gradient_descent(experiment.objective, 0.1)
    state, trace = mjn.descend(descent, descent.init(params), train, steps=5)
    monkeypatch.setattr(tune, "chunk_capacity", lambda *arguments: 5)
    end, losses = tune.taker(experiment, task_of(file), params, train)(12)
    np.testing.assert_array_equal(losses, np.concatenate([trace.loss, trace.loss, trace.loss[:2]]))
    np.testing.assert_array_equal(tune.taker(experiment, task_of(file), params, train)(5)[0]["w"], state.params["w"])
    assert end["w"].shape == state.params["w"].shape


def test_minibatches_are_those_that_run_draws(begun, file):
    experiment, params, train = begun
    _, order_key, _ = jax.random.split(jax.random.key(3), 3)
    descent = mjn.optax_descent(experiment.objective, pytest.importorskip("optax").adam(0.1))
    _, trace = mjn.descend_epochs(descent, descent.init(params), train, order_key, batch_size=2, epochs=2)
    task = task_of(file, batch_size=2, seed=3, optimizer="adam")
    for same in (task, task._replace(flattened=True)):
        np.testing.assert_allclose(tune.taker(experiment, same, params, train)(6)[1], trace.loss, rtol=1e-6)


def test_a_descent_at_rest_goes_on_and_one_that_diverges_is_refused(file):
    bowl = mjn.Experiment("bowl", lambda key: 0.0, lambda weight, batch: (weight - batch) ** 2, lambda: (0.0, 0.0))
    rest = tune.taker(bowl, task_of(file, learning_rate=0.5), 1.0, 1.0)(50)
    assert len(rest[1]) == 50 and not rest[1].any()
    with pytest.raises(ValueError, match=r"learning_rate: got 5\.0, which diverges within 300 steps"):
        tune.taker(bowl, task_of(file, learning_rate=5.0), 0.0, 1.0)(300)


@pytest.mark.parametrize(("factor", "said"), [(1.0, tune.SAME_BITS), (1 + 2e-7, tune.ROUNDING), (1.001, None)], ids=str)
def test_results_are_the_same_bits_or_to_rounding_or_refused(factor, said):
    losses, end = np.linspace(2, 1, 20, dtype=np.float32), np.float32(1.5)
    arm = tune.arm_of(
        lambda steps: (end * np.float32(factor), losses[:steps]), tune.Begun(np.float32(1), 0, end, losses)
    )
    if said is None:
        with pytest.raises(
            tune.Differs, match=r"params\(leaf\) differ by 0.0015 after 3 steps, at most .* is rounding"
        ):
            first(arm)
    else:
        assert first(arm)[2] == said
    others = tune.arm_of(lambda steps: (end, losses[:steps] + np.float32(1e-7)), tune.Begun(end, 0, end, losses))
    assert first(others)[2] == tune.ROUNDING, "losses count, too"


def test_losses_of_bfloat16_are_not_compared_as_numpys():
    for dtype, comparable in ((jnp.bfloat16, False), (np.float32, True), (np.float64, True)):
        assert tune.arm_of(lambda steps: (0, 0), tune.Begun(0, 0, 0, np.zeros(3, dtype))).same_rule == comparable


def test_a_note_is_asked_after_the_first_run():
    called = []
    arm = Arm(lambda: lambda steps: called.append("run") or [1.0], note=lambda: called.append("note") or "said")
    assert first(arm)[2] == "said" and called == ["run"] * 3 + ["note"]
    assert first(arm._replace(note=str))[2] == ""


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--seconds", "0"), "seconds: got 0.0; expected a positive number"),
        (("--seconds", "nan"), "seconds: got nan; expected a positive number"),
        (("--batch-size", "7"), "batch_size: got 7; expected at most 6, the points there are"),
        (("--batch-size", "0"), "batch_size: got 0; expected at least 1"),
        (("--seed", "-1"), "seed: got -1; expected a number from 0"),
        (("--optimizer", "adm"), "optimizer: got 'adm'; expected gd or the name of an optimizer of optax"),
        (("--save", "x.json"), "Unrecognized options"),
    ],
    ids=str,
)
def test_a_bad_flag_ends_with_2_before_anything_is_tried(tuned, monkeypatch, flags, words):
    monkeypatch.setattr(tune, "measure", lambda *arguments, **options: pytest.fail("it was tried"))
    code, out, err = tuned(*flags)
    assert code == 2 and words in err and "Traceback" not in err
    assert "a step of" not in out


def test_flags_in_a_file_are_refused_since_none_can_be_added(tuned, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "flags.txt")
    code, _, err = tuned()
    assert code == 2 and "XLA_FLAGS: got 'flags.txt', a file of flags; expected the flags" in err


def test_a_descent_that_diverges_is_an_error(tuned):
    code, _, err = tuned("--start", "nan")
    assert code == 2 and "learning_rate: got 0.1, which diverges within 3 steps; expected one that does not" in err


def test_help_shows_the_flags_and_the_experiments_own(tuned, capsys):
    code, out, _ = tuned("--help")
    assert code == 0
    for flag in ("--seconds", "--batch-size", "--optimizer", "--precision", "--seed", "--start"):
        assert flag in out
    assert main(["tune", "no.py"]) == 2 and "no.py: there is no such file" in capsys.readouterr().err
