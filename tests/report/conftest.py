"""What tests of the report share."""

import pytest


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn, but not written as SVG: that is what takes the time."""
    monkeypatch.setattr("minijaxnet.report.sections.to_svg", lambda figure, name: "<svg></svg>")
