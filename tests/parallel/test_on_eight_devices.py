"""What holds on eight devices, the checks of the files beside this one, in a process each that has them."""

from pathlib import Path

import pytest
from kits.eight import assert_all_hold


@pytest.mark.parametrize("prefix", ["check_", pytest.param("long_check_", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["test_parallel.py", "test_sweeps.py"])
def test_all_checks_hold(name, prefix):
    assert_all_hold(prefix, Path(__file__).with_name(name))
