"""Who takes part in a round, and what each client holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedma_flwr.protocol import Assignments
from fedma_flwr.server.arguments import OWN
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.matchings_folder import SavedRound
from fedma_flwr.server.members import NO_CHANGES, Changes, Member, common_changes
from fedma_flwr.server.settings import RoundSettings
from fedma_flwr.server.settled_so_far import SettledSoFar
from fedma_flwr.structure.narrowing import narrow_widths


class RoundState:
    """Who takes part in one communication round, and what each client holds.

    Parameters
    ----------
    settings : RoundSettings
        What stays the same from round to round.
    model : GlobalModel
        The global model that the round starts from; it is not changed.
    number : int
        Communication round, from 1.
    members : iterable of (int, str)
        Node and client key of each client of the cohort, in the order of the client keys.
    config : mapping
        The user's train config.
    guests : iterable of (int, str), optional
        The same of clients outside the cohort that are asked for the moments of their head inputs.
    ratios : mapping of int to float, optional
        How wide the clients on these nodes are, relative to the initial model; all others: 1.
    nonce : str
        Random text that makes the round's state tokens its own.
    saved : SavedRound, optional
        The round's saved matching, which takes the matcher's place if there is one.
    """

    def __init__(
        self,
        *,
        settings: RoundSettings,
        model: GlobalModel,
        number: int,
        members: Iterable[tuple[int, str]],
        guests: Iterable[tuple[int, str]] = (),
        ratios: Mapping[int, float] | None = None,
        config: Mapping[str, Any],
        nonce: str,
        saved: SavedRound | None = None,
    ) -> None:
        self.settings = settings
        self.model = model
        self.number = number
        self._ratios = dict(ratios or {})
        self._last_units: Assignments = {}  # where the last global model's units are now
        members, guests = list(members), list(guests)
        self._renewed = self._forget_other_widths([*members, *guests])
        self.members = {node: self._member(node, key) for node, key in members}
        self._begun = [(m.key, m.assignments) for m in self.members.values()]
        self.away: dict[int, Member] = {}  # have missed the stage before, and are asked again
        self._order = list(self.members)
        self.guests = {node: self._guest(node, key) for node, key in guests}
        self.size = len(self.members)  # of the cohort, before anyone is dropped
        self.config = dict(config)
        self.nonce = nonce
        self.settled = SettledSoFar()
        self.saved = saved or SavedRound(None, number, [])

    # ------------------------------------------------------------------ what a client holds

    def _member(self, node: int, key: str) -> Member:
        """A client of the cohort, with the widths of what it is going to be sent."""
        if self._begins_anew:
            return Member(node, key, {})
        sizes = self._sizes(node, key)
        widths = {name: len(self.model.selection(key, name, size)) for name, size in sizes.items()}
        return Member(node, key, widths)

    def _forget_other_widths(self, clients: Iterable[tuple[int, str]]) -> frozenset[str]:
        """Keys of clients that have other widths than before: they are taken as new."""
        if self.settings.initialisation == OWN:  # their widths are those of their own weights
            return frozenset()
        known, renewed = self.model.assignments, set()
        for node, key in clients:
            for group, size in self._sizes(node, key).items() if key in known else ():
                if len(known[key][group]) != min(size, len(self.model.popularity[group])):
                    renewed.add(key)
        if renewed:
            kept = {key: units for key, units in known.items() if key not in renewed}
            self.model = replace(self.model, assignments=kept)
        return frozenset(renewed)

    def _guest(self, node: int, key: str) -> Member:
        """A client outside the cohort: its widths count only if it is narrow."""
        member, sizes = self._member(node, key), self.settings.spec.sizes
        narrow = any(units < sizes[group] for group, units in member.widths.items())
        return Member(node, key, member.widths if narrow else {}, guest=True)

    def _sizes(self, node: int, key: str) -> dict[str, int]:
        """The width of every group for a client that is sent units of the server's choice."""
        return narrow_widths(self.settings.spec, self._ratios.get(node, 1.0))

    def token(self, stage: int) -> str:
        """State token of the clients that have done a stage of this round."""
        return f"{self.nonce}.{self.number}.{stage}"

    def _needed(self, stage: int) -> str:
        """State token that a client must hold to understand an update; empty if there is none."""
        return self.model.token if stage == 0 else self.token(stage - 1)

    @property
    def _begins_anew(self) -> bool:
        """Whether clients have started from weights that the server does not know."""
        return self.settings.initialisation == OWN and not self.model.token

    def _selection(self, member: Member) -> dict[str, Tensor]:
        """The units of the last global model that a client has begun the round with, by group."""
        return {
            name: self.model.selection(member.key, name, member.widths.get(name, group.size))
            for name, group in self.settings.spec.groups.items()
        }

    def _moved(self, member: Member) -> dict[str, Tensor]:
        """The same, without groups of which it has all units in their order.

        Their tensors need no copy, and are the same for all such clients.
        """
        return {
            name: units
            for name, units in self._selection(member).items()
            if not torch.equal(units, torch.arange(self._old_widths[name]))
        }

    @property
    def _old_widths(self) -> dict[str, int]:
        """The width of every group in the last global model."""
        grown = {name: len(held) for name, held in self.model.popularity.items()}
        return {**self.settings.spec.sizes, **grown}

    def asked(self, stage: int) -> dict[int, Member]:
        """The clients that a stage asks, by node: the cohort's, then the guests."""
        guests = self.guests if self.settings.plan[stage].solves_head else {}
        cohort = {**self.members, **self.away}
        return {**{node: cohort[node] for node in self._order if node in cohort}, **guests}

    def exclude(self, node: int) -> None:
        """Ask a client no more in this round."""
        self.members.pop(node, None)
        self.away.pop(node, None)
        self.guests.pop(node, None)

    def keep(self, changes: Mapping[int, Changes]) -> None:
        """Go on with these clients of the cohort alone, and what is changed in their messages.

        Clients outside the cohort are asked too only if a subclass treats all alike: whom it has
        left out, or given entries of its own, it would have treated so among them as well.
        """
        common = common_changes(changes.values())
        if common is None or len(changes) < len(self.members):
            self.guests = {}
        for guest in self.guests.values():
            guest.changes = common or NO_CHANGES
        self.members = {node: m for node, m in self.members.items() if node in changes}
        for node, member in self.members.items():
            member.changes = changes[node]
        self.size = len(self.members)

    # ---------------------------------------------------------------- what has become of it

    def may_average_head(self, stage: int) -> bool:
        """Whether the average of the trained heads can stand in for a head to be solved."""
        settings = self.settings
        known = settings.spec.head and self.settled.local_head.keys() >= set(settings.spec.head)
        return settings.head_may_be_averaged and settings.plan[stage].solves_head and bool(known)

    def average_head(self) -> None:
        """Let the average of the trained heads stay, as if no head had been to be solved."""
        self.settled.average_head(self.settings.spec.head)
        self.settled.unexplained = self.model.unexplained  # nothing is known of it

    def skips(self, stage: int) -> bool:
        """Whether nobody need be asked in a stage: it is known that no head can be solved."""
        return self.model.head_averaged and self.may_average_head(stage)

    def _goes_on_from_averaged(self, unexplained: float | None) -> bool:
        """Whether local training had better go on from the average of the trained heads."""
        if unexplained is None or not self.settings.start_may_change:
            return False
        return self.model.has_fallen(unexplained)

    def fall(self) -> str:
        """Why local training goes on from another head than before; empty if it does not."""
        now = self.settled.unexplained
        if not self.settings.start_may_change or not self.model.falls_now(now):
            return ""
        return (
            "the last hidden layer tells the classes apart much worse than before (it leaves "
            f"{now:.2f} of their variance, at best {self.model.unexplained:.2f}), so that local "
            "training goes on from the average of the trained heads now; a lower learning rate "
            "is likely to help"
        )

    def is_behind(self) -> bool:
        """Whether an earlier model is handed out, since this round's features are much worse."""
        fell = self.settings.start_may_change and not self.settings.personal
        return fell and self.model.is_much_worse(self.settled.unexplained)

    def lag(self) -> str:
        """Why an earlier model is handed out; empty if it is not."""
        if not self.is_behind():
            return ""
        return (
            f"the last hidden layer leaves {self.settled.unexplained:.2f} of the classes' "
            f"variance, at best {self.model.unexplained:.2f}. Training goes on, but the model that "
            "is handed out stays the earlier one until the layer is nearly as good again"
        )

    def is_undone(self) -> bool:
        """Whether the round before had the better model, so that it is taken up again."""
        # Personal tensors have gone on with this round's units, and nobody can call them back.
        can_be = bool(self.model.trained_head) and not self.settings.personal
        return can_be and self.fall() != ""
