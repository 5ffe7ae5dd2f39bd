"""The code of a run: the experiment's file and what it imported from beside itself, kept with the run."""

import difflib
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from minijaxnet.run.disk import naming

_PACKAGE = Path(__file__).parents[1]
_PYTHONS = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_NOT_ITS_OWN = tuple({str(path) + os.sep for folder in (*_PYTHONS, _PACKAGE) for path in (folder, folder.resolve())})


def sources(file: str | Path) -> dict[str, str]:
    """The texts of an experiment's file and of the modules that it has imported from its own folder.

    Args:
        file: of an experiment that is loaded.

    Returns:
        ``{path: text}``, paths relative to the file's folder; the file itself comes first.
    """
    file = Path(file).resolve()
    found = {file.name: _read(file)}
    for name, module in list(sys.modules.items()):
        named = getattr(module, "__file__", None) or ""
        if name == "__main__" or not named.endswith(".py") or named.startswith(_NOT_ITS_OWN):
            continue
        path = Path(named).resolve()
        if path.is_relative_to(file.parent) and not str(path).startswith(_NOT_ITS_OWN) and path.is_file():
            found.setdefault(path.relative_to(file.parent).as_posix(), _read(path))
    return found


def present(file: str | Path, names: Iterable[str]) -> dict[str, str]:
    """The texts that files of these names now have beside an experiment's file, imported or not yet."""
    paths = {name: Path(file).resolve().parent / name for name in names}
    return {name: _read(path) for name, path in paths.items() if path.is_file()}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def digest(texts: dict[str, str]) -> str:
    """A SHA-256 over names and texts.

    >>> digest({"a.py": "x = 1"}) == digest({"a.py": "x = 2"})
    False
    """
    total = hashlib.sha256()
    for name in sorted(texts):
        for part in (name.encode(), texts[name].encode()):
            total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def keep(folder: Path, texts: dict[str, str]) -> None:
    """Write the texts below a new folder."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path, "file not written"):
            path.write_text(text, encoding="utf-8")


def kept(folder: Path) -> dict[str, str]:
    """The texts below a folder, as ``keep`` wrote them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _read(path) for path in paths}


def difference(
    then: dict[str, str], now: dict[str, str], titles: tuple[str, str] = ("when the run was started", "now")
) -> str:
    """How texts have changed, as a unified diff; nothing if they have not.

    >>> print(difference({"a.py": "x = 1"}, {"a.py": "x = 2"}))
    --- a.py, when the run was started
    +++ a.py, now
    @@ -1 +1 @@
    -x = 1
    +x = 2
    """
    lines = []
    for name in sorted({*then, *now}):
        sides = (then.get(name, "").splitlines(), now.get(name, "").splitlines())
        before, after = (f"{name}, {title}" for title in titles)
        lines += difflib.unified_diff(*sides, before, after, lineterm="")
    return "\n".join(lines)
