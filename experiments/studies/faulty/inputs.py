"""Bad inputs, which must be refused with their names, and unusual ones, which must make no difference."""

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .judge import Expected, Trial
from .tool import Call, Fault, Setting, Tool, good_call

Change = Callable[[Call], Call]

X = r"\b([xX]|data|inputs?|features?|arrays?)\b"
Y = r"\b([yY]|targets?|labels?|class(es)?|data|inputs?)\b"
BOTH = rf"{X}|{Y}"
PARAMS = r"param|weight|bias|coef|leaf|input"
FINITE = r"(?i)nan|inf|finite"
SHAPE = r"(?i)shape|sizes?|axis|dim|features|columns|points|samples|length|cardinality"
TEXT = r"(?i)str|<U|'a'|'no'|text|dtype"
ANY = r"\w"


class Input(NamedTuple):
    """A call with something bad or unusual in it.

    Attributes:
        change: makes it from a good call.
        expected: of an error.
        right: makes the call with the right result from a good call; None where no result is right.
        classes: whether the targets are labels, or numbers.
    """

    change: Change
    expected: Expected
    right: Change | None = None
    classes: bool = False


def _same(call: Call) -> Call:
    return call


def _argument(
    name: str, value: Any, names: str, wrong: str, ours: str, right: Change | None = None, classes: bool = False
) -> Input:
    """An argument with this value, or changed by this function."""

    def change(call: Call) -> Call:
        return call.but(**{name: value(getattr(call, name)) if callable(value) else value})

    return Input(change, Expected(names, wrong, ours), right, classes)


def _x(value: Any, wrong: str, ours: str, right: Change | None = None, names: str = X) -> Input:
    return _argument("x", value, names, wrong, ours, right)


def _y(value: Any, wrong: str, ours: str, right: Change | None = None, names: str = Y) -> Input:
    return _argument("y", value, names, wrong, ours, right)


def _labels(value: Any, wrong: str, ours: str, right: Change | None = None) -> Input:
    return _argument("y", value, Y, wrong, ours, right, classes=True)


def _label(value: Any, ours: str) -> Input:
    """One label of another value."""
    wrong = r"(?i)\b5\b|-1|nan|class|finite|range|0\.5|shape"
    return _labels(lambda y: _with(y.astype(np.float32) if isinstance(value, float) else y, 4, value), wrong, ours)


def _each_leaf(change: Callable[[Any], Any]) -> Change:
    return lambda call: call.but(
        change_params=lambda params: jax.tree.map(lambda leaf: change(np.asarray(leaf)), params)
    )


def _params(change: Callable[[Any], Any], wrong: str, ours: str, right: Change | None = None) -> Input:
    return Input(_each_leaf(change), Expected(PARAMS, wrong, ours), right)


def _rate(value: Any, ours: str) -> Input:
    wrong = r"nan|inf|0(\.0)?\b|-1(\.0)?\b|fast|str|positive|range|number"
    return _argument("learning_rate", value, r"learning[ _]?rate|step_size", wrong, f"learning_rate: {ours}")


def _steps(value: Any, ours: str) -> Input:
    return _argument("steps", value, r"steps?\b|epochs?|max_iter|num_", r"-1|2\.5|ten|int", f"steps: {ours}")


def _size(value: Any, ours: str, right: Change | None = None) -> Input:
    wrong = r"\b0\b|-4|2\.5|99|four|int|positive|range|larger|most"
    return _argument("batch_size", value, r"batch[ _]?size", wrong, f"batch_size: {ours}", right)


def _with(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


def _mapped(x: np.ndarray) -> np.ndarray:
    """The same in a file that is mapped into memory, read-only; the file is gone once it is not used."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", x)
        return np.load(Path(folder) / "x.npy", mmap_mode="r")


def _read_only(x: np.ndarray) -> np.ndarray:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


def _strided(x: np.ndarray) -> np.ndarray:
    return np.repeat(x, 2, axis=0)[::2]


INPUTS: dict[str, Input] = {
    "y of shape (n,) for (n, 1)": _y(lambda y: y[:, 0], SHAPE, r"targets: got shape \(\d+,\); expected", _same),
    "y of shape (n, 2) for (n, 1)": _y(lambda y: np.repeat(y, 2, axis=1), SHAPE, r"targets: got shape \(\d+, 2\)"),
    "x a column short": _x(lambda x: x[:, :2], SHAPE, r"x: got shape \(12, 2\); expected a last axis of 3"),
    "x a column too many": _x(lambda x: np.repeat(x, 2, axis=1)[:, :4], SHAPE, r"x: got shape \(12, 4\)"),
    "x without its batch axis": _x(lambda x: x[0], SHAPE, r"data\.y: got 12 points", names=BOTH),
    "fewer y than x": _y(lambda y: y[:5], SHAPE, r"data\.y: got 5 points; expected 12", names=BOTH),
    "NaN in x": _x(lambda x: _with(x, (2, 1), np.nan), FINITE, r"data\.x\[2, 1\]: got nan"),
    "infinity in x": _x(lambda x: _with(x, (2, 1), -np.inf), FINITE, r"data\.x\[2, 1\]: got -inf"),
    "NaN in y": _y(lambda y: _with(y, 4, np.nan), FINITE, r"data\.y\[4, 0\]: got nan"),
    "no points": Input(
        lambda call: call.but(x=call.x[:0], y=call.y[:0]),
        Expected(BOTH, r"(?i)empty|\b0\b|least", r"data\.x: got an empty data set"),
    ),
    "text for x": _x(lambda x: np.full(x.shape, "a"), TEXT, r"data\.x: got dtype <U1"),
    "an object array for x": _x(
        lambda x: _with(x.astype(object), (0, 0), None),
        r"(?i)object|None|NaN",
        r"data\.x: got dtype object; expected numbers",
    ),
    "None for x": _x(None, "None", r"data\.x"),
    "a number for x": _x(1.0, r"(?i)scalar|single number|shape|1\.0|dim", r"data\.x: got a single number"),
    "complex x": _x(lambda x: x + 1j, r"(?i)complex", r"complex"),
    "a masked x": _x(lambda x: np.ma.masked_less(_with(x, (2, 1), -1e20), -1e10), r"(?i)mask", r"data\.x: got"),
    "dates for x": _x(
        lambda x: np.full(x.shape, "2020-01-01", "datetime64[D]"), r"(?i)date", r"data\.x: got dtype datetime64"
    ),
    "numbers beyond float32 in x": _x(
        lambda x: _with(x.astype(np.float64), (2, 1), 1e300),
        r"(?i)inf|finite|1e\+?300|large|float32",
        r"data\.x\[2, 1\]",
    ),
    "a label too high": _label(5, r"labels\[4\]: got 5; expected a class of 2"),
    "a negative label": _label(-1, r"labels\[4\]: got -1; expected a class of 2"),
    "a label NaN": _label(float("nan"), r"data\.y\[4\]: got nan"),
    "a label 0.5": _label(0.5, r"labels: got float32\[12\]; expected classes, .*astype\(int\)"),
    "labels in a column": _labels(
        lambda y: y[:, None], SHAPE, r"labels: got int32\[(12|4),1\]; expected classes", _same
    ),
    "labels in words": _labels(lambda y: np.array(["no", "yes"])[y], TEXT, r"data\.y: got dtype <U3", _same),
    "integer params": _params(
        lambda leaf: np.round(leaf * 9).astype(np.int32),
        "int",
        r"params\[0\]\['bias'\]: got dtype int32",
        _each_leaf(lambda leaf: np.round(leaf * 9)),
    ),
    "NaN in params": _params(lambda leaf: leaf * np.nan, FINITE, r"state\.params\[0\]\['bias'\]: got NaN"),
    "infinity in params": _params(
        lambda leaf: leaf + np.inf, FINITE, r"state\.params\[0\]\['bias'\]: got NaN or infinity"
    ),
    "params in words": _params(lambda leaf: np.full(leaf.shape, "a"), TEXT, r"params\[0\]\['bias'\]: got"),
    "params of another shape": _params(lambda leaf: leaf[..., :-1], SHAPE, r"(params|weights|x)\b.*: got .*expected"),
    "no params": Input(
        lambda call: call.but(change_params=lambda params: ()),
        Expected(PARAMS, r"(?i)empty|without|no |least|length|\b0\b", r"params: got a tree without leaves"),
    ),
    "negative steps": _steps(-1, "got -1; expected at least 0"),
    "half a step": _steps(2.5, r"got 2\.5; expected an int"),
    "steps in words": _steps("ten", "got 'ten'; expected an int"),
    "a learning rate of 0": _rate(0.0, r"got 0\.0; expected a positive, finite"),
    "a negative learning rate": _rate(-1.0, r"got -1\.0; expected a positive, finite"),
    "a learning rate NaN": _rate(float("nan"), "got nan; expected a positive, finite"),
    "an infinite learning rate": _rate(float("inf"), "got inf; expected a positive, finite"),
    "a learning rate in words": _rate("fast", "got 'fast'; expected a positive number"),
    "batch size 0": _size(0, "got 0; expected at least 1"),
    "a negative batch size": _size(-4, "got -4; expected at least 1"),
    "a fractional batch size": _size(2.5, r"got 2\.5; expected an int"),
    "a batch size in words": _size("four", "got 'four'; expected an int"),
    "a batch size beyond the points": _size(99, "got 99; expected at most 12", lambda call: call.but(batch_size=12)),
    "a seed in words": _argument("seed", "a", r"\b(key|seed|random_state)\b", r"str|'a'|int", "key: got a str"),
    "no key for minibatches": _argument("seed", None, r"\b(key|seed)\b", "None", "key: got None; expected", _same),
    "float64 data": Input(
        lambda call: call.but(x=call.x.astype(np.float64), y=call.y.astype(np.float64)), Expected(BOTH), _same
    ),
    "Fortran order": _x(np.asfortranarray, ANY, "", _same),
    "read-only arrays": _x(_read_only, ANY, "", _same),
    "memory-mapped data": _x(_mapped, ANY, "", _same),
    "strided data": _x(_strided, ANY, "", _same),
    "big-endian data": _x(lambda x: x.astype(">f4"), r"(?i)>f4|endian|order|dtype", "", _same),
    "integer data": _x(
        lambda x: np.round(x * 9).astype(np.int32), "int", "", lambda call: call.but(x=np.round(call.x * 9))
    ),
}


def _trials(found: Input, tool: Tool, setting: Setting) -> Iterator[Trial]:
    """One trial; before it the right result, or a call without a fault, so that all is compiled."""
    good = good_call(found.classes)
    before = tool.train(found.right(good) if found.right else good)
    call = found.change(good)
    yield Trial(lambda: tool.train(call), found.expected, before if found.right else None)


FAULTS: dict[str, Fault] = {name: functools.partial(_trials, found) for name, found in INPUTS.items()}
