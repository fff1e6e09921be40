"""What mkdocs does beside building docs/: pages made of files elsewhere in the repository.

The results, the benchmarks, the changelog and the guide for contributors lie where people look for
them in a repository. Here they become pages, and links between files become links between pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: By file of the repository: the page that it becomes.
PAGES = {
    "simulations/RESULTS.md": "results.md",
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
}
_MADE = {page: path for path, page in PAGES.items() if page != "index.md"}
_LINK = re.compile(r"(?P<open>!?\[(?P<text>[^\]]*)\])\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES`, and the pictures and tables that they link."""
    for path, page in PAGES.items():
        if page in _MADE:
            text = (ROOT / path).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=text))
            for linked in sorted({_path(path, m["target"]) for m in _LINK.finditer(text)}):
                if _is_copied(linked):
                    files.append(File.generated(config, linked, abs_src_path=str(ROOT / linked)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links between files of the repository as links between pages of the site."""
    uri = page.file.src_uri
    source = _MADE.get(uri, uri if uri.startswith("simulations/") else f"docs/{uri}")
    parts = _CODE.split(markdown)
    return "".join(
        part
        if number % 2
        else _LINK.sub(lambda m: _as_page(m, source, uri), part).replace(" ± ", "&nbsp;±&nbsp;")
        for number, part in enumerate(parts)
    )


def _as_page(link: re.Match[str], source: str, page: str) -> str:
    """A link as it must be in the page; the path alone where the site lacks what it names."""
    target, _, anchor = link["target"].partition("#")
    if not target or "://" in target or target.startswith("mailto:"):
        return link[0]
    path = _path(source, target)
    inside = PAGES.get(path) or path.removeprefix("docs/")
    if not path.startswith("docs/") and path not in PAGES and not _is_copied(path):
        if not (ROOT / path).exists():
            return link[0]  # a dead link, about which mkdocs is to complain
        return f"{link['text']} (`{path}`)" if link["text"].strip("`") != path else f"`{path}`"
    relative = posixpath.relpath(inside, posixpath.dirname(page) or ".")
    return f"{link['open']}({relative}{'#' + anchor if anchor else ''})"


def _path(source: str, target: str) -> str:
    """The path in the repository that a link in `source` names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target.partition("#")[0]))


def _is_copied(path: str) -> bool:
    return path.endswith((".png", ".svg", "table.md")) and (ROOT / path).is_file()
