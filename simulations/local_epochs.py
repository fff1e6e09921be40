"""The effect of long local training, E from 1 to 150.

``python -m simulations.local_epochs --config simulations/configs/local_epochs_small.toml``
(Wang et al., 2020, section 5.2: FedMA gains with E, FedAvg and FedProx get worse past about 20.)
"""

import sys

from simulations.experiment import Experiment, main
from simulations.plan import Plan, Setting, setting
from simulations.summary import plot_against


def settings(plan: Plan) -> list[Setting]:
    """One setting for each number of local epochs and each method."""
    return [
        setting(plan, method, f"E = {epochs}", config={"local-epochs": epochs}, x=epochs)
        for epochs in plan.options["epochs"]
        for method in plan.methods
    ]


EXPERIMENT = Experiment(
    "local_epochs",
    "The effect of the number of local epochs",
    settings,
    plot_against("local epochs", logarithmic=True),
    {"epochs": [10, 20, 50, 70, 100, 150]},
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
