"""Files: after a failure, a full disk or a kill, a file is whole, or as it was before."""

import errno
import os
import stat
import sys
import textwrap

import numpy as np
import pytest
from kits.checkpoints import TREE, good_file
from kits.processes import LINE, in_time, output_of, python

from minijaxnet._files import Lines, NotAFile, replace_file
from minijaxnet.run import checkpoint_step, save_checkpoint


@pytest.fixture(scope="module")
def good():
    return good_file()


def test_the_disk_has_the_data_before_the_name_and_the_name_before_it_returns(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        [file] = tmp_path.iterdir()
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append(("folder" if is_folder else "file", file.name == "a", file.read_bytes()))
        fsync(descriptor)

    def recorded_replace(part, path):
        done.append("rename")
        replace(part, path)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    save_checkpoint(tmp_path / "a", TREE, step=1)
    content = (tmp_path / "a").read_bytes()
    assert done == [("file", False, content), "rename", ("folder", True, content)]


def test_where_fsync_is_not_enough_the_drive_is_flushed_too(tmp_path, monkeypatch):
    import fcntl

    commands = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: commands.append(command))
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("fsync keeps the drive's cache back"))
    save_checkpoint(tmp_path / "a", TREE, step=1)
    assert commands == [51, 51]


def test_a_folder_that_has_nothing_to_flush_is_no_failure(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor, number=errno.EINVAL):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save_checkpoint(tmp_path / "a", TREE, step=1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: fsync(descriptor, errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        save_checkpoint(tmp_path / "a", TREE, step=2)
    assert checkpoint_step(tmp_path / "a") == 2


FAILURES = {
    "open": OSError(errno.EACCES, "Permission denied"),
    "fsync": OSError(errno.EIO, "Input/output error"),
    "replace": OSError(errno.EPERM, "Operation not permitted"),
    "interrupt": KeyboardInterrupt(),
}


@pytest.mark.parametrize("before", [True, False], ids=["over an older one", "the first"])
@pytest.mark.parametrize("name", FAILURES)
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(name, before, good, tmp_path, monkeypatch):
    path, error = tmp_path / "a", FAILURES[name]
    if before:
        path.write_bytes(good)

    def fails(*arguments):
        raise error

    monkeypatch.setattr(os, "fsync" if name == "interrupt" else name, fails)
    with pytest.raises(type(error)) as caught:
        save_checkpoint(path, [np.ones(1000)], step=2)
    monkeypatch.undo()
    if name != "interrupt":
        assert (caught.value.errno, caught.value.filename) == (error.errno, str(path))
        assert "checkpoint not written: " in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == (["a"] if before else [])
    assert not before or path.read_bytes() == good


def test_a_link_is_replaced_and_what_it_points_to_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / "a").symlink_to(tmp_path / "precious")
    save_checkpoint(tmp_path / "run" / "a", TREE, step=1)
    assert (tmp_path / "precious").read_text() == "mine"
    assert checkpoint_step(tmp_path / "run" / "a") == 1


def test_others_may_read_it_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "a", TREE, step=1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


AS_ON_WINDOWS = """
import os, sys, warnings

warnings.simplefilter("ignore")  # filelock's own: it says that it has the soft lock only
sys.modules["fcntl"] = sys.modules["resource"] = sys.modules["pwd"] = sys.modules["termios"] = None
import jax

opens = os.open

def open_file(path, *rest, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opens(path, *rest, **options)

os.open = open_file
for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC", "fork", "register_at_fork", "pread", "pwrite",
             "fchmod", "getloadavg", "sched_getaffinity", "uname", "getuid", "geteuid", "killpg", "waitid", "mkfifo"):
    delattr(os, name)
"""


def test_on_a_system_without_what_posix_alone_has_checkpoints_runs_and_locks_work(tmp_path):
    (tmp_path / "line.py").write_text(LINE)
    code = """
    from pathlib import Path
    from minijaxnet.cli import main
    from minijaxnet.run.lock import hold, owner

    assert main(["run", "line.py", "--bench-seconds", "0", "--no-report"]) == 0
    [folder] = Path("runs").iterdir()
    with hold(folder):
        assert owner(folder)["pid"] == os.getpid()
        assert main(["resume", str(folder), "--force"]) == 2
    assert owner(folder) is None and not (folder / "lock").exists()
    assert main(["runs"]) == main(["show", str(folder)]) == main(["resume", str(folder), "--force"]) == 0
    """
    out = output_of(python(AS_ON_WINDOWS + textwrap.dedent(code), cwd=tmp_path, PYTHONPATH=os.pathsep.join(sys.path)))
    assert "done" in out and "went on from step 300" in out


# --- Lines, and links -------------------------------------------------------------------------------------------------


def test_a_line_that_does_not_fit_is_an_error_with_the_files_name_and_nothing_of_it_comes_later(tmp_path):
    code = """
    import errno, resource, sys
    from minijaxnet._files import Lines

    with Lines(sys.argv[1]) as lines:
        lines.append("whole\\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
        for _ in range(2):
            try:
                lines.append("torn in two\\n")
            except OSError as error:
                assert error.errno == errno.EFBIG and error.filename == sys.argv[1], error
                assert "line not written: File too large" in str(error), error
            else:
                raise AssertionError("it was written")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    """
    output_of(python(code, tmp_path / "lines"))
    assert (tmp_path / "lines").read_text() == "whole\ntorn"


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "folder"])
@pytest.mark.parametrize("name", ["lines", "a.json.part", "a.json"])
def test_what_is_no_file_is_refused_or_replaced_and_never_followed(name, kind, tmp_path):
    path, mine = tmp_path / name, tmp_path / "mine"
    mine.write_text("precious")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(mine if kind == "link" else tmp_path / "nowhere")
    words = {"link": "a symbolic link", "link to nothing": "a symbolic link", "pipe": "a pipe", "folder": "a folder"}
    with in_time():
        if name == "lines":
            with pytest.raises(NotAFile, match=f"lines: got {words[kind]}; expected the file itself"):
                Lines(path)
        elif name == "a.json.part":
            with pytest.raises(NotAFile, match=f"part: got {words[kind]}; expected the file itself"):
                replace_file(tmp_path / "a.json", b"{}")
            assert path.is_symlink() or not path.is_file(), "it is left as it was"
        elif kind != "folder":
            replace_file(path, b"{}")
            assert path.read_bytes() == b"{}" and not path.is_symlink()
    assert mine.read_text() == "precious" and not (tmp_path / "nowhere").exists()


def test_a_part_that_a_killed_process_left_is_written_anew(tmp_path):
    (tmp_path / "a.json.part").write_text("longer than what comes")
    replace_file(tmp_path / "a.json", b"{}")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"{}")]


# --- Ended in between -------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_at_any_write(tmp_path):
    """A child process may write files of so many bytes and no more: for each limit up to the whole."""
    code = """
    import errno, os, resource, sys
    from pathlib import Path
    import numpy as np
    from minijaxnet.run import checkpoint_step, load_checkpoint, save_checkpoint

    folder = Path(sys.argv[1])
    path = folder / "a.safetensors"
    small, large = {"a": np.ones(4)}, {"a": np.ones(300_000), "b": np.ones(5)}
    save_checkpoint(folder / "whole", large, step=2)
    whole = os.path.getsize(folder / "whole")
    (folder / "whole").unlink()
    save_checkpoint(path, small, step=1)
    before = path.read_bytes()
    limits = [0, 1, 7, 8, 100, 500, 4096, 8191, 8192, 65536, 1 << 20, (1 << 20) + 700, 2 << 20, whole - 41, whole - 1]
    for limit in [*limits, *range(9, whole, whole // 40)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save_checkpoint(path, large, step=2)
        except OSError as error:
            assert error.errno == errno.EFBIG and error.filename == str(path), error
            assert "checkpoint not written: File too large" in str(error), error
        else:
            raise AssertionError(f"{limit} bytes were enough")
        assert os.listdir(folder) == ["a.safetensors"], os.listdir(folder)
        assert path.read_bytes() == before
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole, resource.RLIM_INFINITY))
    save_checkpoint(path, large, step=2)
    assert checkpoint_step(path) == 2
    """
    output_of(python(code, tmp_path))


def test_killed_at_any_moment_the_newest_is_whole_and_one_that_was_completed(tmp_path):
    """A process saves one after the other, tells when each is done, and is killed; twenty times."""
    code = """
    import os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    from minijaxnet.run.checkpoint_folder import checkpoint_path, checkpoints, keep_newest, load_latest
    from minijaxnet.run.checkpoint import save_checkpoint

    def tree(step):
        return {"a": np.full(1 << 18, step), "b": [np.full(7, step, np.float32)]}

    def save_for_ever(folder, first, done):
        for step in range(first, 1 << 30):
            save_checkpoint(checkpoint_path(folder, step), tree(step), step=step)
            os.write(done, b"%d\\n" % step)
            keep_newest(folder, 3)

    folder, draw, newest, kills, unfinished = Path(sys.argv[1]), random.Random(0), -1, 0, 0
    # The moment is drawn within one save of however long; at least one of the kills shall hit a write.
    began = time.monotonic()
    save_checkpoint(folder / "probe", tree(0), step=0)
    duration = time.monotonic() - began
    while kills < 20 or (not unfinished and kills < 500):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(folder, newest + 1, writer)
            finally:
                os._exit(1)
        os.close(writer)
        with open(reader, "rb") as lines:
            completed = [int(lines.readline()) for _ in range(draw.randrange(4))]
            time.sleep(draw.uniform(0, duration))
            os.kill(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            completed += [int(line) for line in lines.read().split()]
        kills += 1
        last = completed[-1] if completed else newest
        unfinished += len(list(folder.glob(".*.part")))
        found = load_latest(folder, tree(0))
        if found is None:
            assert last == -1
            continue
        # The one under way may have got its name before anybody was told.
        assert found.step in (last, last + 1) and found.skipped == [], (found.step, last, found.skipped)
        assert (found.tree["a"] == found.step).all() and (found.tree["b"][0] == found.step).all()
        newest = found.step
    assert newest > 0 and unfinished, (newest, unfinished)
    keep_newest(folder, 3)  # kills between a save and this left more
    assert [step for step, _ in checkpoints(folder)][:1] == [newest] and len(checkpoints(folder)) == min(3, newest + 1)
    """
    output_of(python(code, tmp_path))
