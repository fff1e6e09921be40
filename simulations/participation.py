"""Partial participation: 20 clients, 40 % of them a round.

``python -m simulations.participation --config simulations/configs/participation_small.toml``
The setting in which FedDF (Lin et al., 2020, arXiv 2006.07242) reports FedMA behind FedAvg.
"""

import sys

from simulations.experiment import Experiment, main
from simulations.plan import Plan, Setting, setting
from simulations.summary import plot_curves


def settings(plan: Plan) -> list[Setting]:
    """One setting for each alpha and each method."""
    return [
        setting(plan, method, f"alpha {alpha:g}", config={"alpha": alpha})
        for alpha in plan.options["alphas"]
        for method in plan.methods
    ]


EXPERIMENT = Experiment(
    "participation",
    "Partial participation",
    settings,
    plot_curves,
    {"alphas": [0.1, 1.0]},
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
