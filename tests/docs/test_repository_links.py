"""Links between Markdown files of the repository, as readers of the repository follow them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
    ROOT / "simulations" / "RESULTS.md",
    ROOT / "benchmarks" / "README.md",
]


def without_code(text):
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """What the headings of a file can be linked by."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    words = [heading.lower() for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in words}


def dead_links(path):
    """Relative links of a file to what is not there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (path.parent / name).resolve() if name else path
        if not there.exists() or (
            anchor and there.suffix == ".md" and anchor not in anchors(there)
        ):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page):
    assert list(dead_links(page)) == []


def test_dead_links_are_found(tmp_path):
    page = tmp_path / "a.md"
    page.write_text(
        "# One `x` thing\n[a](#one-x-thing) [b](b.md) [c](#two) [d](a.md#one-x-thing) "
        "`[e](e.md)` [f](https://example.org)\n"
    )
    assert list(dead_links(page)) == ["b.md", "#two"]
