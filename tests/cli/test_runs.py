"""runs and show: a damaged folder does not stop the listing, and control characters are not printed."""

import json
import os
import shutil

import pytest
from kits.command import AUTODIFF, call, control_characters, run

NAMES = ("config.json", "result.json", "metrics.jsonl", "environment.json", "lock", "lock.json")
ESCAPES = "\x1b]0;title\x07\x1b[2J\r\x9b31m‮"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    called = run(home, AUTODIFF)
    assert called.code == 0
    return called.folder


@pytest.fixture
def runs(made, tmp_path):
    """A run that is as it should be, and one to spoil."""
    for name in ("good", "odd"):
        shutil.copytree(made, tmp_path / name)
    return tmp_path


def listed(runs, *names):
    called = call("runs", runs)
    assert (called.code, called.err) == (0, "")
    lines = {line.split()[0]: line for line in called.out.splitlines()[2:]}
    assert list(lines) == sorted(names) and "done" in lines["good"] and "30" in lines["good"]
    return lines


def change(path, *keys, to):
    content = json.loads(path.read_text())
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = to
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [200_000 * b"[", b"\xff\xfe", b"null", b'[{"step": 1}]\n', b"9" * 5000])
def test_a_file_that_holds_anything_at_all_ends_no_listing(runs, name, content):
    (runs / "odd" / name).write_bytes(content + b"\n")
    listed(runs, "good", "odd")
    assert call("show", runs / "odd").code == (2 if name == "config.json" else 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to itself", "link to a device"])
def test_a_file_that_is_no_file_ends_no_listing(runs, name, kind):
    path = runs / "odd" / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # would be waited for
    else:
        path.symlink_to(path if kind == "link to itself" else "/dev/zero")
    listed(runs, "good", *([] if name == "config.json" else ["odd"]))
    assert call("show", runs / "odd").code in (0, 2)


@pytest.mark.parametrize("to", ["text", None, {}, 10**400, [1]])
def test_another_kind_of_value_where_a_number_or_a_table_is_meant_ends_no_listing(runs, to):
    odd = runs / "odd"
    for name, *keys in (
        ("result.json", "steps_taken"), ("result.json", "status"), ("result.json", "gradient_check"),
        ("result.json", "error"), ("environment.json", "versions"), ("environment.json", "devices"),
        ("config.json", "file"), ("config.json", "flags", "steps"),
    ):  # fmt: skip
        change(odd / name, *keys, to=to)
    for best, loss in ((to, to), ({"seed": 0}, to), (None, to)):
        listed(runs, "good", "odd")
        assert call("show", odd).code == 0
        change(odd / "result.json", "best", to=best)
        change(odd / "result.json", "loss", to=loss)
    with (odd / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 99, "loss": to}) + "\n" + json.dumps({"step": to, "loss": 1.0}) + "\n")
    listed(runs, "good", "odd")
    assert call("show", odd).code == 0


def test_what_stands_in_a_folder_is_shown_without_what_a_terminal_obeys(runs):
    odd = (runs / "odd").rename(runs / f"odd{ESCAPES}")
    change(odd / "result.json", "status", to="FAILED")
    change(odd / "result.json", "error", to=f"{ESCAPES}\ntwo lines")
    change(odd / "config.json", "file", to=ESCAPES)
    change(odd / "config.json", "flags", "optimizer", to=ESCAPES)
    change(odd / "environment.json", "devices", to=[ESCAPES])
    change(odd / "environment.json", "versions", "jax", to=ESCAPES)
    (odd / "metrics.jsonl").write_text(json.dumps({"step": 0, "loss": 1.0, f"a{ESCAPES}": 2.0}) + "\n")
    called = [call("runs", runs), call("show", odd), call("resume", odd)]
    (odd / "config.json").write_text(json.dumps({"verb": ESCAPES}))
    for each in (*called, call("show", odd)):
        text = each.out + each.err
        assert not control_characters(text) and "\x9b" not in text and "‮" not in text
        assert "\\x1b]0;title" in text
    assert len(called[0].out.splitlines()) == 4, "a line a run"


def test_a_name_that_is_no_text_is_listed(runs):
    os.rename(os.fsencode(runs / "odd"), os.fsencode(runs) + b"/odd\xff")
    listed(runs, "good", "odd\\udcff")


def test_a_folder_that_may_not_be_read_ends_no_listing(runs, monkeypatch):
    opened = os.open

    def may_not(path, *arguments, **options):
        if "odd" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", may_not)
    assert "PermissionError" in listed(runs, "good", "odd")["odd"]
