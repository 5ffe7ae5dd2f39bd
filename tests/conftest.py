"""Fixtures of all tests, and a cache of compiled programs that they share."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """A cache of compiled programs for this run alone; workers inherit it, and so do the processes that tests start."""
    if hasattr(config, "workerinput"):
        return
    os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="config-")  # the mark of own runs is made with a key there
    config.add_cleanup(lambda: shutil.rmtree(os.environ["XDG_CONFIG_HOME"], ignore_errors=True))
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="compiled-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture
def step_by_step() -> Iterator[None]:
    """Fits look up after each step."""
    from kits.fits import chunks_of

    with chunks_of(0.0):
        yield


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of pages are drawn, but not written as SVG: that is what takes the time."""
    monkeypatch.setattr("minijaxnet.report.page.svg_of", lambda draw, *options: "<svg></svg>")


@pytest.fixture
def axes() -> Iterator[Any]:
    """Axes to draw on, in the style of all pictures."""
    from minijaxnet.report.style import figure, styled

    with styled():
        yield figure().subplots()
