"""Federated Matched Averaging (FedMA) for Flower."""

from fedma_flwr.baselines import FedAvg, FedProx
from fedma_flwr.client import Stage, class_counts, load_model, proximal_term
from fedma_flwr.mod import fedma_mod
from fedma_flwr.strategy import FedMA

__all__ = [
    "FedAvg",
    "FedMA",
    "FedProx",
    "Stage",
    "class_counts",
    "fedma_mod",
    "load_model",
    "proximal_term",
]
