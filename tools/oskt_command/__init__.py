"""The door of the console script `oskt`, which shows its help page before torch is imported.

Importing any part of oskt_torchreid imports the package, and with it torch and torchreid. So the page, which needs
neither, is read as a file.
"""

import importlib.util
import sys
from pathlib import Path


def main() -> int:
    """Runs the command that this process was started for; returns the exit status."""
    package = importlib.util.find_spec("oskt_torchreid")
    if package is None or package.origin is None:
        raise SystemExit("oskt_torchreid is not installed; run: pip install oskt_torchreid")
    path = Path(package.origin).parent / "commands" / "page.py"
    spec = importlib.util.spec_from_file_location("oskt_command.page", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"'{path}' cannot be read; install oskt_torchreid again")
    page = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = page
    spec.loader.exec_module(page)
    return int(page.main())
