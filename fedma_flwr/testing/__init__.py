"""For tests of apps that use FedMA: Flower's side of a run in one process, without its programs."""

from fedma_flwr.testing.in_process_grid import (
    FIRST_NODE_ID,
    InProcessGrid,
    Intercept,
    SilentError,
)

__all__ = ["FIRST_NODE_ID", "InProcessGrid", "Intercept", "SilentError"]
