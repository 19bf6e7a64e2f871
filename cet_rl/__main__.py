"""`python -m cet_rl` is `cet-rl`."""

import sys

from cet_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
