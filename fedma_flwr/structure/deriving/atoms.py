"""The algebra of atoms: union-find over what the axes of tensors are made of in a derivation.

During derivation an axis is a concatenation of terms, a term is a product of atoms
(slowest-varying first). An atom is a number of positions that may be permuted freely, until
something is learned about it: it is *united* with another atom (they must be permuted alike),
*refined* into an axis of its own (only permutations of that form are left), or *pinned* (none
are). Every operation here only ever takes permutations away, which is what makes it sound.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

# An axis that would need more terms than this is pinned: such a spec could not be read.
MAX_TERMS = 4096


class Atom:
    """A node of the union-find structure.

    Parameters
    ----------
    size : int
        Number of positions.
    pinned : bool (default: False)
        Whether the positions must stay where they are.
    reason : str (default: "")
        Why they are pinned.
    """

    __slots__ = ("axis", "parent", "pinned", "reason", "size")

    def __init__(self, size: int, pinned: bool = False, reason: str = "") -> None:
        self.size = size
        self.pinned = pinned
        self.reason = reason
        self.parent: Atom | None = None  # united with this atom
        self.axis: Axis | None = None  # refined into this axis

    def __repr__(self) -> str:
        return f"{'!' if self.pinned else ''}{self.size}@{id(self) % 9973}"


Term = tuple[Atom, ...]
Axis = tuple[Term, ...]
Axes = tuple[Axis, ...]


class SizeMismatchError(Exception):
    """Two axes of different sizes were to be united: the model or a rule is at fault."""


def free(size: int) -> Axis:
    """A new axis about which nothing is known."""
    return ((Atom(size),),)


def fixed(size: int, reason: str = "") -> Axis:
    """A new axis whose positions must stay where they are."""
    return ((Atom(size, pinned=True, reason=reason),),)


def find(atom: Atom) -> Atom:
    """The atom that stands for all that it was united with."""
    while atom.parent is not None:
        if atom.parent.parent is not None:
            atom.parent = atom.parent.parent
        atom = atom.parent
    return atom


def size(axis: Axis) -> int:
    """Length of an axis."""
    return sum(term_size(term) for term in axis)


def term_size(term: Term) -> int:
    """Number of positions of a term."""
    return math.prod(atom.size for atom in term)


def expand(axis: Axis) -> Axis:
    """The axis in its finest form: unrefined atoms that stand for themselves, none of size 1.

    A concatenation inside a product, ``p x (a + b)``, is written out as ``a + b + a + b + ...``;
    that form cannot express a permutation of ``p``, so ``p`` is pinned.
    """
    return tuple(term for product in axis for term in _expand_term(product))


def _expand_term(product: Term) -> list[Term]:
    terms: list[Term] = [()]
    for atom in product:
        inner = _expand_atom(find(atom))
        if len(inner) == 1:
            terms = [(*term, *inner[0]) for term in terms]
        elif len(inner) * sum(term_size(term) for term in terms) > MAX_TERMS:
            pin(inner, "it is repeated too often to be written out")
            whole = Atom(size(inner), pinned=True, reason="it is repeated too often")
            terms = [(*term, whole) for term in terms]
        else:
            pin(tuple(terms), "it repeats a concatenation")
            terms = [unit for term in terms for unit in inner * term_size(term)]
    return terms


def _expand_atom(atom: Atom) -> Axis:
    if atom.axis is not None:
        inner = expand(atom.axis)
        if len(inner) == 1 or not all_pinned(inner):
            return inner
        # A concatenation of fixed positions is one fixed size.
        atom.axis, atom.pinned = None, True
    return ((atom,),) if atom.size != 1 else ((),)


def all_pinned(axis: Axis) -> bool:
    """Whether an axis, in its finest form, has fixed positions only."""
    return all(atom.pinned for term in axis for atom in term)


def leaves(axis: Axis) -> Iterator[Atom]:
    """The atoms of an axis in its finest form."""
    for term in expand(axis):
        yield from term


def pin(axis: Axis, reason: str = "") -> None:
    """Forbid every permutation of an axis; the first reason given is kept."""
    for term in axis:
        for atom in term:
            root = find(atom)
            if root.axis is not None:
                pin(root.axis, reason)
            elif not root.pinned:
                root.pinned, root.reason = True, reason


def unify(left: Axis, right: Axis) -> None:
    """Require that two axes are permuted alike.

    Raises
    ------
    SizeMismatchError
        If their sizes differ.
    """
    left, right = expand(left), expand(right)
    if left == right:
        return
    if size(left) != size(right):
        raise SizeMismatchError(f"axes of sizes {size(left)} and {size(right)}")
    if _is_atom(left):
        _refine(left[0][0], right)
    elif _is_atom(right):
        _refine(right[0][0], left)
    elif len(left) == len(right) == 1:
        _unify_products(left, right)
    else:
        sizes = _common_sizes(left, right)
        for one, other in zip(split(left, sizes), split(right, sizes), strict=True):
            unify(one, other)


def _is_atom(axis: Axis) -> bool:
    return len(axis) == 1 and len(axis[0]) == 1


def _refine(atom: Atom, axis: Axis) -> None:
    """Say what an unrefined atom consists of."""
    if atom.pinned:
        pin(axis, atom.reason)
    if _is_atom(axis):
        atom.parent = axis[0][0]
    else:
        atom.axis = axis


def _unify_products(left: Axis, right: Axis) -> None:
    """Unite two products atom by atom, refining the larger where sizes differ."""
    pairs = zip(left[0], right[0], strict=False)
    one, other = next((a, b) for a, b in pairs if a is not b)
    small, large = sorted((one, other), key=lambda atom: atom.size)
    if small.size == large.size:
        _refine(one, ((other,),))
    elif large.size % small.size == 0:
        refine_product(large, small.size, large.size // small.size)
    else:
        pin(left, "two products of sizes that do not divide one another meet")
        pin(right, "two products of sizes that do not divide one another meet")
        return
    unify(left, right)


def refine_product(atom: Atom, *sizes: int) -> None:
    """Say that an unrefined atom is a product of atoms of the given sizes."""
    parts = tuple(Atom(size, atom.pinned, atom.reason) for size in sizes)
    atom.axis = (parts,)


def _common_sizes(left: Axis, right: Axis) -> list[int]:
    ends = sorted({*_ends(left), *_ends(right)})
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _ends(axis: Axis) -> list[int]:
    position, ends = 0, []
    for term in axis:
        position += term_size(term)
        ends.append(position)
    return ends


def split(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Cut an axis into consecutive parts; an atom that is cut becomes a concatenation.

    Parameters
    ----------
    axis : Axis
        The axis to cut.
    sizes : sequence of int
        Sizes of the parts, which sum up to the size of the axis.

    Raises
    ------
    SizeMismatchError
        If they do not.
    """
    if sum(sizes) != size(axis):
        raise SizeMismatchError(f"an axis of size {size(axis)} and parts of sizes {list(sizes)}")
    pending = deque(axis)
    parts: list[Axis] = []
    for length in sizes:
        part = _take(pending, length)
        if part is None:
            reason = "it is cut in the middle of a unit"
            pin(axis, reason)
            return [fixed(length, reason) for length in sizes]
        parts.append(part)
    return parts


def _take(pending: deque[Term], length: int) -> Axis | None:
    """Remove the first positions from a queue of terms; None if that would cut a unit."""
    part: list[Term] = []
    while length > 0:
        # An earlier cut may have refined this term: look at it as it is now.
        pending.extendleft(reversed(expand((pending.popleft(),))))
        term = pending.popleft()
        if term_size(term) > length:
            pieces = _cut(term, length)
            if pieces is None:
                return None
            term, rest = pieces
            pending.appendleft(rest)
        part.append(term)
        length -= term_size(term)
    return tuple(part) or fixed(0)


def _cut(term: Term, position: int) -> tuple[Term, Term] | None:
    first, tail = term[0], term[1:]
    count, remainder = divmod(position, term_size(tail))
    if remainder:
        return None
    sizes = (count, first.size - count)
    left, right = (Atom(length, first.pinned, first.reason) for length in sizes)
    if not first.pinned:
        first.axis = ((left,), (right,))
    return (left, *tail), (right, *tail)
