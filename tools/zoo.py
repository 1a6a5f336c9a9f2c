"""`oskt zoo` in a clone that need not be installed: `python tools/zoo.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oskt_torchreid.commands.zoo import main  # noqa: E402
from oskt_torchreid.host.termination import status_of  # noqa: E402

if __name__ == "__main__":
    sys.exit(status_of(main))
