"""What every run records and logs: one JSON object an exchange, and the running totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from logging import INFO, WARNING
from typing import Any

import torch
from flwr.supercore import log

from fedma_flwr import protocol, reading
from fedma_flwr.averaging import StageOutcome
from fedma_flwr.server.progress import Progress
from fedma_flwr.structure import PermutationSpec

HELLO = protocol.HELLO
MOST_NAMED = 100  # clients that a record names
_MOST_EPOCHS = 1e6  # in one stage; sums over clients and rounds stay finite


@dataclass
class ExchangeRecord:
    """One send-and-receive with the cohort.

    Parameters
    ----------
    round, stage, stages : int
        Communication round (from 1), stage (from 0), stages in a round.
    name : str
        ``local``, ``retrain``, ``head``; ``hello`` for the small exchange that learns client keys.
    groups : tuple of str
        Groups matched after this exchange.
    cohort, answered : int
        Clients asked, and those whose reply was used.
    dropped : dict of str to str
        Why a client was dropped, by client key.
    resent : tuple of str
        Client keys that had lost their state and got a full-state message.
    bytes_down, bytes_up : int
        Bytes of the serialised records to and from the clients.
    epochs : float
        Mean local epochs, of the clients that report the metric ``epochs``.
    seconds_waiting, seconds_matching : float
        For the clients; for matching and averaging.
    widths : dict of str to int
        Global width of the groups known after this exchange.
    growth : float
        Parameters of the global model / parameters of the initial model (of the last round).
    identity : float or None
        Share of clients whose assignments of this exchange are all the identity; None if nothing
        was matched.
    popularity : dict of str to list of int
        For each matched group, how many units 1, 2, ... J clients hold.
    objective : dict of str to float
        The matcher's objective for each matched group.
    settled : dict of str to int
        Groups with more work than the matcher's ``effort`` allows: for how many updates it has
        settled for an assignment that is not proven the best.
    metrics : dict of str to float or list of float
        Means of the metrics that clients sent in this exchange, by examples.
    took_part : tuple of str
        Keys of clients whose reply was used, at most `MOST_NAMED`.
    similarity : dict of str to list of float
        For each matched group the quantiles of `similarity_of_matched`.
    head_scores, filters : dict
        What `report_details` adds for a report, if the run keeps records for one.
    """

    round: int
    stage: int
    stages: int
    name: str
    groups: tuple[str, ...] = ()
    cohort: int = 0
    answered: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    resent: tuple[str, ...] = ()
    bytes_down: int = 0
    bytes_up: int = 0
    epochs: float = 0.0
    seconds_waiting: float = 0.0
    seconds_matching: float = 0.0
    widths: dict[str, int] = field(default_factory=dict)
    growth: float = 1.0
    identity: float | None = None
    popularity: dict[str, list[int]] = field(default_factory=dict)
    objective: dict[str, float] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    took_part: tuple[str, ...] = ()
    similarity: dict[str, list[float]] = field(default_factory=dict)
    head_scores: dict[str, Any] = field(default_factory=dict)
    filters: dict[str, Any] = field(default_factory=dict)

    def heard(self, client_keys: Iterable[str]) -> None:
        """Take note of the clients whose reply is used."""
        keys = [reading.plain(key) for key in client_keys]
        self.answered, self.took_part = len(keys), tuple(keys[:MOST_NAMED])

    def drop(self, client_key: str, node: int, reason: str, *, again: bool = False) -> None:
        """Take note of a client whose reply cannot be used, and say it in the log.

        It is out for the rest of the round, or will be asked `again` in the next stage.

        The reason may be the client's own words: they are cut, and stay on one line.
        """
        client_key, reason = reading.plain(client_key), reading.plain(reason)
        self.dropped[client_key] = reason
        log(
            WARNING,
            "\tRound %s, stage %s: client %s (node %s) is dropped for %s: %s",
            self.round,
            self.stage,
            client_key,
            node,
            "this stage" if again else "the rest of the round",
            reason,
        )

    def resend(self, client_keys: Iterable[str]) -> None:
        """Take note of clients that are sent everything and asked again."""
        self.resent = tuple(client_keys)
        log(INFO, "\tClients %s are sent everything and asked again", self.resent)

    def describe(self, outcome: StageOutcome, spec: PermutationSpec, weighted_by_key: str) -> None:
        """Take note of what was matched, and say it and how the head was averaged in the log."""
        self.identity, self.similarity = outcome.identity_share, outcome.similarity
        for group, matching in outcome.matchings.items():
            held = torch.as_tensor(matching.popularity)
            self.popularity[group] = torch.bincount(held, minlength=self.cohort + 1)[1:].tolist()
            self.objective[group] = float(matching.objective)
            if matching.settled:
                self._settle(group, matching.settled)
            log(
                INFO,
                "\tRound %s, stage %s: %s matched, %s -> %s units, identity for %.0f %% of clients",
                self.round,
                self.stage,
                group,
                spec.groups[group].size,
                len(matching.popularity),
                100 * outcome.identity_shares[group],
            )
        if self.stage == self.stages - 1:
            how = "averaged by class counts" if outcome.head_by_class else "solved from moments"
            if not outcome.head_by_class and not outcome.head_solved:
                how = f"averaged by {weighted_by_key!r}"
            log(INFO, "\tRound %s: the head was %s", self.round, how)

    def _settle(self, group: str, updates: int) -> None:
        """Take note of a group whose assignments are not proven the best."""
        self.settled[group] = updates
        log(
            WARNING,
            "\tRound %s, stage %s: %s took more work than `effort` allows (too many units want "
            "the same places): %s of its assignments are not proven the best",
            self.round,
            self.stage,
            group,
            updates,
        )

    def to_json(self) -> dict[str, Any]:
        """The record as an object of plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> ExchangeRecord:
        """Read what `to_json` made (JSON knows no tuples)."""
        lists = {name: tuple(entry.get(name, ())) for name in ("groups", "resent", "took_part")}
        return cls(**{**entry, **lists})


OnExchange = Callable[[ExchangeRecord], None]


@dataclass
class History:
    """All exchanges of a run.

    Parameters
    ----------
    on_exchange : callable, optional
        Called with each record as soon as it is complete.
    exchanges : list of ExchangeRecord
        In the order in which they ended.
    given_up : dict of int to str
        Why a round was given up, by round; the global model stayed what it was.
    details : bool (default: False)
        Whether records get what only a report shows: a few filters, and the head's scores.
    progress : Progress
        Says how far the run is.
    """

    on_exchange: OnExchange | None = None
    exchanges: list[ExchangeRecord] = field(default_factory=list)
    given_up: dict[int, str] = field(default_factory=dict)
    details: bool = False
    progress: Progress = field(default_factory=Progress, compare=False)

    def add(self, record: ExchangeRecord) -> None:
        """Append a complete record, and say in the log how far the run is."""
        self.exchanges.append(record)
        self.progress.add(record)
        if self.on_exchange is not None:
            self.on_exchange(record)

    def give_up(self, server_round: int, reason: str) -> None:
        """Take note of a round that is given up, and say it in the log."""
        reason = reading.plain(reason)
        self.given_up[server_round] = reason
        log(
            WARNING,
            "Round %s is given up: %s. The global model stays what it was.",
            server_round,
            reason,
        )

    def conclude(self, server_round: int) -> None:
        """Say in the log if a round's matching has found nothing but the identity."""
        shares = [record.identity for record in self if record.round == server_round]
        matched = [share for share in shares if share is not None]
        if matched and min(matched) == 1.0:
            log(
                INFO,
                "Round %s: every assignment was the identity: matching changed nothing, as usual "
                "from a common initialisation.",
                server_round,
            )

    def __iter__(self) -> Iterator[ExchangeRecord]:
        return iter(self.exchanges)

    def totals(self) -> dict[str, float]:
        """Cumulative counters: bytes up and down, exchanges (without hellos), client epochs."""
        return {
            "bytes_up": sum(record.bytes_up for record in self),
            "bytes_down": sum(record.bytes_down for record in self),
            "exchanges": sum(record.name != HELLO for record in self),
            "client_epochs": sum(record.epochs for record in self),
        }


def mean_epochs(metrics: Iterable[Mapping[str, Any]]) -> float:
    """Mean of the metric ``epochs`` over the clients that report a sensible one; 0 if none does."""
    epochs = [entry.get(protocol.EPOCHS_KEY) for entry in metrics]
    known = [float(e) for e in epochs if isinstance(e, (int, float)) and 0 <= e <= _MOST_EPOCHS]
    return sum(known) / len(known) if known else 0.0


def all_failed(server_round: int, stage: str, dropped: dict[str, str]) -> str:
    """The reason that most clients of a failed stage gave."""
    if not dropped:
        return f"Round {server_round}: no client replied in the {stage} stage."
    reason, count = Counter(dropped.values()).most_common(1)[0]
    return (
        f"Round {server_round}: every client failed in the {stage} stage. "
        f"{count} of {len(dropped)} said: {reason}"
    )
