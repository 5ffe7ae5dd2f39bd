"""``python -m minijaxnet`` is the command ``minijaxnet``."""

import sys

from minijaxnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
