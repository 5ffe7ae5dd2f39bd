"""``minijaxnet list``: the experiments of a folder and of the folders in it, with their one-line summaries."""

import ast
from collections.abc import Sequence
from pathlib import Path

from minijaxnet.cli.parsing import parse_folder

_SUMMARY = "List the experiments of a folder (experiments, if left out) and of the folders in it."


def main(arguments: Sequence[str]) -> int:
    """Print a line for each experiment; nothing in the folder is run."""
    folder = parse_folder("list", arguments, _SUMMARY, "experiments")
    rows = [row for path in sorted(folder.glob("*.py")) if (row := _describe(path))]
    rows += [row for path in sorted(folder.glob("*/*.py")) if (row := _describe(path, only_experiments=True))]
    width = max((len(command) for command, _ in rows), default=0)
    print("\n".join(f"{command:<{width}}  {summary}" for command, summary in rows) or f"{folder}: no experiments")
    return 0


def _describe(path: Path, *, only_experiments: bool = False) -> tuple[str, str] | None:
    """The command that runs a file, and its summary; None if it is neither an experiment nor a script."""
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
