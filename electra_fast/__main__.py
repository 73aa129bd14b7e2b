"""`python -m electra_fast` is the command `electra-fast`."""

import sys

from electra_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
