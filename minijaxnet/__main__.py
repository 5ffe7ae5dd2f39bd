"""``python -m minijaxnet`` is the command ``minijaxnet``."""

from minijaxnet.cli import command

if __name__ == "__main__":
    command()
