"""Plain short sentences: none of over 30 words in what people read first."""

from pathlib import Path

import pytest

from tests.prose import count_words, sentences

ROOT = Path(__file__).parents[2]
MOST_WORDS = 30
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    ROOT / "simulations" / "RESULTS.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_sentence_is_long(page):
    found = sentences(page.read_text(encoding="utf-8"))
    assert [s for s in found if count_words(s) > MOST_WORDS] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_page_has_sentences(page):
    assert len(sentences(page.read_text(encoding="utf-8"))) > 3


LONG = " ".join(["word"] * 31)


@pytest.mark.parametrize(
    "text",
    [f"{LONG}.", f"- {LONG}\n- short", f"Short. {LONG}", f"{LONG[:-5]} [word](https://x.y)"],
)
def test_a_long_sentence_is_found(text):
    assert max(map(count_words, sentences(text))) == 31


@pytest.mark.parametrize(
    "text",
    [
        f"```\n{LONG}\n```",
        f"| {LONG} |",
        f"`{LONG}`",
        f"[a link](https://{LONG.replace(' ', '.')})",
        f"{LONG[:70]}; {LONG[:70]}: {LONG[:70]}.",
        f"- {LONG[:70]}\n- {LONG[:70]}\n- {LONG[:70]}",
        f"# {LONG[:70]}\n{LONG[:100]}",
    ],
)
def test_code_tables_and_targets_of_links_do_not_count(text):
    assert max(map(count_words, sentences(text)), default=0) < 31
