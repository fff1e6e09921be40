"""One communication round on the server: what each client holds, gets, and has sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fedma_flwr import previous, protocol, wire
from fedma_flwr.averaging import ClientUpdate, StageOutcome, settle_stage
from fedma_flwr.matching import SavedMatching
from fedma_flwr.protocol import Assignments, Instruction
from fedma_flwr.replies import Expected
from fedma_flwr.saved_matchings import GroupMatching, MatchingsFolder, RoundMatching
from fedma_flwr.settings import OWN, RoundSettings


@dataclass
class GlobalModel:
    """What the last complete round has left.

    Parameters
    ----------
    tensors : dict of str to Tensor
        The global model.
    token : str
        State token of the clients that hold all of it but the averaged head; empty before the
        first complete round.
    assignments : dict of str to dict of str to Tensor
        The global units of each client of the last round, by client key and group.
    popularity : dict of str to Tensor
        (L,) how many clients hold each global unit, by group.
    """

    tensors: dict[str, Tensor]
    token: str = ""
    assignments: dict[str, Assignments] = field(default_factory=dict)
    popularity: dict[str, Tensor] = field(default_factory=dict)

    def selection(self, client_key: str, group: str, size: int) -> Tensor:
        """The global units that make up a client's local model.

        Its own of the last round; for a new or returning client the most popular ones.
        """
        if client_key in self.assignments:
            return self.assignments[client_key][group]
        if group not in self.popularity:
            return torch.arange(size)
        order = torch.argsort(self.popularity[group], descending=True, stable=True)
        return order[:size].sort().values


@dataclass
class Member:
    """A client of the round's cohort.

    Parameters
    ----------
    node_id : int
        Its Flower node.
    key : str
        Its client key.
    token : str
        The state token that it last said it holds.
    widths : dict of str to int
        Its own width of each group, as far as known.
    assignments : dict of str to Tensor
        Its global units of the groups matched so far in this round.
    """

    node_id: int
    key: str
    token: str
    widths: dict[str, int]
    assignments: Assignments = field(default_factory=dict)


class CommunicationRound:
    """The state of one communication round.

    Parameters
    ----------
    settings : RoundSettings
        What stays the same from round to round.
    model : GlobalModel
        The global model that the round starts from; it is not changed.
    number : int
        Communication round, from 1.
    members : sequence of Member
        The cohort, in the order of the client keys.
    config : mapping
        The user's train config.
    nonce : str
        Random text that makes the round's state tokens its own.
    matchings : MatchingsFolder, optional
        Where matchings are saved; the round's own is used if it is there.

    Raises
    ------
    ValueError
        If the saved matching is not of this model and these members.
    """

    def __init__(
        self,
        *,
        settings: RoundSettings,
        model: GlobalModel,
        number: int,
        members: Sequence[Member],
        config: Mapping[str, Any],
        nonce: str,
        matchings: MatchingsFolder | None = None,
    ) -> None:
        self.settings = settings
        self.model = model
        self.number = number
        self.members = {member.node_id: member for member in members}
        self.size = len(members)  # of the cohort, before anyone is dropped
        self.config = dict(config)
        self.nonce = nonce
        self.settled: dict[str, Tensor] = {}
        self.widths: dict[str, int] = {}
        self.identity = True
        self._popularity: dict[str, Tensor] = {}
        self._folder = matchings
        self._matched: RoundMatching = {}
        keys = [member.key for member in members]
        self._saved = {} if matchings is None else matchings.read(number, keys)

    # ------------------------------------------------------------------ messages

    def token(self, stage: int) -> str:
        """State token of the clients that have done a stage of this round."""
        return f"{self.nonce}.{self.number}.{stage}"

    def content(self, member: Member, stage: int, resend: bool = False) -> RecordDict:
        """The message of a stage to one client: an update if it holds the state, else all."""
        holds = self.model.token if stage == 0 else self.token(stage - 1)
        if resend or not holds or member.token != holds:
            kind, tensors = protocol.FULL, self._full(member, stage)
        else:
            kind, tensors = protocol.UPDATE, self._update(stage)
        plan = self.settings.plan
        matched = (group for past in plan.stages[:stage] for group in past.groups)
        groups = plan[stage - 1].groups if kind == protocol.UPDATE and stage else tuple(matched)
        instruction = Instruction(
            kind=kind,
            round=self.number,
            stage=stage,
            stages=len(plan),
            name=plan[stage].name,
            needs=holds if kind == protocol.UPDATE else "",
            gives=self.token(stage),
            settled=plan.settled_before(stage),
            uploads=plan[stage].uploads,
            estimates=plan[stage].estimates,
            assignments={group: member.assignments[group] for group in groups},
            widths={group: self.widths[group] for group in groups},
            spec=self.settings.spec.to_json() if kind == protocol.FULL else "",
            arrays_key=self.settings.arrayrecord_key,
            wire_dtype=self.settings.wire_dtype,
        )
        records: dict[str, Any] = {protocol.FEDMA_KEY: instruction.to_record()}
        records[self.settings.configrecord_key] = self._config(stage)
        if tensors:
            arrays = protocol.to_arrays(tensors, self.settings.wire_dtype)
            records[self.settings.arrayrecord_key] = arrays
        return RecordDict(records)

    def _config(self, stage: int) -> ConfigRecord:
        overrides = self.settings.config_overrides.get(self.settings.plan[stage].name, {})
        return ConfigRecord({**self.config, **overrides, "server-round": self.number})

    def _update(self, stage: int) -> dict[str, Tensor]:
        """What has become known since the stage before; at the start, last round's head."""
        settles = self.settings.plan[stage - 1].settles  # stage 0: those of the last stage
        source = self.settled if stage else self.model.tensors
        return {name: source[name] for name in settles}

    def _full(self, member: Member, stage: int) -> dict[str, Tensor]:
        """The client's whole model at the widths of this stage.

        What is not settled comes from the last global model, not from what the client had lost.
        """
        spec = self.settings.spec
        if stage == 0 and self._begins_anew:
            return {}
        selection = {group: self._selection(member, group) for group in spec.groups}
        local = spec.select(self.model.tensors, selection)
        own = {name: tensor for name, tensor in local.items() if name not in self.settled}
        return {**spec.expand(own, member.assignments, self.widths), **self.settled}

    def _selection(self, member: Member, group: str) -> Tensor:
        """The units of the last global model that a client has begun the round with."""
        size = member.widths.get(group, self.settings.spec.groups[group].size)
        return self.model.selection(member.key, group, size)

    # ------------------------------------------------------------------ replies

    def expected(self, member: Member, stage: int) -> Expected:
        """What a client's reply to a stage must look like."""
        return Expected(
            spec=self.settings.spec,
            uploads=self.settings.plan[stage].uploads,
            dtypes={name: tensor.dtype for name, tensor in self.model.tensors.items()},
            widths={**member.widths, **self.widths},
            max_widths=self.settings.max_widths,
            token=self.token(stage),
            weighted_by_key=self.settings.weighted_by_key,
            wire_dtype=self.settings.wire_dtype,
        )

    def settle(self, stage: int, updates: Mapping[int, ClientUpdate]) -> StageOutcome:
        """Match and average what the clients sent; clients without an update are dropped."""
        self.members = {node: m for node, m in self.members.items() if node in updates}
        plan, settings = self.settings.plan, self.settings
        keys = [member.key for member in self.members.values()]
        outcome = settle_stage(
            settings.spec,
            plan[stage],
            [updates[node] for node in self.members],
            matched=frozenset(self.widths),
            matcher=settings.matcher,
            max_widths=settings.max_widths,
            weighted=settings.weighted_units,
            averaging=settings.averaging,
            seed=settings.seed + 1000 * self.number + stage,
            known=self._known(plan[stage].groups, keys),
        )
        for member, assignments in zip(self.members.values(), outcome.assignments, strict=True):
            member.assignments.update(assignments)
        self.widths.update(outcome.widths)
        settled = self._with_previous(outcome.tensors, updates)
        # Server and clients must hold the same numbers, or a resumed run would differ.
        self.settled.update(wire.rounded(settled, settings.wire_dtype))
        for group, matching in outcome.matchings.items():
            self._popularity[group] = torch.as_tensor(matching.popularity)
            self.identity = self.identity and identity_share(matching.assignments) == 1.0
            found = dict(zip(keys, matching.assignments, strict=True))
            self._matched[group] = GroupMatching(found, matching.objective, matching.sweeps)
        return outcome

    def _known(self, groups: Sequence[str], keys: Sequence[str]) -> dict[str, SavedMatching]:
        """The saved matchings of these groups, for the clients that are left."""
        known = {name: self._saved[name].matcher(keys) for name in groups if name in self._saved}
        for name, matcher in known.items():
            own = [member.widths[name] for member in self.members.values()]
            if self._folder is not None:
                self._folder.check_widths(self.number, name, matcher, own)
        return known

    def save_matching(self) -> None:
        """Save the round's matching, if there is a folder for it and it was found anew."""
        if self._folder is not None and not self._saved:
            self._folder.save(self.number, self._matched)

    def _with_previous(
        self, settled: Mapping[str, Tensor], updates: Mapping[int, ClientUpdate]
    ) -> dict[str, Tensor]:
        """Settled tensors after the server's step from the last global model; see `previous`."""
        if self._begins_anew:
            return dict(settled)
        return previous.take_step(
            self.settings.spec,
            settled,
            before=self._before,
            server_learning_rate=self.settings.server_learning_rate,
            updates=list(updates.values()),
        )

    @property
    def _begins_anew(self) -> bool:
        """Whether clients have started from weights that the server does not know."""
        return self.settings.initialisation == OWN and not self.model.token

    def _before(self, name: str) -> previous.Known:
        """A tensor of the last global model in the units of this round's."""
        spec, tensors = self.settings.spec, {name: self.model.tensors[name]}
        groups, members = spec.tensor_groups(name), list(self.members.values())
        starts = [
            spec.select(tensors, {group: self._selection(member, group) for group in groups})[name]
            for member in members
        ]
        assignments = [member.assignments for member in members]
        return previous.in_new_units(spec, name, starts, assignments, self.widths)

    def committed(self) -> GlobalModel:
        """The global model after the last stage."""
        last = self.settings.plan[len(self.settings.plan) - 1]
        # Clients that do not know their assignments (one-shot) are sent everything next time.
        known = "" if not last.groups else ".matched"
        return GlobalModel(
            tensors={name: self.settled[name] for name in self.model.tensors},
            token=self.token(last.index) + known,
            assignments={member.key: dict(member.assignments) for member in self.members.values()},
            popularity=dict(self._popularity),
        )


def identity_share(assignments: Sequence[Any]) -> float:
    """Share of clients whose unit ``i`` is global unit ``i``."""
    same = [torch.equal(torch.as_tensor(units), torch.arange(len(units))) for units in assignments]
    return sum(same) / len(same)
