"""One communication round on the server: what a client holds, is sent, and must reply.

No Flower messages here: `exchange` makes and reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from fedma_flwr import protocol, wire
from fedma_flwr.averaging import ClientUpdate, RoundStart, StageOutcome, settle_stage
from fedma_flwr.averaging.spectral_vectors import with_spectral_vectors
from fedma_flwr.protocol import Assignments, Instruction
from fedma_flwr.server.carried_units import UnitCarrier
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.members import Member, Outgoing
from fedma_flwr.server.messages import counters
from fedma_flwr.server.narrow_round import NarrowRound, without_starts
from fedma_flwr.server.personal_tensors import initial_personal
from fedma_flwr.server.remembered import RememberedMoments, remember, stand_ins
from fedma_flwr.server.replies import Expected


class CommunicationRound(NarrowRound):
    """One communication round: what its clients are sent, must reply, and what comes of it."""

    # ------------------------------------------------------------------ what it is sent

    def outgoing(self, member: Member, stage: int, held: str, *, lost: bool = False) -> Outgoing:
        """What a client is sent in a stage. Long because an instruction has many parts.

        Parameters
        ----------
        member : Member
            The client.
        stage : int
            Number of the stage.
        held : str
            State token that it is believed to hold; an update builds on that state. Everything is
            sent if it is another one, or empty.
        lost : bool (default: False)
            Whether it has said that it holds nothing, no personal tensors either.
        """
        needed, plan = self._needed(stage), self.settings.plan
        update = needed != "" and held == needed and not member.guest
        update = update and self._builds_on(member, stage)
        follows = not update and self._follows(member, stage)
        groups = self._groups_before(stage, member, last_only=update)
        instruction = Instruction(
            kind=protocol.UPDATE if update else protocol.FULL,
            round=self.number,
            stage=stage,
            stages=len(plan),
            name=plan[stage].name,
            needs=needed if update else "",
            gives=self.token(stage),
            settled=plan.settled_before(stage),
            uploads=plan[stage].uploads,
            estimates=plan[stage].estimates,
            assignments={group: member.assignments[group] for group in groups},
            widths={group: self.settled.widths[group] for group in groups},
            spec="" if update else self.settings.client_spec.to_json(),
            personal=() if update else self.settings.personal,
            follows=follows,
            partial=self.settings.partial,
            arrays_key=self.settings.arrayrecord_key,
            wire_dtype=self.settings.wire_dtype,
            head_module=self.settings.head_module(stage),
            head_expected=bool(self._reference(stage)),
            **self._asked_beside(member, stage),
        )
        tensors = self._news(member, stage) if update else self._everything(member, stage)
        if tensors and self.settings.personal and not update and (lost or not follows):
            tensors |= self._initial_personal(member)
        return Outgoing(instruction, self._config(member, stage), tensors)

    def _follows(self, member: Member, stage: int) -> bool:
        """Whether the units that a client is sent are its own, if it has any."""
        known = member.key in self.model.assignments
        if not member.guest:
            return (stage > 0 or known) and not (member.placed and self._begins_anew)
        carried = self._carrier().carry(member.key) if known and self.settings.personal else None
        member.assignments = carried or (member.assignments if self.is_narrow(member) else {})
        return carried is not None

    def _reference(self, stage: int) -> dict[str, Tensor]:
        """The head that a stage's step starts from, as clients get it; empty without a step.

        Made once a stage, so that all messages share its tensors.
        """
        if stage not in self.settled.references:
            self.settled.references[stage] = self._made_reference(stage)
        return self.settled.references[stage]

    def _made_reference(self, stage: int) -> dict[str, Tensor]:
        solver = self.settings.solver
        # Heads of several widths have no step in common.
        if solver is None or not self.settings.plan[stage].solves_head or self.has_narrow:
            return {}
        reference = solver.reference(self.settled.local_head, self.model.reference_share)
        return wire.rounded(reference, self.settings.wire_dtype)

    def _groups_before(self, stage: int, member: Member, *, last_only: bool) -> tuple[str, ...]:
        """A client's groups matched before a stage: in all of the round, or in the last one."""
        if self.is_narrow(member):  # it holds its own units, wherever they are
            return ()
        first = max(stage - 1, 0) if last_only else 0
        stages = self.settings.plan.stages[first:stage]
        return tuple(g for past in stages for g in past.groups if g in member.assignments)

    def _config(self, member: Member, stage: int) -> dict[str, Any]:
        """The user's entries; a client's own as if they had been in the train config."""
        overrides = self.settings.config_overrides.get(self.settings.plan[stage].name, {})
        changes = member.changes
        given = {**self.config, **changes.config}
        own = {key: value for key, value in given.items() if key not in changes.without}
        number = (self.number - 1) * len(self.settings.plan) + stage + 1
        config = {**own, **overrides, **counters(self.number, number)}
        if self.settings.trains_nothing(stage) and protocol.EPOCHS_CONFIG_KEY in config:
            config[protocol.EPOCHS_CONFIG_KEY] = 1  # more would only repeat what one pass gives
        return config

    def _news(self, member: Member, stage: int) -> dict[str, Tensor]:
        """What has become known since the stage before; at the start, last round's head."""
        settles = self.settings.plan[stage - 1].settles  # stage 0: those of the last stage
        if stage == 0 and self.is_narrow(member):
            return self._begun_with(settles, member)
        source = self.settled.tensors if stage else self.model.to_train
        news = {name: source[name] for name in settles}
        return self._at_own_width({**news, **self._reference(stage)}, member)

    def _everything(self, member: Member, stage: int) -> dict[str, Tensor]:
        """The client's whole model at the widths of this stage.

        What is not settled comes from the last global model, not from what the client had lost.
        """
        spec = self.settings.spec
        if stage == 0 and self._begins_anew:
            return {}
        settled = {**self._reference(stage), **self.settled.tensors}
        if member.guest:  # the head does not count where its inputs are summed
            shapes = spec.shapes(self.settled.widths)
            head = {n: self.model.tensors[n].new_zeros(shapes[n]) for n in spec.head}
            return self._at_own_width({**head, **settled}, member)
        own = self._begun_with((n for n in spec.axes if n not in self.settled.tensors), member)
        if not self.is_narrow(member):
            own = spec.expand(own, member.assignments, self.settled.widths)
        return {**own, **self._at_own_width(settled, member)}

    def _initial_personal(self, member: Member | None = None) -> dict[str, Tensor]:
        unknown = member is None or (member.guest and not member.assignments)
        selection = None if member is None or unknown else self._selection(member)
        taking_part, widths = self.settings.taking_part, self.settled.widths
        return initial_personal(taking_part, self.model.tensors, member, selection, widths)

    # ------------------------------------------------------------------ what it must reply

    def expected(self, member: Member, stage: int) -> Expected:
        """What a client's reply to a stage must look like."""
        settings = self.settings
        return Expected(
            spec=self.settings.spec,
            uploads=self.settings.plan[stage].uploads,
            dtypes={name: tensor.dtype for name, tensor in self.model.tensors.items()},
            widths=self._widths_of(member),
            max_widths=settings.own_widths if self._begins_anew else settings.max_widths,
            token=self.token(stage),
            weighted_by_key=self.settings.weighted_by_key,
            wire_dtype=self.settings.wire_dtype,
            moments=self.settings.moments(stage, self._widths_of(member)),
            with_expected=bool(self._reference(stage)),
            part_inputs=self._parts_of(member)[1] if settings.plan[stage].solves_head else 0,
            several_heads=self.settings.several_heads,
        )

    # ------------------------------------------------------------------ what comes of it

    def settle(self, stage: int, updates: Mapping[int, ClientUpdate]) -> StageOutcome:
        """Match and average what the clients sent; who has sent nothing is asked again later."""
        asked = self.asked(stage)
        nodes = [node for node in asked if node in updates]
        cohort = {node: member for node, member in asked.items() if not member.guest}
        self.members = {node: member for node, member in cohort.items() if node in updates}
        self.away = {node: member for node, member in cohort.items() if node not in updates}
        sent = {asked[node].key: self._as_sent(asked[node], updates[node]) for node in nodes}
        outcome = self._averaged(stage, sent)
        if self._goes_on_from_averaged(outcome.unexplained):
            outcome = without_starts(outcome)
        known = self.settled.tensors
        vectors = with_spectral_vectors(self.settings.spec, outcome.tensors, known)
        outcome = replace(outcome, tensors=vectors)
        keys = [member.key for member in self.members.values()]
        self.settled.add(outcome, keys, self.settings.wire_dtype)
        if not outcome.head_solved:  # nothing was matched there, and guests have had their say too
            for member, assignments in zip(self.members.values(), outcome.assignments, strict=True):
                member.assignments.update(assignments)
            for member in list(self.away.values()):
                self._place(member)
            self._last_units.update(outcome.last_units)
            self._select_anew(stage)
        return outcome

    def _place(self, member: Member) -> None:
        """Choose units for a client that has missed the stage that matched its own."""
        groups = self.settled.matchings.keys() - member.assignments.keys()
        if not groups:
            return
        popularity = {group: self.settled.matchings[group].popularity for group in groups}
        moves = [] if self._begins_anew else self._moves()
        carrier = UnitCarrier({member.key: self._selection(member)}, moves, popularity)
        if (units := carrier.carry(member.key)) is None:  # wider than all who were there
            self.exclude(member.node_id)
            return
        member.assignments.update(units)
        member.placed = True

    def _averaged(self, stage: int, sent: Mapping[str, ClientUpdate]) -> StageOutcome:
        settings, planned = self.settings, self.settings.plan[stage]
        if settings.solver is not None and planned.solves_head:
            self.settled.moments = sent
            size = settings.moments(stage, self.settled.widths)
            values = any(u.moments and u.moments.squares is not None for u in sent.values())
            away = stand_ins(self.model.remembered, sent, size, values=values)
            every = [*sent.values(), *away]
            return self._solved(settings.solver, every, self._reference(stage))
        return settle_stage(
            settings.spec,
            planned,
            list(sent.values()),
            matched=self.settled.widths,
            matcher=settings.matcher,
            max_widths=settings.max_widths,
            weighted=settings.weighted_units,
            averaging=settings.averaging,
            seed=settings.seed + 1000 * self.number + stage,
            saved=self._matchers(planned.groups),
            last=self._last_model(stage),
            start=self._start(),
            server_learning_rate=settings.server_learning_rate,
        )

    def _start(self) -> RoundStart | None:
        """What the clients have started from; None if the server does not know it."""
        if self._begins_anew:
            return None
        moves = self._moves()
        begun, become = [begun for begun, _ in moves], [become for _, become in moves]
        old = self._old_widths
        return RoundStart(self.model.tensors, begun, become, self.settled.widths, old)

    def _moves(self) -> list[tuple[dict[str, Tensor], Assignments]]:
        """What each client has begun the round with, and the units that these have become."""
        return [(self._selection(member), member.assignments) for member in self.members.values()]

    def _carrier(self) -> UnitCarrier:
        """What tells the new units of clients that are not there at the end."""
        popularity = {group: found.popularity for group, found in self.settled.matchings.items()}
        return UnitCarrier(self.model.assignments, self._moves(), popularity)

    def _remembered(self) -> dict[str, RememberedMoments]:
        sent, memory = self.settled.moments.items(), self.settings.head_memory
        return remember(self.model.remembered, sent, server_round=self.number, memory=memory)

    def committed(self) -> GlobalModel:
        """The global model after the last stage."""
        if self.is_undone():
            return self.model.before_fall()
        last = self.settings.plan[len(self.settings.plan) - 1]
        # Clients that do not know their assignments (one-shot) are sent everything next time.
        unknown = ".matched" if last.groups else ""
        tensors = dict(self.settled.tensors)
        assignments = {member.key: dict(member.assignments) for member in self.members.values()}
        if self.settings.personal:
            tensors |= self._initial_personal()
            assignments = self._carrier().units_of_all(self._begun)
        tensors = {name: tensors[name] for name in self.model.tensors}
        return GlobalModel(
            tensors=tensors,
            best=self.model.better_than(tensors) if self.is_behind() else {},
            token=self.token(last.index) + unknown,
            assignments=assignments,
            popularity={group: found.popularity for group, found in self.settled.matchings.items()},
            local_head=self.settled.local_head,
            trained_head=self.settled.trained_head if self.settings.start_may_change else {},
            remembered=self._remembered(),
            narrow=self.settled.narrow_heads,
            reference_share=self.model.next_share(self.settled.share_factor),
            unexplained=min(self.model.unexplained, self.settled.unexplained),
            head_averaged=self.settled.head_averaged,
            fell=self.model.has_fallen(self.settled.unexplained),
        )
