"""The effect of the number of clients, each with equally much data.

``python -m simulations.clients --config simulations/configs/clients_small.toml``
(Wang et al., 2020, section 5: 5,000 data points a client.) The data are cut into
`num-partitions` parts, of which the clients take the first.
"""

import sys

from simulations.experiment import Experiment, main
from simulations.plan import Plan, Setting, setting
from simulations.summary import plot_against


def settings(plan: Plan) -> list[Setting]:
    """One setting for each number of clients and each method."""
    return [
        setting(plan, method, f"{number} clients", clients=number, x=number)
        for number in plan.options["numbers"]
        for method in plan.methods
    ]


EXPERIMENT = Experiment(
    "clients",
    "The effect of the number of clients",
    settings,
    plot_against("clients"),
    {"numbers": [5, 10, 15, 20]},
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
