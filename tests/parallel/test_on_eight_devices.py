"""What holds on eight devices, the checks of the files beside this one, in one process that has them."""

from pathlib import Path

import pytest
from kits.eight import assert_all_hold

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("prefix", ["check_", pytest.param("long_check_", marks=pytest.mark.slow)])
def test_all_checks_hold(prefix):
    assert_all_hold(prefix, FOLDER / "test_parallel.py", FOLDER / "test_sweeps.py")
