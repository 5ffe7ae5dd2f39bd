"""load_params and load_run: weights and runs, read back in Python."""

import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.command import call
from kits.stopped import here, made, only
from safetensors.numpy import save_file

import minijaxnet as mjn
from minijaxnet.load import OtherCode
from minijaxnet.run.checkpoint_format import Header, Stored, write

__all__ = ["here", "made"]  # fixtures


class Pair(NamedTuple):
    left: Any
    right: Any


LEAVES = st.sampled_from(
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array([1.5, np.inf], ml_dtypes.bfloat16),
        np.float64(1 / 3),
        np.array([1 + 2j], np.complex64),
        np.zeros((0, 2), np.int8),
        np.array(True),
    ]
)
TREES = st.recursive(
    st.one_of(LEAVES, st.none()),
    lambda parts: st.one_of(
        st.lists(parts, max_size=3),
        st.lists(parts, max_size=3).map(tuple),
        st.dictionaries(st.text("ab.[]'\"\\ü ", max_size=5), parts, max_size=3),
        st.dictionaries(st.integers(-9, 9), parts, max_size=3),
    ),
    max_leaves=8,
)


def as_jax(tree):
    with jax.enable_x64(True):
        return jax.tree.map(jnp.asarray, tree)


@settings(deadline=None, max_examples=60)
@given(tree=TREES)
def test_without_a_template_a_tree_is_what_it_was(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("load") / "a.safetensors"
    mjn.save_checkpoint(path, tree, step=3)
    got, expected = mjn.load_params(path), as_jax(tree)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    if jax.tree.leaves(tree):
        chex.assert_trees_all_equal(mjn.load_params(path, tree), tree, strict=True)


def test_of_a_state_the_weights_are_loaded_keys_and_named_tuples_too(tmp_path):
    params = Pair({"w": jnp.ones(3)}, (jax.random.key(4), None))
    state = mjn.DescentState(params, {"params": jnp.zeros(2)}, jnp.int32(7), jax.random.key(0))
    mjn.save_checkpoint(tmp_path / "a", state, step=7)
    plain = mjn.load_params(tmp_path / "a")
    assert set(plain) == {"left", "right"} and plain["right"][1] is None
    np.testing.assert_array_equal(plain["left"]["w"], np.ones(3))
    assert jax.random.key_data(plain["right"][0]).tolist() == jax.random.key_data(jax.random.key(4)).tolist()
    like = mjn.load_params(tmp_path / "a", params)
    assert jax.tree.structure(like) == jax.tree.structure(params)
    with pytest.raises(mjn.CheckpointError, match=r"\['w'\]: got float32\[3\]; expected float32\[4\]"):
        mjn.load_params(tmp_path / "a", Pair({"w": jnp.ones(4)}, params.right))


def test_weights_of_other_programs_go_by_their_names(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"['w']": np.ones(3, np.float32), "['b']": np.zeros((), np.float32)}, path)
    assert set(mjn.load_params(path)) == {"['w']", "['b']"}
    like = {"w": jnp.zeros(3), "b": jnp.float32(1)}
    chex.assert_trees_all_equal(mjn.load_params(path, like), {"w": jnp.ones(3), "b": jnp.float32(0)})
    for other, words in (({"w": jnp.zeros(3)}, r"\['b'\]: got .*; expected None"), ({"w": jnp.zeros(2)}, "expected")):
        with pytest.raises(mjn.CheckpointError, match=words):
            mjn.load_params(path, other)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"x", lambda data: b"no" + data])
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = tmp_path / "a.safetensors"
    mjn.save_checkpoint(path, {"w": np.ones(3)}, step=1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(mjn.CheckpointError, match=r"a\.safetensors"):
        mjn.load_params(path)


def test_a_link_is_not_followed(tmp_path):
    save_file({"secret": np.ones(3)}, tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "params.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((mjn.CheckpointError, OSError), match=r"params\.safetensors"):
        mjn.load_params(tmp_path / "run")


def forged(path, kinds, arrays):
    """A file whose checksums are right, of a tree that nobody saved."""
    data = [np.zeros(2, np.uint8).data for _ in arrays]
    stored = {name: Stored(code, (2,)) for name, code in arrays.items()}
    write(path, Header(0, kinds, stored), data)


@pytest.mark.parametrize(
    ("kinds", "arrays"),
    [
        ({"tree[0]": "uint8"}, {"tree[0]": "U8"}),  # no root
        ({"tree": "DescentState"}, {}),  # no weights
        ({"tree": "uint8", "tree[0]": "uint8"}, {"tree": "U8", "tree[0]": "U8"}),  # a child of a leaf
        ({"tree": "object"}, {"tree": "U8"}),
        ({"tree": "float64"}, {"tree": "U8"}),
        ({"tree": "finfo"}, {"tree": "U8"}),
    ],
)
def test_a_forged_tree_is_refused(kinds, arrays, tmp_path):
    forged(tmp_path / "a", kinds, arrays)
    with pytest.raises(mjn.CheckpointError):
        mjn.load_params(tmp_path / "a")


TEXT = """
    import jax, jax.numpy as jnp, minijaxnet as mjn
    points = mjn.Batch(jnp.ones((4, 2)), jnp.ones((4, 1)))
    experiment = mjn.Experiment(
        "net", lambda key: ({"weights": jax.random.normal(key, (2, 3))},),
        lambda params, batch: jnp.mean((batch.x @ params[0]["weights"] - batch.y) ** 2), lambda: (points, points),
        predict=lambda params, x: x @ params[0]["weights"], defaults=mjn.Settings(steps=40, learning_rate=0.1),
    )
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(textwrap.dedent(TEXT))
    assert call("run", "net.py", "--bench-seconds", "0", "--no-report").code == 0
    return only("runs")


def test_a_run_is_back_with_its_weights_its_rows_and_its_predictions(run):
    back = mjn.load_run(run)
    assert back.config["flags"]["steps"] == 40 and back.result["status"] == "OUT_OF_STEPS"
    assert back.rows["step"].tolist() == [*range(0, 41, 2)]
    assert back.rows["loss"][-1] < back.rows["loss"][0]
    assert isinstance(back.params, tuple) and back.params[0]["weights"].shape == (2, 3)
    assert back.experiment.name == "net"
    x = np.ones((5, 2), np.float32)
    np.testing.assert_array_equal(back.predict(x), back.experiment.predict(back.params, x))
    assert repr(back) == f"Run({str(run)!r}, OUT_OF_STEPS)"


def test_weights_are_read_in_another_process_without_the_code(run):
    (run.parent.parent / "net.py").write_text("raise SystemExit('carried out')")
    code = f"import minijaxnet as mjn; print(mjn.load_params({str(run)!r})[0]['weights'].shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "(2, 3)", done.stderr
    back = mjn.load_run(run)
    assert len(back.rows["loss"]) == 21
    with pytest.raises(OtherCode, match="carried out"):
        _ = back.experiment


def test_code_of_somebody_else_is_not_carried_out_unless_trusted(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of another user"))
    with pytest.raises(ValueError, match=r"not started by you.*trust=True"):
        mjn.load_run(run).predict(np.ones((1, 2)))
    assert mjn.load_run(run, trust=True).predict(np.ones((1, 2))).shape == (1, 3)


def test_a_run_under_way_has_the_weights_of_its_newest_checkpoint_and_none_where_there_is_none(run, tmp_path):
    params = mjn.load_params(run)
    (run / "params.safetensors").unlink()
    chex.assert_trees_all_equal(mjn.load_params(run), params)
    for folder, words in ((tmp_path, "without weights"), (tmp_path / "nothing", "nothing")):
        with pytest.raises(FileNotFoundError, match=words):
            mjn.load_params(folder)
