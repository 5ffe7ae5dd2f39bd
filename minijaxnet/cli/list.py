"""``minijaxnet list``: the experiments of a folder and of the folders in it, with their one-line summaries."""

import ast
from collections.abc import Sequence
from pathlib import Path

from minijaxnet.cli.errors import UsageError


def main(arguments: Sequence[str]) -> int:
    """Print a line an experiment; nothing in the folder is run."""
    if {"-h", "--help"} & set(arguments):
        print("usage: minijaxnet list [FOLDER]\n")
        print("Show the experiments of a folder (experiments, if left out) and of the folders in it.")
        return 0
    if len(arguments) > 1:
        raise UsageError(f"list: got {' '.join(arguments)}; expected one folder at most")
    folder = Path(arguments[0] if arguments else "experiments")
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise UsageError(f"list: got {folder}; expected a folder, but {folder.absolute()} {what}")
    rows = [row for path in sorted(folder.glob("*.py")) if (row := _describe(path))]
    rows += [row for path in sorted(folder.glob("*/*.py")) if (row := _describe(path, only_experiments=True))]
    if not rows:
        print(f"{folder}: no experiments")
        return 0
    print("\n".join(f"{call:<{max(len(r[0]) for r in rows)}}  {summary}" for call, summary in rows))
    return 0


def _describe(path: Path, *, only_experiments: bool = False) -> tuple[str, str] | None:
    """How to call a file and its summary; None if it is not meant to be called, or not an experiment."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError) as error:
        return None if only_experiments else (str(path), f"(cannot be read: {type(error).__name__})")
    summary = (ast.get_docstring(tree) or "(no summary)").splitlines()[0]
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    if "experiment" in assigned:
        return f"minijaxnet run {path}", summary
    is_script = any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
    return (f"python {path}", summary) if is_script and not only_experiments else None
