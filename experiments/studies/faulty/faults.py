"""All faults by their groups."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from . import inputs
from .judge import Outcome, Trial, judge
from .numeric import NUMBERS
from .reading import READING
from .setting import Setting
from .tool import Tool
from .writing import WRITING

Fault = Callable[[Tool, Setting], Iterator[Trial]]

FAULTS: dict[str, dict[str, Fault]] = {
    "inputs": {name: (lambda tool, _, name=name: inputs.trials(name, tool)) for name in inputs.INPUTS},
    "numbers": NUMBERS,
    "reading": READING,
    "writing": WRITING,
}


def inject(tool: Tool, group: str, fault: str, scratch: Path, *, seed: int, kills: int) -> Outcome:
    """Inject a fault into a tool, and judge."""
    setting = Setting(scratch, np.random.default_rng(seed), kills, tool.cold)
    return judge(FAULTS[group][fault](tool, setting), ours=tool.ours, starts_s=10.0 if tool.cold else 0.0)
