"""What `interpretability.ipynb` computes and draws: units of two clients, matched and averaged.

Wang et al., ICLR 2020 (arXiv 2002.06440), section 3, "interpretability": matched filters react
alike to the same picture and so does their average, while the average of unmatched filters reacts
like none of its parts.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fedma_flwr import load_model
from fedma_flwr.averaging import ClientUpdate, settle_stage
from fedma_flwr.matching import Matcher
from fedma_flwr.structure import PermutationSpec, StagePlan
from fedma_flwr.tasks import get_task, partition

TASK = get_task("mnist")
MAX_GROWTH = 2
DPI = 80


@dataclass(frozen=True)
class Setting:
    """Who trains on what, and for how long.

    Parameters
    ----------
    examples : int (default: 4000)
        Training digits that the clients share, at most 4,000.
    epochs : int (default: 10)
        Of each client's training.
    alpha : float (default: 0.5)
        Of the Dirichlet distribution by which the classes are shared.
    seed : int (default: 0)
        Of the shares, of the clients' own first weights and of the shuffling.
    clients : int (default: 2)
        Number of clients.
    """

    examples: int = 4000
    epochs: int = 10
    alpha: float = 0.5
    seed: int = 0
    clients: int = 2


def new_model(seed: int = 0) -> nn.Module:
    """An untrained LeNet."""
    return TASK.build_model({"model": ""}, seed)


def load_state(state: Mapping[str, Tensor]) -> nn.Module:
    """A LeNet with the widths and the weights of a state dict, for evaluation."""
    return load_model(new_model(), dict(state)).eval()


def test_digits() -> TensorDataset:
    """The 1,000 digits that nobody trains on."""
    return TASK.load("embedded", "").test


def draw_shares(setting: Setting) -> list[TensorDataset]:
    """Share the training digits among the clients."""
    images, labels = TASK.load("embedded", "").train.tensors
    chosen = np.random.default_rng(setting.seed).permutation(len(labels))[: setting.examples]
    images, labels = images[chosen], labels[chosen]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a progress bar that is not used misses its widgets
        parts = partition.split(
            labels.numpy(),
            "dirichlet",
            setting.clients,
            alpha=setting.alpha,
            self_balancing=True,
            seed=setting.seed,
        )
    return [TensorDataset(images[part], labels[part]) for part in parts]


def train_clients(setting: Setting, shares: Sequence[TensorDataset]) -> list[nn.Module]:
    """Train a network on each share, every one from its own first weights."""
    models = []
    for client, share in enumerate(shares):
        seed = setting.clients * setting.seed + client
        model = new_model(seed)
        TASK.train(
            model,
            share,
            epochs=setting.epochs,
            lr=0.01,
            momentum=0.9,
            weight_decay=0.0,
            batch_size=32,
            seed=seed,
        )
        models.append(model.cpu().eval())
    return models


def accuracy(model: nn.Module) -> float:
    """Share of the test digits that a network gets right."""
    return TASK.evaluate(model, test_digits(), torch.device("cpu"))[1]


def plain_average(models: Sequence[nn.Module]) -> nn.Module:
    """The network whose unit i is the mean of the clients' units i."""
    states = [model.state_dict() for model in models]
    return load_state({name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]})


@dataclass(frozen=True)
class MatchedNetworks:
    """Several clients' networks with their units in one order, and their average.

    Parameters
    ----------
    clients : list of nn.Module
        They compute what the clients' own networks compute, but unit i of all of them is global
        unit i. A client that lacks a global unit has zeros there.
    average : nn.Module
        Every global unit is the mean over the clients that have it; the head is averaged by
        class counts. Nothing is trained any more.
    assignments : tuple of dict of str to Tensor
        For each client and group (n,) the global units of the client's units.
    shared : dict of str to list of int
        The global units that all clients have, by group.
    """

    clients: list[nn.Module]
    average: nn.Module
    assignments: tuple[dict[str, Tensor], ...]
    shared: dict[str, list[int]]


def match_clients(
    spec: PermutationSpec,
    models: Sequence[nn.Module],
    shares: Sequence[TensorDataset],
    matcher: Matcher,
) -> MatchedNetworks:
    """Match and average by the server's own code: all groups in forward order, one exchange."""
    states = [model.state_dict() for model in models]
    outcome = settle_stage(
        spec,
        StagePlan.one_shot(spec)[0],
        [_update(state, share.tensors[1]) for state, share in zip(states, shares, strict=True)],
        matched=frozenset(),
        matcher=matcher,
        max_widths={name: MAX_GROWTH * group.size for name, group in spec.groups.items()},
    )
    wide = [
        spec.expand(state, assignments, outcome.widths)
        for state, assignments in zip(states, outcome.assignments, strict=True)
    ]
    everybody = {
        group: np.flatnonzero(matching.popularity == len(models)).tolist()
        for group, matching in outcome.matchings.items()
    }
    matched, average = [load_state(state) for state in wide], load_state(outcome.tensors)
    return MatchedNetworks(matched, average, outcome.assignments, everybody)


def _update(state: dict[str, Tensor], labels: Tensor) -> ClientUpdate:
    counts = torch.bincount(labels, minlength=TASK.num_classes)
    return ClientUpdate(state, len(labels), counts)


@torch.no_grad()
def activations(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What a layer's units make of pictures, after the ReLU and before any pooling.

    Returns
    -------
    Tensor, shape (images, units, height, width) or (images, units)
    """
    kept: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: kept.append(output.relu())
    )
    model(images)
    hook.remove()
    return kept[0]


def correlations(left: Tensor, right: Tensor) -> Tensor:
    """Correlation of every unit's activations with every unit's, over all pictures and places.

    A unit that always gives the same has correlation 0 with all.

    Parameters
    ----------
    left, right : Tensor, shapes (images, units, ...)
        Two networks' activations for the same pictures.

    Returns
    -------
    Tensor, shape (units of left, units of right)
    """

    def standard(maps: Tensor) -> Tensor:
        rows = maps.transpose(0, 1).flatten(1).double()
        rows = rows - rows.mean(1, keepdim=True)
        return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)

    return standard(left) @ standard(right).T


def agreement(
    layer: str,
    models: Sequence[nn.Module],
    matched: MatchedNetworks,
    plain: nn.Module,
    images: Tensor,
) -> dict[str, float]:
    """Mean correlations of a layer's activations between two clients' units, and with averages.

    Returns
    -------
    dict of str to float
        Between clients in their own order, in the matched order (units that both have), and by
        the assignment that maximises this very number, which nobody can know who sees weights
        alone; of both clients' units with the matched average, and with the plain one.
    """
    own = [activations(model, layer, images) for model in models[:2]]
    same = [activations(model, layer, images) for model in matched.clients[:2]]
    both = matched.shared[layer]
    between = correlations(*own)
    rows, columns = linear_sum_assignment(-between.numpy())
    averaged, mixed = (activations(net, layer, images) for net in (matched.average, plain))
    return {
        "clients, own order": float(between.diagonal().mean()),
        "clients, matched": float(correlations(*same).diagonal()[both].mean()),
        "clients, best possible": float(between[rows, columns].mean()),
        "with matched average": _mean_diagonal(same, averaged, both),
        "with plain average": _mean_diagonal(own, mixed, range(own[0].shape[1])),
    }


def _mean_diagonal(clients: Sequence[Tensor], average: Tensor, units: Sequence[int]) -> float:
    found = [correlations(maps, average).diagonal()[list(units)].mean() for maps in clients]
    return float(torch.stack(found).mean())


class Picture(bytes):
    """A PNG that notebooks show."""

    def __repr__(self) -> str:
        return f"<picture of {len(self)} bytes>"

    def _repr_png_(self) -> bytes:
        return bytes(self)


def show(rows: Mapping[str, Sequence[Tensor]], titles: Sequence[str], *, signed: bool) -> Picture:
    """Draw small matrices in a grid.

    Parameters
    ----------
    rows : mapping of str to sequence of Tensor
        Label of a row and its matrices (height, width); one that is all zero is left blank.
    titles : sequence of str
        Of the columns.
    signed : bool
        Weights: red is positive, blue negative, white 0, each on its own scale. Otherwise
        activations, from black to yellow; the matrices of a column that share the beginning of
        their rows' labels, up to the colon, have one scale.
    """
    size = (0.55 * len(titles) + 1.6, 0.6 * len(rows) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, (label, matrices) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        for column, (axes, matrix) in enumerate(zip(line, matrices, strict=True)):
            axes.set(xticks=[], yticks=[])
            alike = [m[column] for name, m in rows.items() if _topic(name) == _topic(label)]
            top = max(float(m.abs().max()) for m in ([matrix] if signed else alike)) or 1.0
            colours = {"cmap": "RdBu_r", "vmin": -top} if signed else {"cmap": "inferno", "vmin": 0}
            if bool(matrix.any()) or not signed:
                axes.imshow(matrix.numpy(), vmax=top, **colours)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    return Picture(stream.getvalue())


def _topic(label: str) -> str:
    return label.split(":", maxsplit=1)[0]
