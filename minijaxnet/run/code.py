"""The code of a run: the experiment's file and what it imported from beside itself, kept with the run."""

import difflib
import hashlib
import sys
from pathlib import Path


def sources(file: str | Path) -> dict[str, str]:
    """The texts of an experiment's file and of the modules that it has imported from its own folder.

    Args:
        file: of an experiment that is loaded.

    Returns:
        ``{path: text}``, paths relative to the file's folder; the file itself comes first.
    """
    file = Path(file).resolve()
    found = {file.name: file.read_text(encoding="utf-8")}
    for module in sorted(filter(None, (getattr(m, "__file__", None) for m in list(sys.modules.values())))):
        path = Path(module).resolve()
        if path.suffix != ".py" or not path.is_relative_to(file.parent) or not path.is_file():
            continue  # some modules say that they come from a file that there is not
        name = path.relative_to(file.parent)
        if not {"site-packages", "dist-packages", "minijaxnet"} & set(name.parts):
            found.setdefault(name.as_posix(), path.read_text(encoding="utf-8"))
    return found


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
        path.write_text(text, encoding="utf-8")


def kept(folder: Path) -> dict[str, str]:
    """The texts below a folder, as ``keep`` wrote them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def difference(then: dict[str, str], now: dict[str, str]) -> str:
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
        titles = (f"{name}, when the run was started", f"{name}, now")
        lines += difflib.unified_diff(*sides, *titles, lineterm="")
    return "\n".join(lines)
