"""Compiled programs in a run's folder: kept where asked for, found again, and JAX's settings as they were."""

import contextlib
import os
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from minijaxnet import _machine
from minijaxnet.run.programs import _SETTINGS, PROGRAMS, kept_programs


@contextlib.contextmanager
def events():
    names = []

    def listen(event, **details):
        names.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_listener(listen)


def settings():
    return {name: jax.config.values[name] for name in _SETTINGS}


def compiled_anew(constant):
    return jax.jit(lambda x: x * constant)(np.float32(2))


def test_kept_programs_are_found_by_any_path_and_where_the_folder_was_moved_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = settings()
    with pytest.raises(ZeroDivisionError), kept_programs(Path("run"), "yes"):
        assert compiled_anew(11) == 22
        _ = 1 / 0
    assert settings() == before
    kept = {path.name for path in Path("run", PROGRAMS).iterdir()}
    compiled_anew(5)
    assert kept == {path.name for path in Path("run", PROGRAMS).iterdir()}
    for move, folder in ((False, tmp_path / "run"), (True, tmp_path / "moved")):
        if move:
            (tmp_path / "run").rename(folder)
        with events() as names, kept_programs(folder, "yes"):
            assert compiled_anew(11) == 22
        assert "/jax/compilation_cache/cache_hits" in names
        assert "/jax/compilation_cache/cache_misses" not in names


@pytest.mark.parametrize("left", [0, 300])
def test_a_program_that_was_written_in_part_is_kept_anew(left, tmp_path):
    with kept_programs(tmp_path, "yes"):
        compiled_anew(13)
    (path,) = (tmp_path / PROGRAMS).glob("*-cache")
    whole = path.stat().st_size
    os.truncate(path, left)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with kept_programs(tmp_path, "yes"):
            assert compiled_anew(13) == 26
        assert abs(path.stat().st_size - whole) < 100  # how long compiling took is in it
        with events() as names, kept_programs(tmp_path, "yes"):
            assert compiled_anew(13) == 26
    assert "/jax/compilation_cache/cache_hits" in names


@pytest.mark.parametrize(
    ("keep", "backend", "kept"), [("no", "gpu", False), ("auto", "cpu", False), ("auto", "gpu", True)]
)
def test_programs_are_kept_where_it_was_asked_for_or_on_an_accelerator(keep, backend, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    with kept_programs(tmp_path, keep):
        compiled_anew(7)
    assert (tmp_path / PROGRAMS).is_dir() == kept


@pytest.mark.parametrize("before", ["", "--xla_dump_to=x"])
def test_deterministic_kernels_are_asked_for_once(before, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", before)
    for _ in range(2):
        _machine.choose_deterministic()
    assert os.environ["XLA_FLAGS"].split() == [*before.split(), "--xla_gpu_deterministic_ops=true"]
