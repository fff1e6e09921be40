"""Tensors that stay with the clients: what the server knows of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedma_flwr.server.members import Member
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.structure.name_patterns import matching_names
from fedma_flwr.structure.shared_tensors import with_tensors, without_tensors
from fedma_flwr.structure.unit_moves import move_units


@dataclass(frozen=True)
class Participation:
    """Which tensors of a model take part in a run.

    Parameters
    ----------
    shared : PermutationSpec
        Of the tensors that are sent, matched and averaged.
    clients : PermutationSpec
        Of these and the personal ones: what clients hold, and `fedma_mod` keeps.
    personal : tuple of str
        Tensors that stay with the client.
    absent : tuple of str
        Tensors that the initial arrays lack, and of which nothing is known but their shapes.
    """

    shared: PermutationSpec
    clients: PermutationSpec
    personal: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        spec: PermutationSpec,
        patterns: Collection[str],
        present: Collection[str] | None = None,
    ) -> Participation:
        """What `personal` and the initial arrays amount to.

        Parameters
        ----------
        spec : PermutationSpec
            Of the whole model.
        patterns : collection of str
            `FedMA`'s argument `personal`.
        present : collection of str, optional
            Names of the initial arrays. None: all are there.

        Raises
        ------
        ValueError
            If a pattern matches nothing, or all tensors are personal.
        """
        matching = matching_names("personal", patterns, spec.axes)
        absent = () if present is None else tuple(n for n in spec.axes if n not in present)
        clients = without_tensors(spec, absent) if absent else spec
        personal = tuple(name for name in clients.axes if name in matching)
        shared = with_tensors(clients, clients.axes.keys() - matching) if personal else clients
        return cls(shared, clients, personal, absent)

    def at_widths(
        self, tensors: Mapping[str, Tensor], widths: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """The personal tensors' initial values at other widths.

        A unit beyond the initial ones has the values of an initial one: unit `i` of `n` those of
        unit ``i mod n``.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            A global model with their initial values, at any widths.
        widths : mapping of str to int
            The new global width of every group that is matched.
        """
        resized = {}
        now = {**self.clients.sizes, **self.clients.widths(tensors)}
        for name in self.personal:
            tensor = tensors[name]
            units = {
                group: torch.arange(widths[group]) % min(now[group], self.clients.sizes[group])
                for group in self.clients.tensor_groups(name) & widths.keys()
            }
            for dim, axis in enumerate(self.clients.axes[name]):
                if axis.groups & units.keys():
                    tensor = tensor.index_select(dim, axis.positions(units, now))
            resized[name] = tensor
        return resized


def initial_personal(
    taking_part: Participation | None,
    tensors: Mapping[str, Tensor],
    member: Member | None,
    selection: Mapping[str, Tensor] | None,
    widths: Mapping[str, int],
) -> dict[str, Tensor]:
    """The initial values of personal tensors: for a client that has none, or for the result.

    Parameters
    ----------
    taking_part : Participation or None
        None: there are none.
    tensors : mapping of str to Tensor
        The last global model.
    member : Member or None
        The client.
    selection : mapping of str to Tensor, optional
        The units of the last global model that it began with. None: all units there are.
    widths : mapping of str to int
        Global width of every group matched so far.
    """
    if taking_part is None:
        return {}
    if member is None or selection is None:
        return taking_part.at_widths(tensors, widths)
    return move_units(
        taking_part.clients,
        {name: tensors[name] for name in taking_part.personal},
        before=selection,
        after=member.assignments,
        widths=widths,
    )
