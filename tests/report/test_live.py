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
    return mjn.fit(descent, start, DATA, steps=60, log_every=5, sink=sink, **options)


def test_the_bar_and_the_curve_grow_to_the_end(monkeypatch):
    monkeypatch.setattr(module, "_SHARE", 1e9)  # each time
    shown = []
    fitted(mjn.live(shown.append), measure=lambda params: {"test_loss": 1.0, "accuracy": 0.5})
    assert len(shown) > 12 and "60 of 60 steps" in shown[-1]
    ET.fromstring(f"<div>{shown[-1]}</div>")
    assert "test loss" in shown[-1] or "test" in shown[-1]
    assert len(shown[3]) < len(shown[-1])


def test_showing_takes_only_a_share_of_the_time_and_the_end_is_always_shown(monkeypatch):
    now = iter(range(1, 100_000))
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: float(next(now))))
    monkeypatch.setattr(module, "_SHARE", 0.001)
    shown = []
    fitted(mjn.live(shown.append))
    assert len(shown) == 2 and "60 of 60 steps" in shown[-1]


def test_a_resumed_fit_goes_on_with_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARE", 1e9)
    shown = []
    fitted(mjn.live(shown.append), run_dir=tmp_path)
    again = []
    descent, start, _ = full_batch()
    mjn.fit(descent, start, DATA, steps=90, sink=mjn.live(again.append), run_dir=tmp_path, resume=True)
    assert "90 of 90 steps" in again[-1]


def test_without_matplotlib_the_bar_is_there_all_the_same(monkeypatch):
    def none(*arguments, **options):
        raise style.NoMatplotlib

    monkeypatch.setattr(module, "svg_of", none)
    shown = []
    fitted(mjn.live(shown.append))
    assert "60 of 60 steps" in shown[-1]


def test_ipython_shows_it_in_one_place(monkeypatch):
    shown = []

    class Handle:
        def update(self, html):
            shown.append(html)

    display = types.ModuleType("IPython.display")
    display.HTML = lambda text: text
    display.display = lambda html, display_id: shown.append(html) or Handle()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    fitted(mjn.live())
    assert "60 of 60 steps" in shown[-1]
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ImportError, match="live: IPython is not installed"):
        mjn.live()
