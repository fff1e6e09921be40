"""All methods on one task: accuracy against rounds, exchanges, bytes and client epochs.

``python -m simulations.compare --config simulations/configs/compare_mnist.toml``
"""

import sys

from simulations.experiment import Experiment, main
from simulations.plan import Plan, Setting, setting
from simulations.summary import plot_curves


def settings(plan: Plan) -> list[Setting]:
    """One setting a method."""
    return [setting(plan, method) for method in plan.methods]


EXPERIMENT = Experiment("compare", "Methods compared", settings, plot_curves)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
