"""What is asked once before a change lands is compiled quickly; what is asked after each change, as users have it."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quick_where_slow(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("slow") is None:
        yield
        return
    from kits import quick

    with quick.compilation():
        yield
