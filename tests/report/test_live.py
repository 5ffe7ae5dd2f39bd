"""A fit while it runs, in a notebook."""

import sys
import types
import xml.etree.ElementTree as ET

import pytest
from kits.fits import DATA, full_batch

import minijaxnet as mjn
from minijaxnet.report import live as module
from minijaxnet.report import style


def fitted(sink, **options):
    descent, start, _ = full_batch()
    return mjn.fit(descent, start, DATA, **({"steps": 60, "log_every": 5, "sink": sink} | options))


def test_the_bar_and_the_curve_grow_to_the_end_also_of_a_resumed_fit(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_SHARE", 1e9)  # each time
    first, again = [], []
    fitted(mjn.live(first.append), measure=lambda params: {"test_loss": 1.0}, run_dir=tmp_path)
    assert len(first) > 12 and "60 of 60 steps" in first[-1] and "test" in first[-1]
    assert len(first[3]) < len(first[-1])
    ET.fromstring(f"<div>{first[-1]}</div>")
    fitted(mjn.live(again.append), measure=lambda params: {"test_loss": 1.0}, run_dir=tmp_path, resume=True, steps=90)
    assert "90 of 90 steps" in again[-1]


def test_showing_takes_only_a_share_of_the_time_and_the_end_is_always_shown(monkeypatch):
    now = iter(range(1, 100_000))
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: float(next(now))))
    monkeypatch.setattr(module, "_SHARE", 0.001)
    pages = []
    fitted(mjn.live(pages.append))
    assert len(pages) == 2 and "60 of 60 steps" in pages[-1]


def test_without_matplotlib_the_bar_is_there_all_the_same(monkeypatch):
    def none(*arguments, **options):
        raise style.NoMatplotlib

    monkeypatch.setattr(module, "svg_of", none)
    pages = []
    fitted(mjn.live(pages.append))
    assert "60 of 60 steps" in pages[-1]


def test_ipython_shows_it_in_one_place(monkeypatch):
    pages = []

    class Handle:
        def update(self, html):
            pages.append(html)

    display = types.ModuleType("IPython.display")
    display.HTML = lambda text: text
    display.display = lambda html, display_id: pages.append(html) or Handle()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    fitted(mjn.live())
    assert "60 of 60 steps" in pages[-1]
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ImportError, match="live: IPython is not installed"):
        mjn.live()
