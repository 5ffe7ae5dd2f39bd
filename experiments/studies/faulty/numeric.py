"""Numbers that go astray while a tool trains, and states that are not its own."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .inputs import FINITE
from .judge import Arrays, Expected, NotOffered, Trial
from .setting import Setting
from .tool import Tool

_ASTRAY = Expected(
    r"(?i)loss|weights|param|gradient|slope|step|diverge", r"(?i)nan|inf|diverge|finite", r"DIVERGED at step \d+"
)


def _diverges(how: str) -> Callable[[Tool, Setting], Iterator[Trial]]:
    def trials(tool: Tool, setting: Setting) -> Iterator[Trial]:
        yield Trial(lambda: tool.diverge(how, setting.scratch), _ASTRAY)

    return trials


def diagnosed(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The operation whose result was the first that is not finite, named."""
    if not tool.ours:
        raise NotOffered("it names no operation")
    from .ours import LOGARITHM

    flags = ("--learning-rate", "2.5", "--diagnose")
    call = tool.called(setting.scratch, "run", *flags, limit="100.0", bent=LOGARITHM)  # pyright: ignore
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
    expected = Expected(
        r"optimi[sz]er|opt_state|momentum|adam|mu\b|nu\b|count|trace|velocity|variables", r"\w", "optimizer"
    )
    yield Trial(lambda: tool.arrays(tool.load(path, tool.tree())), expected, untouched=(path,))


def spoilt_optimizer(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A state whose optimizer is another's, or NaN, handed to a training."""
    import minijaxnet as mjn

    from .tool import good_call

    if not tool.ours:
        raise NotOffered("its training takes no state of an optimizer apart from the model's")
    from .ours import ADAM, NETWORKS, OBJECTIVES

    call = good_call(classes=True)
    params = NETWORKS[True].init(jax.random.key(0))
    descent = mjn.gradient_descent(OBJECTIVES[True], 0.1)
    for optimizer, text in (
        (ADAM.init(params).optimizer, r"optimizer"),
        (None, r"optimizer"),
        (jnp.float32(jnp.nan), r"optimizer|DIVERGED|learning_rate"),
        (jnp.zeros(3), r"optimizer"),
    ):

        def act(optimizer: Any = optimizer) -> Arrays:
            state = descent.init(params)._replace(optimizer=optimizer)
            result = mjn.fit(descent, state, mjn.Batch(call.x, call.y), steps=5)
            if result.status == mjn.DIVERGED:
                raise RuntimeError(f"{result.status.name} after {result.steps_taken} steps")
            return tool.arrays(result.state.params)

        yield Trial(act, Expected(text, r"\w", text))


def wrong_gradient(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A gradient by hand, wrong by a factor that a seed gives: refused with the leaf; carried out if asked for."""
    if not tool.ours:
        raise NotOffered("it checks no gradient by hand")
    from .ours import BY_HAND, command

    for number in range(3):
        factor = 2 * (1 + float(setting.draw.choice([-1, 1])) * 10 ** setting.draw.uniform(-3, 0.3))
        folder = setting.folder(f"wrong-{number}")
        (folder / "beside.py").write_text("FACTOR = 2\n", encoding="utf-8")
        tool.called(folder, "list", more=BY_HAND)  # pyright: ignore
        (folder / "beside.py").write_text(f"FACTOR = {factor}\n", encoding="utf-8")
        exact = Expected(
            r"\['slope'\]", "NOT RIGHT", r"(?s)exit code 1.*wrong beyond rounding in \['slope'\].*not started"
        )
        yield Trial(tool.called(folder, "run"), exact, untouched=(folder,))  # pyright: ignore

        def unchecked(folder: Any = folder) -> Arrays:
            code, text, _ = command(folder, "run", "--unchecked")
            return {"carried out": np.array(code == 0 and "NOT RIGHT" in text)}

        yield Trial(unchecked, exact, {"carried out": np.array(True)})


NUMBERS: dict[str, Callable[[Tool, Setting], Iterator[Trial]]] = {
    "a slope that is NaN from a step on": _diverges("NaN"),
    "a loss that overflows": _diverges("overflow"),
    "which operation was not finite": diagnosed,
    "NaN and infinity in a checkpoint": not_finite_at_save,
    "the checkpoint of another optimizer": other_optimizer,
    "a state with another optimizer's": spoilt_optimizer,
    "a wrong gradient by hand": wrong_gradient,
}
