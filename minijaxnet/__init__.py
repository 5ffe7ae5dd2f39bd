"""A small JAX framework for researchers who work on gradients: descend, verify, benchmark."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minijaxnet._public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Import all public names when the first one is used, so that pytest finds the fixture without importing JAX."""
    if name == "__version__":
        from importlib.metadata import version  # 20 ms: imported where used

        return version("minijaxnet")
    if name != "__all__" and name.startswith("__"):
        raise AttributeError(f"module 'minijaxnet' has no attribute {name!r}")
    public = importlib.import_module("minijaxnet._public")
    globals().update({each: getattr(public, each) for each in (*public.__all__, "__all__")})
    if name not in globals():
        raise AttributeError(f"module 'minijaxnet' has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return __getattr__("__all__")
