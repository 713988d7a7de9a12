"""Build hook of the documentation: links that lead out of the site.

In: a page. Out: the page with links to files outside of `docs/` as plain paths, since the site has
no copy of them. Invariant: a path that does not exist is a warning, which strict builds refuse.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s]*)\)")

log = logging.getLogger("mkdocs.hooks.links")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files that are no part of the site become their path, as code."""

    def plain(match: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), match[2]))
        if place.startswith("docs/"):
            return match[0]
        if not (ROOT / place).exists():
            log.warning("%s: no file %s", source, place)
        said = match[1].replace("`", "")
        return f"`{place}`" if said in place else f"{match[1]} (`{place}`)"

    source = page.file.src_uri
    return LINK.sub(plain, markdown)
