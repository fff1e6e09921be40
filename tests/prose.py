"""What a page of prose says, sentence by sentence: without code, tables and targets of links."""

import re

_BLOCKS = (
    re.compile(r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE),
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"^\s*\|.*$", re.MULTILINE),  # cells of tables
    re.compile(r"^:::.*(?:\n(?: {4}.*|\s*))*$", re.MULTILINE),  # what mkdocstrings puts in
)
_ITEM = re.compile(r"^\s*(?:[-*+]|\d+\.|\[\^\w+\]:)\s+", re.MULTILINE)
_HEADING = re.compile(r"^#+ .*$", re.MULTILINE)
_END = re.compile(r"(?<=[.:;?!])[)\"'*_`\]]*\s+")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|et al|vs|Fig)\.")


def paragraphs(text):
    """Paragraphs, headings and list items, each on one line."""
    for block in _BLOCKS:
        text = block.sub("\n\n", text)
    text = _HEADING.sub(lambda heading: f"\n{heading[0]}\n\n", text)
    text = _ITEM.sub("\n\n", text)
    return [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]


def sentences(text):
    """The sentences of a Markdown text, links by their words and code as one word each."""
    found = []
    for paragraph in paragraphs(text):
        words = re.sub(r"`[^`]*`", "CODE", paragraph)
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", words)
        words = _ABBREVIATION.sub(r"\1", words)
        found += [s for s in _END.split(words) if s.strip()]
    return found


def count_words(sentence):
    """Words, numbers included, signs between them not."""
    return sum(any(c.isalnum() for c in word) for word in sentence.split())
