"""The pictures of a page as files: each under its title, of the kind that was asked for."""

import pytest
from kits.pages import one_weight, picture, two_weights

from minijaxnet.report import weight
from minijaxnet.report.page import Page, Picture, Section
from minijaxnet.report.pictures import FORMATS, write_pictures

BEGINS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "gif": b"GIF8"}


def fails(axes):
    raise ZeroDivisionError


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_picture_is_a_file_of_the_kind_and_none_overwrites_another(tmp_path, suffix):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / f"loss-norm.{suffix}").write_text("of an earlier time")
    first = Section("s", pictures=[picture("Loss & norm"), picture("Other"), picture("Loss & norm")])
    again = Section("s", players=[two_weights()], pictures=[picture("Loss & norm"), Picture("Fails", "alt", fails)])
    written = write_pictures(Page("t", [], [first, again]), str(tmp_path / "made"), suffix)
    names = ["loss-norm", "other", "loss-norm-2", "loss-norm-3"]
    assert [path.name for path in written] == [f"{name}.{suffix}" for name in names]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted(path.name for path in written)
    assert all(path.read_bytes().startswith(BEGINS[suffix]) for path in written)


def test_the_descent_of_one_weight_is_an_animation(tmp_path, monkeypatch):
    monkeypatch.setattr(weight, "_LAST_FRAMES", 1)
    folder = tmp_path / "not" / "there"
    [path] = write_pictures(Page("t", [], [Section("s", players=[one_weight(3)])]), folder)
    assert path == folder / "bowl.gif" and path.read_bytes().startswith(BEGINS["gif"])


def test_another_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected one that ends in .png, .svg or .pdf"):
        write_pictures(Page("t", [], [Section("s", pictures=[picture("Loss")])]), tmp_path, "jpeg")
    assert not list(tmp_path.iterdir())
