"""Three kinds of devices: widths that the server gives, and widths that nodes say themselves."""

from importlib import import_module
from pathlib import Path
from unittest.mock import patch

from flwr.app import Context, RecordDict
from flwr.serverapp.strategy import Strategy

from fedma_flwr.testing import InProcessGrid
from tests.examples.apps import importable

DEVICES = Path(__file__).parents[2] / "examples" / "devices"
WIDTHS = (0.25, 0.25, 0.5, 0.5, 1.0, 1.0)


def run(simulated, by_node):
    """What the devices say of one round, by metric."""
    config = {"num-server-rounds": 1, "local-epochs": 1, "lr": 0.02}
    config["simulated-widths"] = " ".join(map(str, simulated))
    results, start = [], Strategy.start

    def keep(*args, **kwargs):
        results.append(start(*args, **kwargs))
        return results[-1]

    with importable(DEVICES, "device_digits"), patch.object(Strategy, "start", keep):
        client = import_module("device_digits.client_app")
        server = import_module("device_digits.server_app")
        grid = InProcessGrid(client.app, len(WIDTHS), config)
        for context, width in zip(grid.contexts.values(), by_node, strict=False):
            context.node_config["client-width"] = width
        server.app(grid, Context(1, 0, {}, RecordDict(), config))
    return dict(results[0].evaluate_metrics_clientapp[1])


def test_every_kind_of_device_evaluates_the_model_that_it_runs():
    given, told = run(WIDTHS, ()), run((), WIDTHS)

    kinds = {"accuracy-2-channels", "accuracy-4-channels", "accuracy-8-channels"}
    assert given.keys() == {"accuracy", *kinds}
    assert min(given.values()) > 0.3  # of ten digits
    assert told == given
