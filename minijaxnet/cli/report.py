"""``minijaxnet report``: the page that tells what came out of a run, or of several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from minijaxnet.cli.begin import asked_again, begin
from minijaxnet.cli.errors import UsageError
from minijaxnet.pytrees import named_leaves, structure_difference
from minijaxnet.report.page import page
from minijaxnet.report.several import tell_several
from minijaxnet.report.shown import shown
from minijaxnet.report.story import Known, tell, told_by
from minijaxnet.run.disk import replace_file
from minijaxnet.run.folder import changes, read_config

PAGE = "report.html"
_USAGE = f"""usage: minijaxnet report RUN [RUN ...] [--output FILE]

Make the page of a run, {PAGE} in its folder; of several runs, one page that compares them.

  --output FILE  where the page is written; {PAGE} here for several runs"""


def main(arguments: Sequence[str]) -> int:
    """Make the page of one run or of several."""
    if {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return 0
    folders, output = _parse(arguments)
    for folder in folders:
        read_config(folder)
    print(_write(folders, output or (folders[0] / PAGE if len(folders) == 1 else Path(PAGE)), None))
    return 0


def leave_report(folder: Path, known: Known) -> str:
    """Leave the page of a run that has just ended in its folder; what was left, or why nothing was, in a line."""
    try:
        return _write([folder], folder / PAGE, known)
    except Exception as error:  # the run is done: a page that cannot be made takes nothing from it
        return f"no {PAGE}: {error if isinstance(error, ImportError) else f'{type(error).__name__}: {error}'}"


def _parse(arguments: Sequence[str]) -> tuple[list[Path], Path | None]:
    rest, output = list(arguments), None
    if "--output" in rest:
        at = rest.index("--output")
        if at + 1 == len(rest):
            raise UsageError("report: --output: got nothing; expected the file to write")
        output = Path(rest[at + 1])
        del rest[at : at + 2]
    if not rest or any(argument.startswith("-") for argument in rest):
        got = " ".join(arguments) or "nothing"
        raise UsageError(f"report: got {got}; expected the folders of one run or of several, and --output FILE")
    return [Path(argument) for argument in rest], output


def _write(folders: Sequence[Path], output: Path, known: Known | None) -> str:
    if len(folders) > 1:
        told = tell_several([told_by(folder) for folder in folders])
    else:
        [folder], notes = folders, []
        found = told_by(folder, ended=known is not None)
        with jax.enable_x64(found.config["flags"].get("precision") == "float64"):
            if known is None and found.config["verb"] == "run":
                try:
                    known = _known(folder, found.config)
                except Exception as error:
                    notes = [f"Only what the folder holds is shown: {error}"]
            told = tell(found, [] if known is None else shown(found, known), notes)
    replace_file(output, page(told).encode())
    return f"page: {output}"


def _known(folder: Path, config: dict[str, Any]) -> Known:
    """Where an earlier run ended, and what it learnt from.

    Raises:
        ValueError: the experiment has changed since, or the run has not ended.
    """
    from safetensors.flax import load_file

    asked = asked_again(folder, config)
    if changes(folder, asked.file):
        raise ValueError("the experiment's code or the config has changed since")
    path = folder / "params.safetensors"
    if not path.is_file():
        raise ValueError("the run has not ended")
    flags = asked.flags
    params, train, test, _, key = begin(asked.experiment, flags.seed, flags.precision, asked.init, asked.data)
    leaves = load_file(path)
    names = list(named_leaves(params))
    if set(names) != set(leaves):
        raise ValueError(f"{path}: got the leaves {', '.join(sorted(leaves))}; expected {', '.join(names)}")
    loaded = jax.tree.unflatten(jax.tree.structure(params), [leaves[name] for name in names])
    if difference := structure_difference(loaded, params):
        raise ValueError(f"{path}: {difference}")
    return Known(asked.experiment, loaded, train, test, key)
