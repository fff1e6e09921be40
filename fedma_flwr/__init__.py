"""Federated Matched Averaging (FedMA) for Flower."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedma_flwr.baselines import FedAvg, FedProx
    from fedma_flwr.client import Stage, class_counts, load_model, proximal_term
    from fedma_flwr.client_moments import head_moments
    from fedma_flwr.client_privacy import keep_privacy, restore_privacy
    from fedma_flwr.client_private_moments import PrivateMoments, private_head_moments
    from fedma_flwr.client_units import follow_units
    from fedma_flwr.mod import fedma_mod
    from fedma_flwr.strategy import FedMA

try:
    __version__ = version("fedma-flwr")
except PackageNotFoundError:  # run from its source, as Flower runs the app's bundle
    __version__ = "0+unknown"

__all__ = [
    "FedAvg",
    "FedMA",
    "FedProx",
    "PrivateMoments",
    "Stage",
    "class_counts",
    "fedma_mod",
    "follow_units",
    "head_moments",
    "keep_privacy",
    "load_model",
    "private_head_moments",
    "proximal_term",
    "restore_privacy",
]

_HOMES = {
    "FedAvg": "baselines",
    "FedMA": "strategy",
    "FedProx": "baselines",
    "PrivateMoments": "client_private_moments",
    "Stage": "client",
    "class_counts": "client",
    "fedma_mod": "mod",
    "follow_units": "client_units",
    "head_moments": "client_moments",
    "keep_privacy": "client_privacy",
    "load_model": "client",
    "private_head_moments": "client_private_moments",
    "proximal_term": "client",
    "restore_privacy": "client_privacy",
}


def __getattr__(name: str) -> Any:
    # On demand, so that `fedma_flwr.matching` can be used by itself, without loading Flower.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fedma_flwr.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
