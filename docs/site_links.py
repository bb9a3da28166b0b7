"""mkdocs' hook: what pages link to in the repository beside docs/ is named on the site, where it is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
_LINK = re.compile(r"\[([^\]]+)\]\((\.{1,2}/[^)#\s]+|[\w./-]+\.(?:py|json|toml))(#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links that leave docs/, or go to its scripts and data, become their text and the path."""

    def named(link: re.Match[str]) -> str:
        target = (DOCS / page.file.src_uri).parent.joinpath(link[2]).resolve()
        if target.suffix == ".md" and target.is_relative_to(DOCS):
            return link[0]
        path = target.relative_to(DOCS.parent).as_posix()
        return link[1] if path in link[1] else f"{link[1]} (`{path}`)"

    return _LINK.sub(named, markdown)
