"""Names and patterns of tensors in an argument: what they stand for."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase


def matching_names(
    argument: str, patterns: Collection[str], names: Collection[str]
) -> frozenset[str]:
    """The tensors that names or patterns stand for; not all there are.

    Parameters
    ----------
    argument : str
        Where the patterns come from, for the message.
    patterns : collection of str
        Names, or patterns as of `fnmatch`: ``*`` stands for anything, dots included.
    names : collection of str
        All tensors of the model.

    Raises
    ------
    ValueError
        If a pattern matches nothing, or nothing is left.
    """
    found: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            raise ValueError(
                f"{argument} was {tuple(patterns)!r}, but {pattern!r} matches no tensor; "
                f"{_nearest(pattern, names)}."
            )
        found |= matches
    if len(found) == len(names):
        raise ValueError(
            f"{argument} was {tuple(patterns)!r}, which is every tensor: nothing would be shared."
        )
    return frozenset(found)


def _nearest(pattern: str, names: Collection[str]) -> str:
    """What may have been meant by a pattern that matches nothing."""
    text = pattern.strip("*.")
    if near := [name for name in names if text and text in name]:
        return f"tensors with {text!r} in their names are {near[:5]}: write '*{text}*'"
    return f"the model has {list(names)[:20]}"
