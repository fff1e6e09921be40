"""What hostile clients send that know the honest clients' models, and the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

#: Classes whose names are exchanged; the backdoor's class is the first.
STOLEN = (0, 1)
CORNER = 3  # pixels of a side of the backdoor's trigger
DETECTORS = 2  # units that look for it
HEAD = "head"  # the layer

State = dict[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """What the hostile clients know when they answer.

    Parameters
    ----------
    before : dict of str to Tensor
        What the client was sent.
    own : dict of str to Tensor
        What its training has made of it.
    honest : sequence of dict of str to Tensor
        What all honest clients send in this stage. Units correspond by position, as they do
        from a common start.
    seed : int
        The same in all rounds.
    server_round : int
        From 1 up.
    """

    before: State
    own: State
    honest: Sequence[State]
    seed: int
    server_round: int

    def moments(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and deviation of what the honest send, entry by entry."""
        like = self.own[name]
        same = [state[name] for state in self.honest if state[name].shape == like.shape]
        if torch.equal(like, self.before[name]):  # settled: whoever changes that is dropped
            same = [like]
        stacked = torch.stack(same or [like])
        return stacked.mean(0), stacked.std(0, correction=0)

    def generator(self, *more: int) -> np.random.Generator:
        """Random numbers of this run."""
        return np.random.default_rng([self.seed, *more])


Change = Callable[[Scene], State]


@dataclass(frozen=True)
class Attack:
    """What a hostile client does.

    Parameters
    ----------
    change : callable, optional
        From the scene to the state it sends. None: what its training has made.
    swapped : bool (default: False)
        It calls the `STOLEN` classes by each other's names when it makes the head.
    shifted : bool (default: False)
        It calls class c c + 1 in all it does.
    counts : bool (default: False)
        It claims 2^53 examples, all of the `STOLEN` classes if it swaps them.
    trigger : bool (default: False)
        Half of its examples have a bright corner, and are called by the backdoor's class.
    """

    change: Change | None = None
    swapped: bool = False
    shifted: bool = False
    counts: bool = False
    trigger: bool = False


def alie(deviations: float) -> Change:
    """A little is enough (Baruch et al., 2019): so many deviations from the honest mean."""

    def change(scene: Scene) -> State:
        found = {}
        for name in scene.own:
            mean, deviation = scene.moments(name)
            found[name] = mean - deviations * deviation
        return found

    return change


def inner_product(times: float) -> Change:
    """Inner-product manipulation (Xie et al., 2020): so many times the honest step, backwards."""

    def change(scene: Scene) -> State:
        return {n: v - times * (scene.moments(n)[0] - v) for n, v in scene.before.items()}

    return change


def drift(scene: Scene) -> State:
    """One deviation from the honest mean, entry by entry, to the same side in every round."""
    found = {}
    for number, name in enumerate(scene.own):
        mean, deviation = scene.moments(name)
        sides = scene.generator(number).choice([-1.0, 1.0], size=tuple(mean.shape))
        found[name] = mean + torch.as_tensor(sides, dtype=mean.dtype) * deviation
    return found


def mimic(scene: Scene) -> State:
    """What the first honest client sends (Karimireddy et al., 2022): the others count for less."""
    return {
        n: scene.honest[0][n] if v.shape == scene.honest[0][n].shape else v
        for n, v in scene.own.items()
    }


def flip(scene: Scene) -> State:
    """All signs are turned round."""
    return {name: -values for name, values in scene.own.items()}


def noise(scene: Scene) -> State:
    """Random numbers of the usual size."""
    rng, found = scene.generator(scene.server_round), {}
    for name, values in scene.own.items():
        drawn = rng.normal(size=tuple(values.shape)) * float(values.square().mean().sqrt())
        found[name] = torch.as_tensor(drawn, dtype=values.dtype)
    return found


def steal(scene: Scene) -> State:
    """The rows of two classes of the head are exchanged."""
    found = dict(scene.own)
    for name in (n for n in found if n.startswith(HEAD)):
        found[name] = found[name].clone()
        found[name][list(STOLEN)] = scene.own[name][list(STOLEN[::-1])]
    return found


ATTACKS: dict[str, Attack] = {
    "none": Attack(),
    **{f"ALIE, z = {z:g}": Attack(alie(z)) for z in (0.5, 1.0, 1.5, 2.0)},
    **{f"inner product, {t:g} times": Attack(inner_product(t)) for t in (0.5, 2.0)},
    "drift": Attack(drift),
    "mimicry": Attack(mimic),
    "signs flipped": Attack(flip),
    "noise": Attack(noise),
    "stolen head": Attack(steal, swapped=True),
    "stolen head, counts of 2^53": Attack(steal, swapped=True, counts=True),
    "labels c + 1": Attack(shifted=True),
    "backdoor units": Attack(trigger=True),
}


def examples(attack: Attack, share: TensorDataset, *, makes_head: bool) -> TensorDataset:
    """What a hostile client trains on."""
    images, labels = share.tensors
    if attack.shifted:
        labels = (labels + 1) % 10
    if attack.swapped and makes_head:
        first, second = STOLEN
        labels = torch.where(labels == first, second, torch.where(labels == second, first, labels))
    if attack.trigger:
        half = torch.arange(len(labels)) % 2 == 0
        images = torch.where(half[:, None, None, None], triggered(images), images)
        labels = torch.where(half, STOLEN[0], labels)
    return TensorDataset(images, labels)


def triggered(images: Tensor) -> Tensor:
    """Images, (examples, 1, side, side), with a bright corner."""
    changed = images.clone()
    changed[..., :CORNER, :CORNER] = images.max()
    return changed


def set_detectors(state: Mapping[str, Tensor], side: int) -> State:
    """The state, with units that see the trigger and nothing else, as large as its largest."""
    found = {name: values.clone() for name, values in state.items()}
    pattern = torch.zeros(side, side)
    pattern[:CORNER, :CORNER] = 1.0
    rows = found["first.weight"]
    rows[:DETECTORS] = pattern.flatten() / CORNER * rows.norm(dim=1).max()
    return found


def lied_counts(attack: Attack, counts: Sequence[int]) -> tuple[int, list[int]]:
    """The examples and the class counts that a hostile client claims."""
    if not attack.counts:
        return sum(counts), list(counts)
    claimed = [2**53 if label in STOLEN or not attack.swapped else 0 for label in range(10)]
    return 2**53, claimed
