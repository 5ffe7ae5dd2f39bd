"""What tests of pictures share."""

from minijaxnet.report.style import figure, save, styled


def axes_with(draw, tmp_path, width=4.8):
    """Axes with what ``draw`` drew, which has been written to a file, too: some things fail only then."""
    with styled():
        made = figure(width)
        axes = made.subplots()
        draw(axes)
        save(made, tmp_path / "picture.svg")
    return axes


def lines(axes):
    """The lines by their labels."""
    return {line.get_label(): line for line in axes.get_lines()}
