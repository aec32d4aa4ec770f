"""`python -m qarat`: the command line."""

import sys

from qarat.surfaces.cli import main

if __name__ == "__main__":
    sys.exit(main())
