"""Uploads in, settled tensors and head out: pure functions that know no Flower and no network."""

from fedma_flwr.averaging.averages import (
    AVERAGES,
    CENTRED_CLIPPING,
    MEAN,
    MEDIAN,
    TRIMMED_MEAN,
    Averaging,
)
from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.contradictions import contrary_moments
from fedma_flwr.averaging.head import HeadSolver
from fedma_flwr.averaging.head_moments import HeadMoments
from fedma_flwr.averaging.judging import judge
from fedma_flwr.averaging.limits import (
    LARGEST,
    LARGEST_INTEGER,
    Limits,
    bound_weights,
    oversized,
)
from fedma_flwr.averaging.moment_limits import oversized_moments
from fedma_flwr.averaging.outcome import StageOutcome
from fedma_flwr.averaging.server_step import RoundStart
from fedma_flwr.averaging.settle import settle_stage, solve_stage

__all__ = [
    "AVERAGES",
    "CENTRED_CLIPPING",
    "LARGEST",
    "LARGEST_INTEGER",
    "MEAN",
    "MEDIAN",
    "TRIMMED_MEAN",
    "Averaging",
    "ClientUpdate",
    "HeadMoments",
    "HeadSolver",
    "Limits",
    "RoundStart",
    "StageOutcome",
    "bound_weights",
    "contrary_moments",
    "judge",
    "oversized",
    "oversized_moments",
    "settle_stage",
    "solve_stage",
]
