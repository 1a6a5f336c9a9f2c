"""`oskt graph` in a clone that need not be installed: `python tools/graph.py --help`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the tests know families of networks, for --support

from oskt_torchreid.commands.graph import main  # noqa: E402
from oskt_torchreid.host.termination import status_of  # noqa: E402

if __name__ == "__main__":
    sys.exit(status_of(main))
