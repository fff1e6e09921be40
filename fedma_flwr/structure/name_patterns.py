"""Names and patterns of tensors: what they stand for, and which stand for given tensors."""

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
        more = f" and {len(near) - 5} others" if len(near) > 5 else ""
        return f"tensors with {text!r} in their names are {near[:5]}{more}: write '*{text}*'"
    return f"the model has {list(names)[:20]}"


def patterns_for(wanted: Collection[str], names: Collection[str]) -> tuple[str, ...]:
    """A few patterns that stand for some of a model's tensors, and for nothing else.

    Parameters
    ----------
    wanted : collection of str
        Tensors of the model.
    names : collection of str
        All tensors of the model.

    Returns
    -------
    tuple of str
        One pattern if there is one; else each next one covers most of what is left.
    """
    found: list[str] = []
    others = set(names) - set(wanted)
    left = sorted(wanted)
    covers = {
        pattern: {name for name in left if fnmatchcase(name, pattern)}
        for pattern in sorted({p for name in left for p in _candidates(name)})
        if not any(fnmatchcase(name, pattern) for name in others)
    }
    while left:
        # Of those that cover as much: few stars, whole modules, short.
        best = max(
            covers,
            key=lambda p: (
                len(covers[p].intersection(left)),
                -p.count("*"),
                p.endswith(".*"),
                -len(p),
            ),
        )
        found.append(best)
        left = [name for name in left if name not in covers[best]]
    return tuple(found)


def _candidates(name: str) -> set[str]:
    """The name, and patterns of its parts that it fits: 'bn1.*', '*.bn1.*', '*.bias', '*bn*'."""
    parts, found = name.split("."), {name}
    for first in range(len(parts)):
        for end in range(first + 1, len(parts) + 1):
            left, right = "*." * (first > 0), ".*" * (end < len(parts))
            middle = ".".join(parts[first:end])
            found.add(f"{left}{middle}{right}")
            if stem := middle.rstrip("0123456789").rstrip("."):
                found |= {f"{left}{stem}*"} if right else set()
        if (stem := parts[first].rstrip("0123456789")) and len(stem) > 1:
            found.add(f"*{stem}*")
    return found
