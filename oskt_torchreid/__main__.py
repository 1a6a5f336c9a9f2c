"""`python -m oskt_torchreid` is `oskt`."""

import sys

from .commands.page import main

if __name__ == "__main__":
    sys.exit(main())
