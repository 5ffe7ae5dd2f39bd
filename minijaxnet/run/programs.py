"""Compiled programs that are kept with a run, so that a new process goes on to the same bits."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

PROGRAMS = "programs"
_SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
_SETTINGS += ("jax_persistent_cache_min_entry_size_bytes", "jax_persistent_cache_enable_xla_caches")


@contextlib.contextmanager
def kept_programs(folder: Path, keep: str) -> Iterator[None]:
    """Have JAX keep in a run's folder what it compiles meanwhile, and take from there what is kept already.

    On a GPU XLA chooses kernels by timing them, so that a new process may choose others, which round otherwise.

    Args:
        folder: of the run. What is kept there is run: it has to be the user's own.
        keep: "yes", "no", or "auto" for on an accelerator only: on a CPU the same program is compiled each time. Of
            several processes none keeps any.
    """
    wanted = keep == "yes" or (keep == "auto" and jax.default_backend() != "cpu")
    if not wanted or jax.process_count() > 1:
        yield
        return
    from jax.experimental.compilation_cache import compilation_cache

    before = {name: jax.config.values[name] for name in _SETTINGS}
    try:
        # None of XLA's own caches: their folder's name would be part of what a program is found by, so that none would
        # be found once the run's folder is moved or named by another path.
        for name, value in zip(_SETTINGS, (str(folder / PROGRAMS), 0.0, -1, "none"), strict=True):
            jax.config.update(name, value)
        _drop_cut_off(folder / PROGRAMS)
        compilation_cache.reset_cache()  # else JAX stays with what it found at its first compilation
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _drop_cut_off(programs: Path) -> None:
    """Remove what a process that was killed has written in part: JAX would neither read it nor write it anew."""
    try:
        from jax._src.compilation_cache import decompress_executable
    except ImportError:  # private to JAX: then its own warning tells
        return
    for path in programs.glob("*-cache"):
        try:
            decompress_executable(path.read_bytes())
        except Exception:  # of zlib or of zstd, whichever JAX has found
            path.unlink(missing_ok=True)
