"""What all tests share."""

import logging
import os

import pytest
import torch
from hypothesis import settings

os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
)
# Tiny tensors: a second thread costs more than it gives, and much more on a busy machine.
torch.set_num_threads(1)
# No test is timed: how long one takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items):
    """Run the tests that start Flower's processes last: they are slow.

    One of several workers begins with them: last, they would keep it when all others are done.
    """
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    items.sort(key=lambda item: (item.get_closest_marker("flower") is not None) == alone)


@pytest.fixture(autouse=True)
def seeded():
    """Give every test the same random state of torch's."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def logged():
    """Give every test Flower's log as it is at first: the commands of `simulations` silence it."""
    logger = logging.getLogger("flwr")
    level = logger.level
    yield
    logger.setLevel(level)
