"""Bad inputs, which must be refused with their names, and odd ones, which must make no difference."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .judge import Expected, Trial
from .tool import Call, Tool, good_call

X = r"\b([xX]|data|inputs?|features?|arrays?)\b"
Y = r"\b([yY]|targets?|labels?|class(es)?|data|inputs?)\b"
BOTH = rf"{X}|{Y}"
PARAMS = r"param|weight|bias|coef|leaf|input"
FINITE = r"(?i)nan|inf|finite"
SHAPE = r"(?i)shape|sizes?|axis|dim|features|columns|points|samples|length|cardinality"


class Input(NamedTuple):
    """A call with something odd in it.

    Attributes:
        change: makes it of a good call.
        expected: of an error.
        classes: whether labels are learnt, or numbers.
        right: the call with the right result, made of a good call; None if there is none.
    """

    change: Callable[[Call], Call]
    expected: Expected
    classes: bool = False
    right: Callable[[Call], Call] | None = None


def _same(call: Call) -> Call:
    return call


def _with(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


def _params(change: Callable[[Any], Any]) -> Callable[[Call], Call]:
    return lambda call: call.but(
        change_params=lambda params: jax.tree.map(lambda leaf: change(np.asarray(leaf)), params)
    )


def _mapped(call: Call) -> Call:
    """The data in a file that is mapped into memory, read-only; the file is gone once nobody looks at it."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", call.x)
        return call.but(x=np.load(Path(folder) / "x.npy", mmap_mode="r"))


def _read_only(call: Call) -> Call:
    x, y = call.x.copy(), call.y.copy()
    x.flags.writeable = y.flags.writeable = False
    return call.but(x=x, y=y)


def _strided(call: Call) -> Call:
    wide = np.full((2 * len(call.x), call.x.shape[1]), np.nan, np.float32)
    wide[::2] = call.x
    return call.but(x=wide[::2])


def _rate(value: Any, ours: str) -> Input:
    shown = r"nan|inf|0(\.0)?\b|-1(\.0)?\b|fast|str|positive|range|number"
    return Input(lambda call: call.but(learning_rate=value), Expected(r"learning[ _]?rate|step_size", shown, ours))


def _steps(value: Any, ours: str) -> Input:
    return Input(
        lambda call: call.but(steps=value), Expected(r"steps?\b|epochs?|max_iter|num_", r"-1|2\.5|ten|int", ours)
    )


def _size(value: Any, ours: str, right: Callable[[Call], Call] | None = None) -> Input:
    shown = r"\b0\b|-4|2\.5|99|four|int|positive|range|larger|most"
    return Input(lambda call: call.but(batch_size=value), Expected(r"batch[ _]?size", shown, ours), right=right)


def _label(value: Any, ours: str) -> Input:
    def change(call: Call) -> Call:
        y = call.y.astype(np.float32) if isinstance(value, float) else call.y
        return call.but(y=_with(y, 4, value))

    return Input(change, Expected(Y, r"(?i)\b5\b|-1|nan|class|finite|range|0\.5|shape", ours), classes=True)


INPUTS: dict[str, Input] = {
    "y of shape (n,) for (n, 1)": Input(
        lambda call: call.but(y=call.y[:, 0]), Expected(Y, SHAPE, r"targets: got shape \(\d+,\); expected"), right=_same
    ),
    "y of shape (n, 2) for (n, 1)": Input(
        lambda call: call.but(y=np.repeat(call.y, 2, axis=1)), Expected(Y, SHAPE, r"targets: got shape \(\d+, 2\)")
    ),
    "x a column short": Input(
        lambda call: call.but(x=call.x[:, :2]), Expected(X, SHAPE, r"x: got shape \(12, 2\); expected a last axis of 3")
    ),
    "x a column too many": Input(
        lambda call: call.but(x=np.repeat(call.x, 2, axis=1)[:, :4]), Expected(X, SHAPE, r"x: got shape \(12, 4\)")
    ),
    "x without its batch axis": Input(
        lambda call: call.but(x=call.x[0]), Expected(BOTH, SHAPE, r"data\.y: got 12 points")
    ),
    "fewer y than x": Input(
        lambda call: call.but(y=call.y[:5]), Expected(BOTH, SHAPE, r"data\.y: got 5 points; expected 12")
    ),
    "NaN in x": Input(
        lambda call: call.but(x=_with(call.x, (2, 1), np.nan)), Expected(X, FINITE, r"data\.x\[2, 1\]: got nan")
    ),
    "infinity in x": Input(
        lambda call: call.but(x=_with(call.x, (2, 1), -np.inf)), Expected(X, FINITE, r"data\.x\[2, 1\]: got -inf")
    ),
    "NaN in y": Input(
        lambda call: call.but(y=_with(call.y, 4, np.nan)), Expected(Y, FINITE, r"data\.y\[4, 0\]: got nan")
    ),
    "no points": Input(
        lambda call: call.but(x=call.x[:0], y=call.y[:0]),
        Expected(BOTH, r"(?i)empty|\b0\b|least", r"data\.x: got an empty data set"),
    ),
    "text for x": Input(
        lambda call: call.but(x=np.full(call.x.shape, "a")),
        Expected(X, r"(?i)str|<U1|'a'|text", r"data\.x: got dtype <U1"),
    ),
    "an object array for x": Input(
        lambda call: call.but(x=_with(call.x.astype(object), (0, 0), None)),
        Expected(X, r"(?i)object|None|NaN", r"data\.x: got dtype object; expected numbers"),
    ),
    "None for x": Input(lambda call: call.but(x=None), Expected(X, "None", r"data\.x")),
    "a number for x": Input(
        lambda call: call.but(x=1.0),
        Expected(X, r"(?i)scalar|single number|shape|1\.0|dim", r"data\.x: got a single number"),
    ),
    "complex x": Input(lambda call: call.but(x=call.x + 1j), Expected(X, r"(?i)complex", r"complex")),
    "a masked x": Input(
        lambda call: call.but(x=np.ma.masked_less(_with(call.x, (2, 1), -1e20), -1e10)),
        Expected(X, r"(?i)mask", r"data\.x: got"),
    ),
    "dates for x": Input(
        lambda call: call.but(x=np.full(call.x.shape, "2020-01-01", "datetime64[D]")),
        Expected(X, r"(?i)date", r"data\.x: got dtype datetime64"),
    ),
    "numbers beyond float32 in x": Input(
        lambda call: call.but(x=_with(call.x.astype(np.float64), (2, 1), 1e300)),
        Expected(X, r"(?i)inf|finite|1e\+?300|large|float32", r"data\.x\[2, 1\]"),
    ),
    "a label too high": _label(5, r"labels\[4\]: got 5; expected a class of 2"),
    "a negative label": _label(-1, r"labels\[4\]: got -1; expected a class of 2"),
    "a label NaN": _label(float("nan"), r"data\.y\[4\]: got nan"),
    "a label 0.5": _label(0.5, r"labels: got float32\[12\]; expected classes, .*astype\(int\)"),
    "labels in a column": Input(
        lambda call: call.but(y=call.y[:, None]),
        Expected(Y, SHAPE, r"labels: got int32\[(12|4),1\]; expected classes"),
        classes=True,
        right=_same,
    ),
    "labels in words": Input(
        lambda call: call.but(y=np.array(["no", "yes"])[call.y]),
        Expected(Y, r"(?i)str|<U3|'no'|text|dtype", r"data\.y: got dtype <U3"),
        classes=True,
        right=_same,
    ),
    "integer params": Input(
        _params(lambda leaf: np.round(leaf * 9).astype(np.int32)),
        Expected(PARAMS, "int", r"params\[0\]\['bias'\]: got dtype int32"),
        right=_params(lambda leaf: np.round(leaf * 9)),
    ),
    "NaN in params": Input(
        _params(lambda leaf: leaf * np.nan), Expected(PARAMS, FINITE, r"state\.params\[0\]\['bias'\]: got NaN")
    ),
    "infinity in params": Input(
        _params(lambda leaf: leaf + np.inf),
        Expected(PARAMS, FINITE, r"state\.params\[0\]\['bias'\]: got NaN or infinity"),
    ),
    "params in words": Input(
        _params(lambda leaf: np.full(leaf.shape, "a")),
        Expected(PARAMS, r"(?i)str|<U1|text|'a'", r"params\[0\]\['bias'\]: got"),
    ),
    "params of another shape": Input(
        _params(lambda leaf: leaf[..., :-1]), Expected(PARAMS, SHAPE, r"(params|weights|x)\b.*: got .*expected")
    ),
    "no params": Input(
        lambda call: call.but(change_params=lambda params: ()),
        Expected(PARAMS, r"(?i)empty|without|no |least|length|\b0\b", r"params: got a tree without leaves"),
    ),
    "negative steps": _steps(-1, "steps: got -1; expected at least 0"),
    "half a step": _steps(2.5, r"steps: got 2\.5; expected an int"),
    "steps in words": _steps("ten", "steps: got 'ten'; expected an int"),
    "a learning rate of 0": _rate(0.0, r"learning_rate: got 0\.0; expected a positive, finite"),
    "a negative learning rate": _rate(-1.0, r"learning_rate: got -1\.0; expected a positive, finite"),
    "a learning rate NaN": _rate(float("nan"), "learning_rate: got nan; expected a positive, finite"),
    "an infinite learning rate": _rate(float("inf"), "learning_rate: got inf; expected a positive, finite"),
    "a learning rate in words": _rate("fast", "learning_rate: got 'fast'; expected a positive number"),
    "batch size 0": _size(0, "batch_size: got 0; expected at least 1"),
    "a negative batch size": _size(-4, "batch_size: got -4; expected at least 1"),
    "a fractional batch size": _size(2.5, r"batch_size: got 2\.5; expected an int"),
    "a batch size in words": _size("four", "batch_size: got 'four'; expected an int"),
    "a batch size beyond the points": _size(
        99, "batch_size: got 99; expected at most 12", right=lambda call: call.but(batch_size=12)
    ),
    "a seed in words": Input(
        lambda call: call.but(seed="a"),
        Expected(r"\b(key|seed|random_state)\b", r"str|'a'|int", "key: got a str; expected"),
    ),
    "no key for minibatches": Input(
        lambda call: call.but(seed=None), Expected(r"\b(key|seed)\b", "None", "key: got None; expected"), right=_same
    ),
    "float64 data": Input(
        lambda call: call.but(x=call.x.astype(np.float64), y=call.y.astype(np.float64)), Expected(BOTH), right=_same
    ),
    "Fortran order": Input(lambda call: call.but(x=np.asfortranarray(call.x)), Expected(X), right=_same),
    "read-only arrays": Input(_read_only, Expected(BOTH), right=_same),
    "memory-mapped data": Input(_mapped, Expected(X), right=_same),
    "strided data": Input(_strided, Expected(X), right=_same),
    "big-endian data": Input(
        lambda call: call.but(x=call.x.astype(">f4")), Expected(X, r"(?i)>f4|endian|order|dtype"), right=_same
    ),
    "integer data": Input(
        lambda call: call.but(x=np.round(call.x * 9).astype(np.int32)),
        Expected(X, "int"),
        right=lambda call: call.but(x=np.round(call.x * 9)),
    ),
}


def trials(name: str, tool: Tool) -> Iterator[Trial]:
    """One trial, the right result first where there is one."""
    found = INPUTS[name]
    good = good_call(found.classes)
    right = None if found.right is None else tool.train(found.right(good))
    if right is None:
        tool.train(good)
    call = found.change(good)
    yield Trial(lambda: tool.train(call), found.expected, right)
