"""What is different in a round for narrow clients: they hold their own selection, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedma_flwr.averaging import ClientUpdate, HeadSolver, StageOutcome, solve_stage
from fedma_flwr.averaging.all_uploads import widened
from fedma_flwr.averaging.narrow_heads import solve_narrow_stage
from fedma_flwr.matching import IdentityMatching, Matcher, SavedMatching
from fedma_flwr.protocol import Assignments
from fedma_flwr.server.arguments import COMMON
from fedma_flwr.server.members import Member
from fedma_flwr.server.round_state import RoundState
from fedma_flwr.server.width_selection import POPULAR, ROLLING, choose_units
from fedma_flwr.structure.narrowing import same_units
from fedma_flwr.unit_records import MOST_PARTS


class NarrowRound(RoundState):
    """A round some of whose clients may be narrow.

    A narrow client is narrower than the initial model in some group, since it says so or since its
    own first weights are. It is sent its own selection in every stage, so that it never learns of
    assignments: its units are where the server knows them to be.
    """

    def is_narrow(self, member: Member) -> bool:
        """Whether a client stays at its own widths."""
        return self._are_narrow(member.widths)

    def _are_narrow(self, widths: Mapping[str, int]) -> bool:
        sizes = self.settings.spec.sizes
        return any(units < sizes[group] for group, units in widths.items())

    @property
    def has_narrow(self) -> bool:
        """Whether any client that is asked in this round is narrow."""
        asked = (*self.members.values(), *self.away.values(), *self.guests.values())
        return any(self.is_narrow(member) for member in asked)

    # ------------------------------------------------------------------ which units it holds

    def _is_chosen_for(self, member: Member) -> bool:
        """Whether the server chooses a narrow client's units, instead of letting it keep its own.

        Units that began with the client's own weights, or have personal tensors, stay with it.
        """
        settings = self.settings
        if not self.is_narrow(member):
            return False
        stays = settings.initialisation != COMMON or bool(settings.personal)
        return not (stays and member.key in self.model.assignments)

    def _selection(self, member: Member) -> dict[str, Tensor]:
        if self._begins_anew or not self._is_chosen_for(member):
            return super()._selection(member)
        sizes = self.settings.spec.sizes
        held = {g: self.model.popularity.get(g, torch.zeros(size)) for g, size in sizes.items()}
        known = self.model.assignments.values()
        clients = [{g: len(u) for g, u in units.items()} for units in known]
        return self._choose(member, held, self.number, clients or self._cohort_widths())

    def _cohort_widths(self) -> list[Mapping[str, int]]:
        return [member.widths for member in (*self.members.values(), *self.away.values())]

    def _choose(
        self,
        member: Member,
        held: Mapping[str, Tensor],
        number: int,
        clients: Sequence[Mapping[str, int]],
    ) -> Assignments:
        """The units that are trained in a round, after one of clients of these widths."""
        kind = self.settings.width_selection
        if kind == POPULAR and all(map(self._are_narrow, clients)):
            kind = ROLLING  # or nobody would train the other units
        return choose_units(kind, member.widths, held, number=number, seed=self.settings.seed)

    def _select_anew(self, stage: int) -> None:
        """Before the head stage, give narrow clients the units that they are to go on with.

        All that are of one width then measure the same model, and are sent its head. It costs
        nothing: everything but the head is sent in this stage anyway.
        """
        if stage + 1 >= len(self.settings.plan) or not self.settings.plan[stage + 1].solves_head:
            return
        held = {group: found.popularity for group, found in self.settled.matchings.items()}
        for member in (*self.members.values(), *self.away.values(), *self.guests.values()):
            if not self.is_narrow(member) or not (member.guest or self._is_chosen_for(member)):
                continue
            chosen = self._choose(member, held, self.number + 1, self._cohort_widths())
            member.moved = not same_units(chosen, member.assignments)
            member.assignments = chosen

    def _builds_on(self, member: Member, stage: int) -> bool:
        """Whether what a narrow client holds are the units that it is going to be sent."""
        if stage == 0 and member.key in self._renewed:
            return False
        if not self.is_narrow(member):
            return True
        if stage > 0:
            return not member.moved
        held = self.model.assignments.get(member.key)
        return held is not None and same_units(held, self._selection(member))

    # ------------------------------------------------------------------ what it is sent and sends

    def _at_own_width(self, tensors: Mapping[str, Tensor], member: Member) -> dict[str, Tensor]:
        """Settled tensors as the client holds them."""
        if not self.is_narrow(member):
            return dict(tensors)
        named = {name: t for name, t in tensors.items() if name in self.settings.spec.axes}
        return self.settings.spec.select(named, member.assignments, self.settled.widths)

    def _begun_with(self, names: Iterable[str], member: Member) -> dict[str, Tensor]:
        """Tensors of the last global model in the units that a client begins the round with."""
        tensors = {n: self.model.to_train[n] for n in names if n in self.settings.spec.axes}
        begun = self.settings.spec.select(tensors, self._moved(member), self._old_widths)
        head = self.model.narrow_start(self._selection(member)) if self.is_narrow(member) else {}
        return {**begun, **{name: tensor for name, tensor in head.items() if name in begun}}

    def evaluated(
        self, member: Member, tensors: Mapping[str, Tensor], *, own_head: bool
    ) -> dict[str, Tensor]:
        """The model that a narrow client evaluates: what it would begin the round with.

        Parameters
        ----------
        member : Member
            The client.
        tensors : mapping of str to Tensor
            The global model.
        own_head : bool
            Whether its width's own solved head belongs to them.
        """
        units, spec = self._selection(member), self.settings.client_spec
        known = {name: tensor for name, tensor in tensors.items() if name in spec.axes}
        begun = spec.select(known, units, self._old_widths)
        head = self.model.narrow_head(units) if own_head else None
        return {**begun, **({} if head is None else head.tensors)}

    def _widths_of(self, member: Member) -> dict[str, int]:
        """The widths that a client's tensors must have, as far as they are known."""
        return member.widths if self.is_narrow(member) else {**member.widths, **self.settled.widths}

    @cached_property
    def _narrow_models(self) -> list[Assignments]:
        """The models that narrow clients hold in the head stage, those of most clients first.

        Found once, before that stage's messages: who drops out changes nothing.
        """
        if self.settings.averaging.robust or not self.settled.widths:
            return []
        asked = (*self.members.values(), *self.away.values(), *self.guests.values())
        found: list[tuple[int, Assignments]] = []
        for units in [m.assignments for m in asked if self.is_narrow(m)]:
            known = next((n for n, (_, own) in enumerate(found) if same_units(own, units)), None)
            if known is None:
                found.append((1, units))
            else:
                found[known] = (found[known][0] + 1, units)
        ordered = sorted(found, key=lambda counted: -counted[0])
        return [units for _, units in ordered[:MOST_PARTS]]

    def _models_in(self, member: Member) -> list[Assignments]:
        """The narrower clients' models that are part of a client's: it can measure them too."""
        narrow = self.is_narrow(member)
        return [
            units
            for units in self._narrow_models
            if not (narrow and same_units(units, member.assignments))
            and (not narrow or _is_part(units, member.assignments))
        ]

    def _parts_of(self, member: Member) -> tuple[tuple[Assignments, ...], int]:
        """These models in the client's own units, and how many inputs their heads have."""
        models = self._models_in(member)
        inputs = sum(self._head_inputs({g: len(u) for g, u in own.items()}) for own in models)
        if not self.is_narrow(member):
            return tuple(models), inputs
        return tuple(_within(units, member.assignments) for units in models), inputs

    def _asked_beside(self, member: Member, stage: int) -> dict[str, Any]:
        """Entries of an instruction: narrower models to be measured beside the client's own."""
        if not self.settings.plan[stage].solves_head or not (parts := self._parts_of(member)[0]):
            return {}
        return {"parts": parts, "own_widths": self._widths_of(member)}

    def _head_inputs(self, widths: Mapping[str, int]) -> int:
        solver = self.settings.solver
        if solver is None:
            return 0
        return self.settings.spec.shapes({**self.settled.widths, **widths})[solver.head.weight][1]

    def _as_sent(self, member: Member, update: ClientUpdate) -> ClientUpdate:
        """A client's update as averages need it: at the global widths of groups matched before."""
        if update.moments is not None:
            _, inputs = self._parts_of(member)
            own = self._head_inputs(self._widths_of(member))
            if inputs and update.moments.inputs == own + inputs:
                update = replace(update, parts=tuple(self._models_in(member)))
        if not self.is_narrow(member):
            return update
        held = {g: units for g, units in member.assignments.items() if g in self.settled.widths}
        update = replace(update, held=held, narrow=True)
        return widened(self.settings.spec, update, self.settled.widths)

    def _solved(
        self, solver: HeadSolver, updates: Sequence[ClientUpdate], reference: Mapping[str, Tensor]
    ) -> StageOutcome:
        """Solve the head; with narrow clients, one for each width."""
        dtype = self.model.tensors[solver.head.weight].dtype
        widths, spec = self.settled.widths, self.settings.spec
        if any(update.narrow for update in updates):
            trusting = not self.settings.averaging.robust
            return solve_narrow_stage(spec, updates, widths, solver, dtype, estimates=trusting)
        return solve_stage(spec, updates, widths, solver, dtype, reference=reference)

    # ------------------------------------------------------------------ what nobody holds

    @property
    def _keeps_units(self) -> bool:
        """Whether the last global model takes part, so that units nobody holds are not lost."""
        return not self._begins_anew and self.has_narrow

    def _last_model(self, stage: int) -> dict[str, Tensor] | None:
        """Its uploads in the units matched so far, if it takes part."""
        if not self._keeps_units:
            return None
        uploads = self.settings.plan[stage].uploads
        tensors = {name: self.model.to_train[name] for name in uploads}
        return self.settings.spec.expand(tensors, self._last_units, self.settled.widths)

    def _matchers(self, groups: Sequence[str]) -> Mapping[str, Matcher]:
        """What takes the matcher's place: a saved matching, or where units are known to be."""
        members = list(self.members.values())
        last = self._old_widths if self._keeps_units else None
        widths = [member.widths for member in members]
        found = self.saved.matchers(groups, [member.key for member in members], widths, last)
        if found or not last or not isinstance(self.settings.matcher, IdentityMatching):
            return found
        # Unit i of a narrow client is not unit i of the model.
        own = [self._selection(member) for member in members]
        own.append({group: torch.arange(last[group]) for group in groups})
        return {g: SavedMatching(tuple(units[g].numpy() for units in own)) for g in groups}


def without_starts(outcome: StageOutcome) -> StageOutcome:
    """An outcome whose solved heads local training does not go on from."""
    heads = tuple(replace(head, local_head={}) for head in outcome.narrow_heads)
    return replace(outcome, local_head={}, narrow_heads=heads)


def _is_part(units: Assignments, held: Assignments) -> bool:
    """Whether a selection is part of another one."""
    return all(bool(torch.isin(own, held[group]).all()) for group, own in units.items())


def _within(units: Assignments, held: Assignments) -> Assignments:
    """A selection that is part of another one, in the numbers of the latter's units."""
    return {
        group: torch.tensor([held[group].tolist().index(unit) for unit in own.tolist()])
        for group, own in units.items()
    }
