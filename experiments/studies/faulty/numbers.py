"""Numbers that are not finite while a tool trains, and states that belong to another optimizer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn

from .inputs import FINITE
from .judge import Arrays, Expected, Trial
from .ours import ADAM, BY_HAND, LOGARITHM, NETWORKS, only_ours, plain_descent
from .tool import Fault, Setting, Tool, good_call

_DIVERGED = Expected(
    r"(?i)loss|weights|param|gradient|slope|step|diverge", r"(?i)nan|inf|diverge|finite", r"DIVERGED at step \d+"
)


def nan_gradient(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The gradient is NaN from a step on."""
    yield Trial(lambda: tool.diverge("NaN", setting.scratch), _DIVERGED)


def overflow(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The loss overflows."""
    yield Trial(lambda: tool.diverge("overflow", setting.scratch), _DIVERGED)


def diagnosed(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The first operation whose result is not finite, named."""
    ours = only_ours(tool, "it names no operation")
    flags = ("--learning-rate", "2.5", "--diagnose")
    call = ours.called(setting.scratch, "run", *flags, limit="100.0", bent=LOGARITHM)
    yield Trial(call, Expected("line.py:", "NaN", "first operation whose result is not finite is log, line.py"))


def not_finite_at_save(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """NaN and infinity in a checkpoint: refused, or the same bits when it is loaded."""
    for number, bad in enumerate((np.nan, np.inf, -np.inf)):

        def spoil(leaf: Any, bad: float = bad) -> Any:
            return jnp.full_like(leaf, bad) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

        tree = tool.spoiled(spoil)

        def act(tree: Any = tree, number: int = number) -> Arrays:
            path = setting.scratch / f"{number}{tool.suffix}"
            tool.save(path, tree)
            return tool.arrays(tool.load(path, tool.tree()))

        yield Trial(act, Expected(tool.leaf, FINITE), tool.arrays(tree))


def other_optimizer(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The checkpoint of a descent by momentum, loaded for one by Adam."""
    path = setting.scratch / f"momentum{tool.suffix}"
    tool.save(path, tool.tree("other optimizer"))
    names = r"optimi[sz]er|opt_state|momentum|adam|mu\b|nu\b|count|trace|velocity|variables"
    expected = Expected(names, r"\w", "optimizer")
    yield Trial(lambda: tool.arrays(tool.load(path, tool.tree())), expected, untouched=(path,))


def wrong_optimizer_state(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A state whose optimizer is another's, or NaN, given to a training."""
    only_ours(tool, "its training takes no state of an optimizer apart from the model's")
    call, params = good_call(classes=True), NETWORKS[True].init(jax.random.key(0))
    for optimizer, text in (
        (ADAM.init(params).optimizer, r"optimizer"),
        (None, r"optimizer"),
        (jnp.float32(jnp.nan), r"optimizer|DIVERGED|learning_rate"),
        (jnp.zeros(3), r"optimizer"),
    ):

        def act(optimizer: Any = optimizer) -> Arrays:
            state = plain_descent().init(params)._replace(optimizer=optimizer)
            result = mjn.fit(plain_descent(), state, mjn.Batch(call.x, call.y), steps=5)
            if result.status == mjn.DIVERGED:
                raise RuntimeError(f"{result.status.name} after {result.steps_taken} steps")
            return tool.arrays(result.state.params)

        yield Trial(act, Expected(text, r"\w", text))


def wrong_gradient(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A gradient by hand, wrong by a random factor: exit code 1 with the leaf, unless the command says otherwise."""
    ours = only_ours(tool, "it checks no gradient by hand")
    for number in range(3):
        factor = 2 * (1 + float(setting.draw.choice([-1, 1])) * 10 ** setting.draw.uniform(-3, 0.3))
        folder = setting.folder(f"wrong-{number}")
        checked = ours.called(folder, "run", more=BY_HAND)
        (folder / "beside.py").write_text(f"FACTOR = {factor}\n", encoding="utf-8")
        exact = r"(?s)exit code 1.*wrong beyond rounding in \['slope'\].*cannot be relied on"
        expected = Expected(r"\['slope'\]", "NOT RIGHT", exact)
        yield Trial(checked, expected)

        def unchecked(folder: Path = folder) -> Arrays:
            code, text, _ = ours.command(folder, "run", "--unchecked")
            return {"used": np.array(code == 0 and "NOT RIGHT" in text)}

        yield Trial(unchecked, expected, {"used": np.array(True)})


FAULTS: dict[str, Fault] = {
    "a gradient that is NaN from a step on": nan_gradient,
    "a loss that overflows": overflow,
    "which operation was not finite": diagnosed,
    "NaN and infinity in a checkpoint": not_finite_at_save,
    "the checkpoint of another optimizer": other_optimizer,
    "a state with another optimizer's": wrong_optimizer_state,
    "a wrong gradient by hand": wrong_gradient,
}
