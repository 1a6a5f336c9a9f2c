"""Hook of mkdocs: pages may show pictures and pages of the repository that lie outside of this folder.

On the pages, as in the repository, these are `../configs/...`; in the site they are `configs/...`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("configs/README.md", "configs/results/*.png", "configs/results/*.json", "configs/results/*.md")
NOT_PAGES = ("README.md", "CONTRIBUTING.md")
"""Named on pages, and part of the repository alone."""


def on_files(files: Files, config: Any) -> Files:
    """Adds what pages show from elsewhere."""
    for pattern in SHARED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns addresses in the repository into those in the site."""
    text = markdown
    for name in NOT_PAGES:
        text = re.sub(rf"\[([^\]]*)\]\(\.\./{re.escape(name)}(?:#[\w-]+)?\)", r"\1", text)
    if page.file.src_uri.startswith("configs/"):
        return text.replace("](../docs/", "](../")
    return text.replace("](../configs/", "](configs/")
