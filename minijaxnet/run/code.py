"""The code of a run: the experiment's file and the modules that it imports, without installed ones."""

import difflib
import hashlib
import hmac
import os
import secrets
import site
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

from minijaxnet._files import naming
from minijaxnet.experiment import module_name

_PACKAGE = Path(__file__).parents[1]
_PYTHONS = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_FOLDERS = (*_PYTHONS, _PACKAGE, Path(site.getusersitepackages()))
_NOT_ITS_OWN = tuple({str(path) + os.sep for folder in _FOLDERS for path in (folder, folder.resolve())})
# Subfolders: for modules from other folders, and for the checksums of data files.
IMPORTED, FILES = "imported/", "files/"


def sources(file: str | Path, files: Sequence[str | Path] = ()) -> dict[str, str]:
    """The texts of an experiment's file and of the modules that it has imported, without installed ones.

    Args:
        file: of an experiment that is loaded.
        files: further files that the results depend on, such as data; paths are relative to the file's folder.

    Returns:
        ``{path: text}``. The experiment's file comes first. Paths are relative to its folder, or below ``imported/``
        for modules in other folders. For the further files the texts are SHA-256 checksums, below ``files/``.

    Raises:
        ValueError: one of the further files does not exist.
    """
    file = Path(file).resolve()
    found = {file.name: _read(file)}
    after_it = False  # modules that were imported before the experiment count only if they are in its folder
    for name, module in list(sys.modules.items()):
        after_it |= name == module_name(file)
        named = getattr(module, "__file__", None) or ""
        if name == "__main__" or not named.endswith(".py") or _is_installed(named):
            continue
        path = Path(named).resolve()
        beside = path.is_relative_to(file.parent)
        if path.is_file() and not _is_installed(str(path)) and (beside or after_it):
            found.setdefault(path.relative_to(file.parent).as_posix() if beside else _imported(name, path), _read(path))
    for each in files:
        path = file.parent / each
        if not path.is_file():
            raise ValueError(f"files: got {each}; expected a file, relative to {file.parent}")
        name = "/".join(part for part in Path(each).parts if part not in (Path(each).anchor, ".."))
        found[f"{FILES}{name}.sha256"] = hashlib.sha256(path.read_bytes()).hexdigest() + "\n"
    return found


def present(file: str | Path, names: Iterable[str]) -> dict[str, str]:
    """The present texts of files with these names, in the experiment's folder or on Python's path."""
    folder, found = Path(file).resolve().parent, {}
    for name in names:
        places = [folder / name]
        if name.startswith(IMPORTED):
            places = [Path(root) / name.removeprefix(IMPORTED) for root in sys.path]
        if path := next(filter(Path.is_file, places), None):
            found[name] = _read(path)
    return found


def _is_installed(path: str) -> bool:
    return path.startswith(_NOT_ITS_OWN) or "site-packages" in path or "dist-packages" in path


def _imported(module: str, path: Path) -> str:
    """The path below ``imported/`` of a module in another folder."""
    package = "/__init__" if path.name == "__init__.py" else ""
    return f"{IMPORTED}{module.replace('.', '/')}{package}.py"


def mark(of: str) -> str:
    """A signature which shows that this user has run code of this digest; "" if no key can be stored.

    Other users cannot make it. The key is in the user's configuration folder, and is made when it is first needed.
    """
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = home / "minijaxnet" / "key"
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
                new.write(secrets.token_bytes(32))
        key = path.read_bytes()
    except OSError:
        return ""
    return hmac.new(key, of.encode(), "sha256").hexdigest() if key else ""


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def digest(texts: dict[str, str]) -> str:
    """A SHA-256 of names and texts.

    >>> digest({"a.py": "x = 1"}) == digest({"a.py": "x = 2"})
    False
    """
    total = hashlib.sha256()
    for name in sorted(texts):
        for part in (name.encode(), texts[name].encode()):
            total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def keep(folder: Path, texts: dict[str, str]) -> None:
    """Write the texts as files below a folder."""
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
    """The changes of texts as a unified diff; "" if there are none.

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
