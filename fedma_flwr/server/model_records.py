"""The global model as tensors and plain JSON types, for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedma_flwr.averaging.head import FIRST_SHARE
from fedma_flwr.averaging.head_moments import HeadMoments
from fedma_flwr.averaging.outcome import NarrowHead
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.remembered import RememberedMoments

_NARROW = ("units", "tensors", "local_head")  # of a `NarrowHead`
#: More tensors, by the fields that hold them.
_HEADS = "local_head", "trained_head", "best"


def encoded(model: GlobalModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model's tensors, each with memory of its own, and all else."""
    tensors = {f"model.{name}": tensor for name, tensor in model.tensors.items()}
    for kind in _HEADS:
        tensors.update({f"{kind}.{name}": t for name, t in getattr(model, kind).items()})
    # Client keys may be any text, so that tensors are named by the clients' numbers.
    for number, assignments in enumerate(model.assignments.values()):
        tensors.update({f"assignments.{number}.{g}": units for g, units in assignments.items()})
    for number, own in enumerate(model.remembered.values()):
        tensors.update({f"moments.{number}.{n}": t for n, t in own.moments.named().items()})
    tensors.update({f"popularity.{group}": held for group, held in model.popularity.items()})
    for number, head in enumerate(model.narrow):
        tensors.update(_named(f"narrow.{number}", head))
    # Clients with equal assignments share memory, which the format does not allow.
    alone = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    return alone, _content(model)


def _content(model: GlobalModel) -> dict[str, Any]:
    heads = {kind: list(getattr(model, kind)) for kind in _HEADS}
    remembered = {
        key: {"round": own.round, "examples": own.examples} for key, own in model.remembered.items()
    }
    return {
        "token": model.token,
        "tensors": list(model.tensors),
        "clients": {key: list(groups) for key, groups in model.assignments.items()},
        "popularity": list(model.popularity),
        **{kind: names for kind, names in heads.items() if names},
        **({"remembered": remembered} if remembered else {}),
        **({"narrow": len(model.narrow)} if model.narrow else {}),
        "reference_share": model.reference_share,
        "unexplained": model.unexplained,
        "fell": model.fell,
        **({"head_averaged": True} if model.head_averaged else {}),
    }


def decoded(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GlobalModel:
    """The model that `encoded` was given; what earlier versions did not write is as it begins."""
    heads = {
        kind: {name: tensors[f"{kind}.{name}"] for name in content.get(kind, [])} for kind in _HEADS
    }
    return GlobalModel(
        tensors={name: tensors[f"model.{name}"] for name in content["tensors"]},
        token=content["token"],
        assignments={
            key: {group: tensors[f"assignments.{number}.{group}"] for group in groups}
            for number, (key, groups) in enumerate(content["clients"].items())
        },
        popularity={group: tensors[f"popularity.{group}"] for group in content["popularity"]},
        remembered={
            key: RememberedMoments(**own, moments=HeadMoments.of(tensors, f"moments.{number}."))
            for number, (key, own) in enumerate(content.get("remembered", {}).items())
        },
        narrow=tuple(_narrow_head(tensors, n) for n in range(content.get("narrow", 0))),
        reference_share=content.get("reference_share", FIRST_SHARE),
        unexplained=content.get("unexplained", 1.0),
        fell=content.get("fell", False),
        head_averaged=content.get("head_averaged", False),
        **heads,
    )


def _named(prefix: str, head: NarrowHead) -> dict[str, Tensor]:
    """A narrow model's units and heads, by name."""
    return {
        f"{prefix}.{part}.{name}": tensor
        for part in _NARROW
        for name, tensor in getattr(head, part).items()
    }


def _narrow_head(tensors: Mapping[str, Tensor], number: int) -> NarrowHead:
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _NARROW}
    for part, found in parts.items():
        prefix = f"narrow.{number}.{part}."
        named = {n: tensor for n, tensor in tensors.items() if n.startswith(prefix)}
        found.update({n.removeprefix(prefix): tensor for n, tensor in named.items()})
    return NarrowHead(**parts)
