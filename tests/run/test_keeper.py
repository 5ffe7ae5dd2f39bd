"""A run that was stopped, killed or spoilt and then resumed has the same bits as one that was not."""

import os
import re
import signal
import sys
from datetime import timedelta
from pathlib import Path

import chex
import kits.fits
import numpy as np
import optax
import pytest
from kits.fits import DATA, OBJECTIVE, PARAMS, adam_in_minibatches, full_batch, in_a_bowl, with_draws

import minijaxnet as mjn
from minijaxnet.run import fit, load_checkpoint
from minijaxnet.run.checkpoint_folder import checkpoints
from minijaxnet.run.lock import RunInUse, hold, owner

keeper_module, log_module = (sys.modules[f"minijaxnet.run.{name}"] for name in ("keeper", "log"))


def fitted(kind, folder, **options):
    return kits.fits.fitted(kind, run_dir=folder, **options)


def stopped_at(steps, signum=signal.SIGINT):
    return lambda progress: os.kill(os.getpid(), signum) if progress.step >= steps else None


def assert_same_run(result, whole, folder, whole_folder):
    state, expected = (r.state._replace(key=None) for r in (result, whole))
    chex.assert_trees_all_equal(state, expected, strict=True)
    assert result.rows == whole.rows and result.steps_taken == whole.steps_taken and result.status == whole.status
    assert (folder / "metrics.jsonl").read_bytes() == (whole_folder / "metrics.jsonl").read_bytes()
    taken = result.steps_taken - result.first_step
    np.testing.assert_array_equal(result.trace.loss[:taken], whole.trace.loss[result.first_step : result.steps_taken])


@pytest.fixture
def folders(tmp_path):
    found = tmp_path / "stopped", tmp_path / "whole"
    for folder in found:
        folder.mkdir()
    return found


def steps_in(folder):
    return [step for step, _ in checkpoints(folder / "checkpoints")]


@pytest.mark.parametrize(
    ("kind", "signum"),
    [(full_batch, signal.SIGINT), (adam_in_minibatches, signal.SIGTERM), (with_draws, signal.SIGINT)],
)
def test_stopped_by_a_signal_and_resumed_it_comes_to_the_same_bits_and_done_it_resumes_to_itself(
    kind, signum, folders, step_by_step
):
    stopped, whole = folders
    options = {"steps": 40, "log_every": 6}
    first = fitted(kind(), stopped, on_progress=stopped_at(17, signum), **options)
    assert first.interrupted == signum and first.steps_taken == 17
    second = fitted(kind(), stopped, resume=True, on_progress=stopped_at(29, signum), **options)
    assert (second.first_step, second.steps_taken) == (17, 29)
    expected = fitted(kind(), whole, **options)
    for first_step in (29, 40):
        last = fitted(kind(), stopped, resume=True, **options)
        assert last.first_step == first_step
        assert_same_run(last, expected, stopped, whole)
    assert [row["step"] for row in last.rows] == [0, 6, 12, 18, 24, 30, 36, 40]


class Killed(BaseException):
    """What ends a process in the middle of something, for a test: nothing after it is done."""


@pytest.mark.parametrize("at", [1, 13])
def test_ended_in_between_it_goes_on_from_the_last_checkpoint(at, folders, step_by_step):
    stopped, whole = folders
    options = {"steps": 30, "log_every": 4, "checkpoint_every": 5}

    def end(progress):
        if progress.step == at:
            raise Killed

    with pytest.raises(Killed):
        fitted(adam_in_minibatches(), stopped, on_progress=end, **options)
    last = fitted(adam_in_minibatches(), stopped, resume=True, **options)
    assert last.first_step == (at - 1) // 5 * 5
    assert_same_run(last, fitted(adam_in_minibatches(), whole, **options), stopped, whole)


def test_checkpoints_of_the_state_come_by_steps_or_by_time_and_three_stay(folders, step_by_step):
    by_steps, by_time = folders
    result = fitted(full_batch(), by_steps, steps=23, checkpoint_every=5)
    assert steps_in(by_steps) == [23, 20, 15]
    newest = load_checkpoint(checkpoints(by_steps / "checkpoints")[0][1], full_batch()[1])
    chex.assert_trees_all_equal(newest, result.state)
    fitted(full_batch(), by_time, steps=9, checkpoint_every=timedelta(0))
    assert steps_in(by_time) == [9, 8, 7]


def test_what_a_dead_process_left_unfinished_is_cleared_away(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    parts = [folder / f".{16 * 'a'}.part" for folder in (tmp_path, tmp_path / "checkpoints")]
    for part in parts:
        part.touch()
    fitted(full_batch(), tmp_path, steps=3)
    assert not any(part.exists() for part in parts)


LOSS, NORM = b'"loss": ', b'"gradient_norm": '


def row(number, change):
    """Edits a row of the log."""

    def spoil(folder):
        path = folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        edited = change(lines[number])
        assert edited != lines[number]
        path.write_bytes(b"".join([*lines[:number], edited, *lines[number + 1 :]]))

    return spoil


def newest(change):
    return lambda folder: change(checkpoints(folder / "checkpoints")[0][1])


def killed_before_the_last_checkpoint(folder):
    newest(Path.unlink)(folder)
    row(13, lambda line: line[:-9])(folder)


def swapped(line):
    return line.replace(LOSS, b"?").replace(NORM, LOSS).replace(b"?", NORM)


OTHERS = "the rows before step 27 have been changed: the fit continues from step {}, not 27"
SPOILT = {
    "a damaged checkpoint": (newest(lambda path: os.truncate(path, 99)), 20, "step-00000027.safetensors: got"),
    "a torn line": (killed_before_the_last_checkpoint, 20, None),
    "the first row lost": (
        row(3, lambda line: b"?" + line),
        0,
        "the row of step 6 is lost: the fit continues from step 0, not",
    ),
    "a row lost": (
        row(11, lambda line: b"?" + line),
        20,
        "the row of step 22 is lost: the fit continues from step 20, not 27",
    ),
    "a digit": (row(0, lambda line: line[:-3] + (b"1" if line[-3:-2] != b"1" else b"2") + line[-2:]), 0, OTHERS),
    "null": (row(6, lambda line: line[: line.index(NORM)] + NORM + b"null}\n"), 10, OTHERS),
    "names swapped": (row(10, swapped), 20, OTHERS),
    "a row more": (row(12, lambda line: line + line), 20, OTHERS),
    "blanks": (row(12, lambda line: line.replace(b": ", b" :  ")), 27, None),
    "a row after the checkpoint": (row(14, lambda line: line[:-2] + b"7}\n"), 27, None),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_folder_that_was_spoilt_goes_on_from_the_last_checkpoint_that_can_be_trusted_and_says_why(name, folders):
    stopped, whole = folders
    spoil, goes_on, words = SPOILT[name]
    options = {"steps": 27, "log_every": 2, "checkpoint_every": 10}
    expected = fitted(adam_in_minibatches(), whole, **options)
    fitted(adam_in_minibatches(), stopped, **options)
    spoil(stopped)
    last = fitted(adam_in_minibatches(), stopped, resume=True, **options)
    assert last.first_step == goes_on
    assert len(last.notes) == (words is not None) and (not words or words.format(goes_on) in last.notes[0])
    assert_same_run(last, expected, stopped, whole)
    assert not fitted(adam_in_minibatches(), stopped, resume=True, **options).notes


def test_rows_are_on_the_disk_before_a_checkpoint_of_what_comes_after_them(tmp_path, monkeypatch):
    """Otherwise a power cut may leave the checkpoint and not the rows."""
    on_disk, saved, fsync, replace = [], [], os.fsync, os.replace
    rows = tmp_path / "metrics.jsonl"

    def synced(descriptor):
        fsync(descriptor)
        if rows.exists() and os.path.samestat(os.fstat(descriptor), rows.stat()):
            on_disk.append(rows.stat().st_size)

    def replaced(part, path):
        if Path(path).parent.name == "checkpoints":
            saved.append(on_disk[-1] == rows.stat().st_size)
        replace(part, path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    fitted(full_batch(), tmp_path, steps=30, log_every=2, checkpoint_every=4)
    assert len(saved) > 3 and all(saved) and on_disk[-1] == rows.stat().st_size


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "metrics.jsonl.part", "timing.jsonl", "lock"])
def test_a_link_in_the_folder_is_refused_and_nothing_behind_it_touched(name, folders):
    stopped, elsewhere = folders
    fitted(full_batch(), stopped, steps=27, checkpoint_every=5)
    path = stopped / name
    target = elsewhere / name
    if path.exists():
        path.rename(target)
    else:
        target.write_text("precious")
    path.symlink_to(target)
    files = {each: each.read_bytes() for each in elsewhere.rglob("*") if each.is_file()}
    assert files
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: got a symbolic link; expected the f"):
        fitted(full_batch(), stopped, steps=40, resume=True, checkpoint_every=5)
    assert {each: each.read_bytes() for each in elsewhere.rglob("*") if each.is_file()} == files
    assert path.is_symlink() and owner(stopped) is None


def test_a_diverged_end_is_no_checkpoint_and_resumes_to_the_same_end(folders):
    stopped, whole = folders
    options = {"steps": 30, "log_every": 3, "checkpoint_every": 4}
    expected = fitted(in_a_bowl(800.0), whole, **options)
    first = fitted(in_a_bowl(800.0), stopped, **options)
    assert first.status == mjn.DIVERGED and 4 < first.steps_taken < 8
    assert steps_in(stopped) == [4]
    last = fitted(in_a_bowl(800.0), stopped, resume=True, **options)
    assert last.first_step == 4 and last.steps_taken == expected.steps_taken == first.steps_taken
    assert last.status == mjn.DIVERGED
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


# --- What is held, and what is refused --------------------------------------------------------------------------------


def test_a_folder_that_the_caller_holds_is_used_and_stays_held(tmp_path):
    with hold(tmp_path) as held:
        fitted(full_batch(), held, steps=5)
        assert steps_in(tmp_path) == [5] and (tmp_path / "metrics.jsonl").exists()
        assert owner(tmp_path)["pid"] == os.getpid()
        before = (tmp_path / "metrics.jsonl").read_bytes()
        with pytest.raises(RunInUse, match="holds this run"):
            fitted(full_batch(), tmp_path, steps=9, resume=True)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        assert fitted(full_batch(), held, steps=9, resume=True).first_step == 5
    assert owner(tmp_path) is None


def test_a_folder_with_checkpoints_is_not_begun_anew(tmp_path):
    fitted(full_batch(), tmp_path, steps=5)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(FileExistsError, match="got the folder of a run; expected a new one, or resume=True"):
        fitted(full_batch(), tmp_path, steps=5)
    assert steps_in(tmp_path) == [5]


def test_checkpoints_of_another_descent_are_refused(tmp_path):
    fitted(full_batch(), tmp_path, steps=5)
    other = mjn.optax_descent(OBJECTIVE, optax.adam(0.01))
    with pytest.raises(ValueError, match=r"optimizer.*expected"):
        fit(other, other.init(PARAMS), DATA, steps=5, run_dir=tmp_path, resume=True)


# --- SIGKILL ----------------------------------------------------------------------------------------------------------
