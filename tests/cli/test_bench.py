"""``minijaxnet bench``: what is printed of an experiment's step, and what stops it."""

import importlib.util
import json
import sys
import textwrap

import jax
import numpy as np
import pytest
from kits.lines import RIGHT, line

import minijaxnet as mjn
from minijaxnet.bench.peers import Peer
from minijaxnet.bench.worker import losses_of
from minijaxnet.cli import main, peers


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Write a file and time it: the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(text, *flags):
        (tmp_path / "it.py").write_text(textwrap.dedent(text))
        code = main(["bench", "it.py", "--seconds", "0.5", *flags])
        return code, *capsys.readouterr()

    return run


def test_a_right_gradient_is_held_against_autodiff_whole(bench):
    code, out, _ = bench(line(RIGHT), "--batch-size", "3", "--start", "0.25")
    assert code == 0
    assert "line: a step of gradient descent on 3 points" in out
    for words in (
        "trace",
        "compile",
        "(latency)",
        "(fused)",
        "gradient by hand",
        "gradient descent, autodiff",
        "optax.sgd",
    ):
        assert words in out
    rows = {row.split()[0]: row for row in out.splitlines() if row}
    assert "pass" in rows["right?"] and "pass" in rows["precise?"] and "autodiff's step" in rows["fast?"]
    assert "autodiff's planned peak" in rows["memory?"]
    for words in ("one native function", "other FLOPs, float32", "nearest limit:"):
        assert words in out
    assert "measured peak" not in out, "there is no matrix product"
    assert all(len(row) <= 110 for row in out.splitlines())


def test_a_wrong_gradient_is_not_timed(bench):
    code, out, _ = bench(line(f"-({RIGHT})"))
    assert code == 1
    assert "NOT RIGHT" in out and "the sign is wrong" in out and "(fused)" not in out


def test_without_a_gradient_by_hand_optax_is_the_rival(bench):
    code, out, _ = bench(line(RIGHT, by_hand=""))
    assert code == 0
    assert "optax.sgd, autodiff" in out and "by hand" not in out


def test_what_was_saved_is_held_against_later(bench, tmp_path):
    assert bench(line(RIGHT), "--save", "then.json")[0] == 0
    saved = json.loads((tmp_path / "then.json").read_text())
    assert len(saved["arms"]) == 3 and saved["machine"]["jax"]
    code, out, _ = bench(line(RIGHT), "--since", "then.json")
    assert code == 0
    assert "now over then" in out and "(a fixed workload)" in out


@pytest.mark.parametrize("flags", [("--since", "none.json"), ("--save", "none/here.json")])
def test_a_file_that_is_not_where_it_should_be_is_an_error_before_anything_is_timed(bench, flags):
    code, out, err = bench(line(RIGHT), *flags)
    assert code == 2 and flags[1] in err and "latency" not in out


def test_steps_are_compared_in_processes_of_their_own(bench):
    code, out, _ = bench(line(RIGHT), "--processes", "2")
    assert code == 0 and "rounds in 2 processes" in out


# --- Other frameworks -----------------------------------------------------------------------------------------------

IN_NUMPY = """
    import numpy as np

    def in_numpy(params, batch):
        h = np.tanh(params["w"] * batch.x)
        return np.mean((h - batch.y) ** 2), {"w": FACTOR * np.mean((h - batch.y) * (1 - h**2) * batch.x)}

    def in_torch(params, batch):
        h = (params["w"] * batch.x).tanh()
        return ((h - batch.y) ** 2).mean()
"""
NEEDS = {"equinox": "equinox", "flax": "flax", "torch": "torch"}


def with_peers(factor=2, words='"numpy": in_numpy'):
    return textwrap.dedent(IN_NUMPY).replace("FACTOR", str(factor)) + textwrap.dedent(
        line(RIGHT, by_hand=f", value_and_gradient=value_and_gradient, peers={{{words}}}")
    )


def test_frameworks_take_turns_and_what_cannot_be_timed_says_why(bench):
    code, out, err = bench(with_peers(factor=3), "--against", "optax, numpy,torch")
    assert code == 0, err
    rows = {row.split("  ")[0]: row for row in out.splitlines()}
    assert rows["minijaxnet, descend"].endswith("baseline")
    for label in ("minijaxnet, jitted step", "optax.sgd, jitted step"):
        assert rows[label].split()[-1] in ("faster", "slower", "indistinguishable")
    assert 'not timed: torch: the experiment has no peers["torch"]' in out
    assert "not timed: NumPy, by hand: another result: at step 1 the loss is" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--against", "keras"], "against: got 'keras'; expected some of optax, equinox, flax, torch, numpy"),
        (["--against", "then.json"], "(an earlier result goes with --since)"),
        (["--against", "numpy", "--precision", "bfloat16"], "against: got the precision bfloat16; expected float32"),
    ],
)
def test_what_peers_cannot_be_asked_is_refused_before_anything_is_timed(bench, flags, words):
    code, out, err = bench(with_peers(), *flags)
    assert code == 2 and words in err and "latency" not in out


@pytest.fixture
def task(tmp_path):
    file = tmp_path / "with_peers.py"
    file.write_text(with_peers(words='"numpy": in_numpy, "torch": in_torch'))
    x = np.linspace(-1, 1, 6, dtype=np.float32)
    return peers.Task(mjn.load_experiment(file), {"w": np.array(0.5, np.float32)}, mjn.Batch(x, x**2), 0.1)


@pytest.mark.filterwarnings("default::DeprecationWarning:torch")
@pytest.mark.parametrize("name", peers.PEERS)
def test_every_peer_takes_the_same_steps_each_time_it_starts(task, name):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{name} is not installed")
    w, x = np.float64(0.5), task.batch.x.astype(np.float64)
    expected = []
    for _ in range(4):
        h = np.tanh(w * x)
        expected.append(np.mean((h - x**2) ** 2))
        w -= 0.1 * 2 * np.mean((h - x**2) * (1 - h**2) * x)
    found = peers.open_peer(name, task)
    assert isinstance(found, dict) and found
    for label, arm in found.items():
        if "compile" not in label:  # takes a minute; the comparison itself holds it against the others
            for _ in range(2):
                np.testing.assert_allclose(losses_of(arm.start()(4)), expected, rtol=1e-6, err_msg=label)


def test_a_peers_process_computes_in_the_precision_that_is_asked_for(task, tmp_path):
    params, batch = jax.tree.map(lambda leaf: leaf.astype(np.float64), (task.params, task.batch))
    peer = Peer("minijaxnet.cli.peers", (), tmp_path)
    try:
        for part in ("minijaxnet", (str(tmp_path / "with_peers.py"), True, 0.1), (params, batch)):
            peer.pipe.send(part)
        labels = list(peer.answer("open"))
        assert labels == ["minijaxnet, descend", "minijaxnet, jitted step"]
        assert {peer.ask("first", label)[1].dtype for label in labels} == {np.dtype(np.float64)}
    finally:
        peer.close()


@pytest.mark.parametrize("name", [*NEEDS, "optax"])
def test_a_framework_that_is_not_installed_says_so(task, name, monkeypatch):
    monkeypatch.setitem(sys.modules, NEEDS.get(name, name), None)
    assert str(peers.open_peer(name, task)).startswith("not installed (")


def test_an_objective_that_draws_numbers_has_no_peers():
    with pytest.raises(ValueError, match="against: got an objective that draws numbers"):
        peers.check_peers(["numpy"], "gd", "float32", jax.random.key(0))
    with pytest.raises(ValueError, match="against: got an experiment whose optimizer is adam"):
        peers.check_peers(["numpy"], "adam", "float32", None)
    peers.check_peers([], "adam", "bfloat16", jax.random.key(0))
