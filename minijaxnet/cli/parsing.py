"""The texts of a command line: which file or folder it names, and the numbers that its words stand for."""

import argparse
import ast
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minijaxnet.cli.errors import UsageError

Flags = TypeVar("Flags")


def split_path(verb: str, arguments: Sequence[str], what: str) -> tuple[str | None, Sequence[str]]:
    """The path, which comes first, and the rest; no path where only help is needed."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if {"-h", "--help"} & set(arguments):
        return None, ["--help"]
    raise UsageError(f"{verb}: got {arguments[0] if arguments else 'nothing'}; expected {what} first")


def parse_folder(verb: str, arguments: Sequence[str], summary: str, default: str | None = None) -> Path:
    """The folder that is the only argument of a verb; without a default it must be given."""
    parser = argparse.ArgumentParser(prog=f"minijaxnet {verb}", description=summary)
    parser.add_argument("folder", type=Path, nargs=None if default is None else "?", default=default)
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        raise UsageError(f"{verb}: got {folder.absolute()}; expected a folder that exists")
    return folder


def command_line(flags_type: type[Flags], **options: Any) -> Flags:
    """``tyro.cli``, without colours where ``NO_COLOR`` is set."""
    import tyro  # 80 ms: imported where used

    if os.environ.get("NO_COLOR"):
        tyro._experimental_options["ansi_codes"] = False
    return tyro.cli(flags_type, **options)


def parse_options(text: str) -> dict[str, str]:
    """``name=range`` pairs, with blanks between them.

    >>> parse_options("b1=0.8 b2=0.9:0.99:3")
    {'b1': '0.8', 'b2': '0.9:0.99:3'}
    """
    pairs = [part.partition("=") for part in text.split()]
    if wrong := [name for name, equals, value in pairs if not (name.isidentifier() and equals and value)]:
        raise UsageError(f"optimizer_options: got {wrong[0]!r}; expected name=number, such as momentum=0.9")
    return {name: value for name, _, value in pairs}


def parse_numbers(text: str) -> dict[str, int | float | bool]:
    """``name=number`` pairs, with blanks between them.

    >>> parse_numbers("b1=0.8 nesterov=True")
    {'b1': 0.8, 'nesterov': True}
    """
    numbers = {}
    for name, value in parse_options(text).items():
        try:
            numbers[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            numbers[name] = None
        if not isinstance(numbers[name], int | float):
            raise UsageError(f"optimizer_options: {name}: got {value!r}; expected a number, such as 0.9")
    return numbers


def parse_range(name: str, text: str) -> list[float]:
    """The numbers of a flag: one, several with commas, or ``from:to:count``, evenly or with ``log`` by even factors.

    >>> parse_range("rate", "0.1,0.3"), parse_range("rate", "0:1:3"), parse_range("rate", "1:100:3log")
    ([0.1, 0.3], [0.0, 0.5, 1.0], [1.0, 10.0, 100.0])
    """
    try:
        if ":" not in text:
            numbers = [float(part) for part in text.split(",")]
        else:
            first, last, count = text.split(":")
            spaced = np.geomspace if count.endswith("log") else np.linspace
            numbers = spaced(float(first), float(last), int(count.removesuffix("log"))).tolist()
    except ValueError:
        numbers = []
    if not numbers or not np.isfinite(numbers).all():
        raise UsageError(
            f"{name}: got {text!r}; expected a number, several with commas, or from:to:count, such as 1e-3:1:16log"
        )
    return numbers


def whole_numbers(name: str, numbers: Sequence[float]) -> list[int]:
    """The same numbers as integers."""
    if broken := [number for number in numbers if number != int(number)]:
        raise UsageError(f"{name}: got {broken[0]:g}; expected whole numbers")
    return [int(number) for number in numbers]
