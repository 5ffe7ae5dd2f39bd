"""The checkpoints of a run: the newest that is whole, and what is deleted when."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minijaxnet.run import CheckpointError, save_checkpoint
from minijaxnet.run.checkpoint_folder import checkpoint_path, checkpoints, keep_newest, load_latest

# --- The folder -------------------------------------------------------------------------------------------------------


def fill(folder, *steps):
    for step in steps:
        save_checkpoint(checkpoint_path(folder, step), {"step": np.full(3, step)}, step=step)


def damage(folder, *steps):
    for step in steps:
        content = bytearray(checkpoint_path(folder, step).read_bytes())
        content[-1] ^= 1
        checkpoint_path(folder, step).write_bytes(content)


def steps_in(folder):
    return [step for step, _ in checkpoints(folder)]


LIKE = {"step": np.zeros(3, int)}


def test_checkpoints_are_found_by_their_names_the_newest_first(tmp_path):
    fill(tmp_path, 5, 0, 1234, 10**9, 99)
    others = "7.safetensors 00000007.safetensors.part 00000007.txt 000000007.safetensors ٠٠٠٠٠٠٠٧.safetensors".split()
    for name in (*others, f"{'9' * 19}.safetensors"):
        (tmp_path / f"step-{name}").write_text("no checkpoint")
    assert steps_in(tmp_path) == [10**9, 1234, 99, 5, 0]
    assert checkpoints(tmp_path)[1] == (1234, tmp_path / "step-00001234.safetensors")
    assert checkpoints(tmp_path)[0][1].name == "step-1000000000.safetensors"
    with pytest.raises(ValueError, match="step: got -1; expected at least 0"):
        checkpoint_path(tmp_path, -1)


def test_the_newest_that_is_whole_wins_and_why_others_did_not_is_told(tmp_path):
    assert load_latest(tmp_path, LIKE) is None
    fill(tmp_path, 1, 2, 3, 4)
    assert load_latest(tmp_path, LIKE).step == 4
    assert load_latest(tmp_path, LIKE).skipped == []
    damage(tmp_path, 4)
    checkpoint_path(tmp_path, 3).write_bytes(b"")
    checkpoint_path(tmp_path, 5).mkdir()
    found = load_latest(str(tmp_path), LIKE)
    assert (found.step, found.tree["step"].tolist()) == (2, [2, 2, 2])
    texts = ["got a folder", "got data with SHA-256", "got 0 bytes"]
    names = [checkpoint_path(tmp_path, step) for step in (5, 4, 3)]
    assert len(found.skipped) == 3
    for path, text, note in zip(names, texts, found.skipped, strict=True):
        assert note.startswith(f"{path}: {text}")


def test_where_none_is_whole_nobody_starts_anew_unawares(tmp_path):
    fill(tmp_path, 1, 2)
    damage(tmp_path, 1, 2)
    text = rf"^{re.escape(str(tmp_path))}: got no valid checkpoint; expected one\n  .*00002.*\n  .*00001"
    with pytest.raises(CheckpointError, match=text):
        load_latest(tmp_path, LIKE)


def test_a_checkpoint_of_another_tree_is_not_passed_over(tmp_path):
    fill(tmp_path, 1)
    save_checkpoint(checkpoint_path(tmp_path, 2), {"step": np.zeros(4)}, step=2)
    with pytest.raises(CheckpointError, match=r"00002.*tree\['step'\]: got float64\[4\]; expected int64\[3\]"):
        load_latest(tmp_path, LIKE)


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(tmp_path):
    fill(tmp_path, 1, 2)
    checkpoint_path(tmp_path, 2).rename(checkpoint_path(tmp_path, 9))
    found = load_latest(tmp_path, LIKE)
    assert found.step == 1
    assert found.skipped == [f"{checkpoint_path(tmp_path, 9)}: got the checkpoint of step 2; expected that of step 9"]


def test_one_that_is_whole_under_the_name_of_another_step_does_not_let_the_last_one_go(tmp_path):
    fill(tmp_path, 1, 2)
    checkpoint_path(tmp_path, 2).rename(checkpoint_path(tmp_path, 7))
    keep_newest(tmp_path, 1)
    assert steps_in(tmp_path) == [7, 1]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.integers(0, 20), unique=True, max_size=6),
    broken=st.sets(st.integers(0, 20)),
    count=st.integers(1, 4),
)
def test_what_can_be_resumed_is_the_same_before_and_after(steps, broken, count, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    fill(folder, *steps)
    damage(folder, *(broken & set(steps)))
    whole = sorted(set(steps) - broken, reverse=True)
    keep_newest(folder, count)
    assert steps_in(folder)[:count] == sorted(steps, reverse=True)[:count]
    assert len(steps_in(folder)) <= count or not whole or whole[0] in steps_in(folder)[count:]
    if whole:
        assert load_latest(folder, LIKE).step == whole[0]
    else:
        assert len(steps_in(folder)) == len(steps)
