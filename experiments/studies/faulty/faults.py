"""All faults by their groups."""

from . import inputs, numbers, reading, writing
from .tool import Fault

FAULTS: dict[str, dict[str, Fault]] = {
    "inputs": inputs.FAULTS,
    "numbers": numbers.FAULTS,
    "reading": reading.FAULTS,
    "writing": writing.FAULTS,
}
