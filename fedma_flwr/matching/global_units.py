"""The global units while the search goes on: sums, popularity, numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .arrays import Floats, Integers, mean_row
from .assignment_problem import NEW

# Sizes of the pieces that are worked on, in bytes and in rows: they stay in a core's cache, and no
# second copy of the units is ever held.
_PIECE = 512 * 4352
_ROWS = 64


def best_device() -> torch.device:
    """Return where products are made: on the GPU, where torch sees one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def centre_of(units: Sequence[Floats]) -> tuple[Floats, float]:
    """Return what to subtract from all rows, float64, shape (D,), and the sum of all squares.

    The gains are differences of squares, which lose digits when all rows share a large offset:
    then it is their mean. An offset smaller than the rows' spread does no harm, and rows that
    stay as they are need not be copied: then it is 0.
    """
    mean = mean_row(units)
    rows = sum(len(array) for array in units)
    square = sum(float(np.vdot(array, array)) for array in units)
    is_large = 2 * float(mean @ mean) > square / rows
    return mean if is_large else np.zeros_like(mean), square


class GlobalUnits:
    """Sums and popularity of the global units, and who is assigned to them.

    A global unit lives in a *slot*, a row of ``sums`` that it keeps while it exists;
    ``numbering`` lists the slots in the order of the units' numbers. The reference code keeps
    units in the order of their numbers and moves them; a slot stays, so that products with it
    can be kept.

    Parameters
    ----------
    units : sequence of J float arrays, shapes (L_j, D)
    centre : float64 array, shape (D,)
        Subtracted from every row, see :func:`centre_of`.
    device : torch.device
    square : float
        At least the sum of all rows' squares.
    """

    def __init__(
        self, units: Sequence[Floats], centre: Floats, device: torch.device, square: float = np.inf
    ) -> None:
        self._units = [torch.from_numpy(array).to(device) for array in units]
        self._centre = torch.from_numpy(centre).to(device)
        self._is_centred = not centre.any()
        # No product of a row with a sum is larger: Cauchy and Schwarz.
        self._square, self.largest_product = square, len(units) * square
        # Room to grow: memory that is not written to takes none, copies do.
        widest = max(len(array) for array in units)
        capacity = widest + widest // 8 + 1
        self.sums = torch.from_numpy(np.zeros((capacity, len(centre)))).to(device)
        self.popularity = np.zeros(capacity, dtype=np.int64)
        self.numbering = np.empty(0, dtype=np.int64)
        self.slots = [np.empty(0, dtype=np.int64) for _ in units]
        # The time at which a slot's members last changed.
        self.changed = np.zeros(capacity, dtype=np.int64)
        # The time of a client's last visit; only others' changes after it are news to it.
        self.visited = np.zeros(len(units), dtype=np.int64)
        self.time = 0

    def append(self, units: Floats) -> int:
        """Take in a further client, whose units are nowhere yet; return its index."""
        self._units.append(torch.from_numpy(units).to(self._centre.device))
        self.slots.append(np.empty(0, dtype=np.int64))
        self.visited = np.append(self.visited, 0)
        self._square += float(np.vdot(units, units))
        self.largest_product = len(self._units) * self._square
        return len(self._units) - 1

    def let_go(self, client: int) -> None:
        """Forget a client's rows: it stays where it is, and cannot be visited any more."""
        self._units[client] = torch.empty(0, len(self._centre))  # a view would keep them

    def blocks(self, rows: int, itemsize: int = 8) -> list[slice]:
        """Return the pieces of the signature in which so many rows are worked on.

        ``itemsize`` is that of the numbers, in bytes.
        """
        size = self.sums.shape[1]
        if self.sums.device.type != "cpu":
            return [slice(0, size)]
        count = max(-(-size * max(rows, _ROWS) * itemsize // _PIECE), 1)
        ends = [size * i // count for i in range(count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    def parts(self, client: int) -> list[slice]:
        """Return the pieces of a client's rows, of the whole signature, that are worked on."""
        return self._pieces(len(self._units[client]))

    def _pieces(self, rows: int) -> list[slice]:
        """Return the pieces of so many rows; on a GPU, where a call costs most, there is one."""
        step = _ROWS if self.sums.device.type == "cpu" else max(rows, 1)
        return [slice(a, a + step) for a in range(0, rows, step)]

    @property
    def width(self) -> int:
        """The number of global units, L."""
        return len(self.numbering)

    def rows(
        self, client: int, block: slice = slice(None), chosen: Integers | slice | None = None
    ) -> torch.Tensor:
        """Return the block's columns of a client's centred units, float64, shape (L_j, d).

        ``chosen`` picks some of the rows.
        """
        rows = self._units[client][:, block]
        if isinstance(chosen, slice):
            rows = rows[chosen]
        elif chosen is not None and len(chosen) < len(rows):
            rows = torch.index_select(rows, 0, self.index(chosen))
        return self._centred(rows, block)

    def single_rows(
        self, client: int, block: slice = slice(None), part: slice = slice(None)
    ) -> torch.Tensor:
        """Return the same in float32; where nothing has to be done, without a copy."""
        rows = self._units[client][part, block]
        if self._is_centred and rows.dtype == torch.float32:
            return rows
        return self._centred(rows, block).float()

    def _centred(self, rows: torch.Tensor, block: slice = slice(None)) -> torch.Tensor:
        return rows.double() if self._is_centred else rows - self._centre[block]

    def take_out(self, client: int) -> None:
        """Take a client's units out; units without members vanish and numbers close up.

        The sums keep the client's rows until :meth:`put_back`, see :class:`SumsOfOthers`.
        """
        self.popularity[self.slots[client]] -= 1
        self.numbering = self.numbering[self.popularity[self.numbering] > 0]

    def is_news(self, client: int, slots: Integers, since: int) -> NDArray[np.bool_]:
        """Return which slots other clients have changed since a time.

        What the client itself changes at a visit is no news to it after that: the time moves by
        one when it is put back.
        """
        visited = self.visited[client]
        news: NDArray[np.bool_] = self.changed[slots] > (visited if visited == since + 1 else since)
        return news

    def all_sums(self) -> torch.Tensor:
        """Return the sums in the order of the numbers, shape (L, D); not to be written to."""
        if (self.numbering == np.arange(self.width)).all():
            return self.sums[: self.width]
        return self.sums[self.index(self.numbering)]

    def put_back(self, client: int, columns: Integers) -> bool:
        """Put a client's units where ``columns`` says; return whether the grouping changed.

        Parameters
        ----------
        client : int
        columns : int array, shape (L_j,)
            Numbers of existing units, or NEW. New units are numbered in row order.
        """
        opened = columns == NEW
        slots = np.where(opened, NEW, np.append(self.numbering, NEW)[columns])
        self._give_slots(client, slots, opened)
        old = self.slots[client]
        moved = np.flatnonzero(slots != old) if len(old) else np.arange(len(slots))
        self._move(client, moved, slots)
        self.slots[client] = slots
        self.popularity[slots] += 1
        self.numbering = np.append(self.numbering, slots[opened])
        return len(moved) > 0

    def _give_slots(self, client: int, slots: Integers, opened: Integers) -> None:
        """Fill in the slots of opened units, in place; a unit nobody else holds keeps its own."""
        old = self.slots[client]
        if len(old):
            alone = opened & (self.popularity[old] == 0)
            slots[alone] = old[alone]
        homeless = np.flatnonzero(slots == NEW)
        free = self.popularity == 0
        free[slots[slots != NEW]] = False
        # A slot that the client is about to leave still holds its row.
        free[old] = False
        self._grow(len(homeless) - int(free.sum()))
        free = np.append(free, np.ones(len(self.popularity) - len(free), dtype=bool))
        slots[homeless] = np.flatnonzero(free)[: len(homeless)]

    def _grow(self, missing: int) -> None:
        if missing <= 0:
            return
        extra = max(missing, len(self.popularity) // 8)
        self.sums = torch.nn.functional.pad(self.sums, (0, 0, 0, extra))
        self.popularity = np.pad(self.popularity, (0, extra))
        self.changed = np.pad(self.changed, (0, extra))

    def _move(self, client: int, moved: Integers, slots: Integers) -> None:
        self.time += 1
        self.visited[client] = self.time
        if not len(moved):
            return
        left = self.slots[client][moved] if len(self.slots[client]) else None
        # Blocks of rows stay in the cache.
        for part in self._pieces(len(moved)):
            rows = self.rows(client, chosen=part if len(moved) == len(slots) else moved[part])
            if left is not None:
                self.sums.index_add_(0, self.index(left[part]), rows, alpha=-1)
            self.sums.index_add_(0, self.index(slots[moved[part]]), rows)
        if left is not None:
            self.sums[self.index(left[self.popularity[left] == 0])] = 0.0
            self.changed[left] = self.time
        self.changed[slots[moved]] = self.time

    def index(self, array: Integers) -> torch.Tensor:
        """Return an index that torch takes."""
        return torch.from_numpy(array).to(self.sums.device)

    def means(self) -> Floats:
        """Return the members' means in the order of the numbers, not centred, shape (L, D)."""
        popularity = torch.from_numpy(self.popularity[self.numbering]).to(self.sums.device)
        means = self.sums[self.index(self.numbering)].div_(popularity[:, None])
        return means.add_(self._centre).cpu().numpy()

    def assignments(self) -> tuple[Integers, ...]:
        """Return local unit -> number of its global unit, for every client."""
        number = self._numbers()
        return tuple(number[slots] for slots in self.slots)

    def numbers(self, slots: Integers, chosen: Integers) -> Integers:
        """Return the numbers of some slots' units, ``slots[chosen]``, NEW where that is chosen."""
        return np.append(self._numbers()[slots], NEW)[chosen]

    def _numbers(self) -> Integers:
        """Return slot -> number of its unit, NEW where it has none."""
        number = np.full(len(self.popularity), NEW, dtype=np.int64)
        number[self.numbering] = np.arange(self.width)
        return number

    def renumber(self, client: int) -> None:
        """Number the units as if the client had been visited and its grouping had stayed.

        A unit that it holds alone vanishes, the numbers close up, and it is appended again.
        """
        slots = self.slots[client]
        alone = slots[self.popularity[slots] == 1]
        kept = self.numbering[~np.isin(self.numbering, alone)]
        self.numbering = np.append(kept, alone)
