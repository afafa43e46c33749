"""`python -m gatewayd`. Owns: nothing."""

import sys

from gatewayd.cli import main

if __name__ == "__main__":
    sys.exit(main())
