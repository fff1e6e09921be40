"""What the tests of the simulations share."""

import pytest


@pytest.fixture
def make_run():
    """Return a function that makes one entry of `runs` of results.json."""

    def make(strategy, accuracies, exchanges_a_round=1):
        rounds = [
            {
                "round": number,
                "given-up": None,
                "accuracy": accuracy,
                "loss": 1.0 - accuracy,
                "bytes_up": number * 17_250_000,
                "bytes_down": number * 17_300_000,
                "exchanges": number * exchanges_a_round,
                "client_epochs": 20.0 * number,
                "seconds": 12.3 * number,
                "widths": {"conv1": 20, "conv2": 50, "fc1": 500},
                "growth": 1.0,
            }
            for number, accuracy in enumerate(accuracies, start=1)
        ]
        config = {"partition": "dirichlet", "alpha": 0.1}
        return {
            "strategy": strategy,
            "task": "mnist",
            "seed": 0,
            "config": config,
            "rounds": rounds,
        }

    return make
