"""Compiled programs that are stored with a run, so that a resumed run gives the same bits."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

PROGRAMS = "programs"
_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_persistent_cache_enable_xla_caches",
)


@contextlib.contextmanager
def kept_programs(folder: Path, keep: str) -> Iterator[None]:
    """Let JAX store compiled programs in a run's folder within the ``with``, and use those that are there.

    On a GPU XLA chooses kernels by timing them, so a new process may choose others, with other rounding.

    Args:
        folder: of the run. The stored programs are run, so it has to be the user's own folder.
        keep: "yes", "no", or "auto": only on an accelerator, as a CPU compiles the same program each time. With several
            processes no programs are stored.
    """
    stores = keep == "yes" or (keep == "auto" and jax.default_backend() != "cpu")
    if not stores or jax.process_count() > 1:
        yield
        return
    from jax.experimental.compilation_cache import compilation_cache

    before = {name: jax.config.values[name] for name in _SETTINGS}
    try:
        # Without XLA's own caches: their folder's name would be part of a program's key, so that programs would not be
        # found after the run's folder is moved.
        for name, value in zip(_SETTINGS, (str(folder / PROGRAMS), 0.0, -1, "none"), strict=True):
            jax.config.update(name, value)
        _remove_damaged(folder / PROGRAMS)
        compilation_cache.reset_cache()  # otherwise JAX keeps the settings of its first compilation
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _remove_damaged(programs: Path) -> None:
    """Remove files that a killed process has written in part: JAX would neither read nor replace them."""
    try:
        from jax._src.compilation_cache import decompress_executable
    except ImportError:  # a private function of JAX; without it JAX itself warns
        return
    for path in programs.glob("*-cache"):
        try:
            decompress_executable(path.read_bytes())
        except Exception:  # an error of zlib or of zstd, whichever JAX uses
            path.unlink(missing_ok=True)
