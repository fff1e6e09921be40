"""Moments of clients that are not asked: what they sent in one of the last rounds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fedma_flwr.averaging import ClientUpdate
from fedma_flwr.averaging.head_moments import HeadMoments


@dataclass(frozen=True)
class RememberedMoments:
    """What a client sent in a head stage.

    Parameters
    ----------
    round : int
        When.
    examples : float
        What it counts for.
    moments : HeadMoments
        Of the features of that round, in the global model's units.
    """

    round: int
    examples: float
    moments: HeadMoments

    def fits(self, size: tuple[int, int] | None) -> bool:
        """Whether they are of a head of so many inputs and outputs: no unit has come since."""
        return size == (self.moments.inputs, self.moments.outputs)


def stand_ins(
    remembered: Mapping[str, RememberedMoments],
    present: Collection[str],
    size: tuple[int, int] | None,
    *,
    values: bool = False,
) -> list[ClientUpdate]:
    """What stands in for clients that have sent no moments in this round.

    Parameters
    ----------
    remembered : mapping of str to RememberedMoments
        By client key.
    present : collection of str
        Keys of the clients that have sent theirs.
    size : (int, int) or None
        Inputs and outputs of the head now.
    values : bool (default: False)
        Whether targets are values now.
    """
    return [
        ClientUpdate({}, own.examples, moments=own.moments)
        for key, own in remembered.items()
        if key not in present and own.fits(size) and (own.moments.squares is not None) == values
    ]


def remember(
    before: Mapping[str, RememberedMoments],
    sent: Iterable[tuple[str, ClientUpdate]],
    *,
    server_round: int,
    memory: int,
) -> dict[str, RememberedMoments]:
    """What is remembered after a round: of each client its last moments, if they are new enough.

    Parameters
    ----------
    before : mapping of str to RememberedMoments
        What was remembered.
    sent : iterable of (str, ClientUpdate)
        Client keys, and what they sent in this round's head stage.
    server_round : int
        This round.
    memory : int
        How many rounds later moments may still be used; 0: none are kept.
    """
    own = {
        key: RememberedMoments(server_round, update.examples, update.moments)
        for key, update in sent
        if update.moments is not None
    }
    everything = {**before, **own}
    return {
        key: everything[key]
        for key in sorted(everything)
        if everything[key].round > server_round - memory
    }
