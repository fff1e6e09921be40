"""Colour as a bias: two clients, one of which sees five classes mostly in grey.

``python -m simulations.data_bias --config simulations/configs/data_bias_small.toml``
(Wang et al., 2020, section 5.3.)
"""

import sys

from simulations.experiment import Experiment, main
from simulations.plan import Plan, Setting, setting
from simulations.summary import plot_curves


def settings(plan: Plan) -> list[Setting]:
    """One setting a method; centralised training sees the union of both clients' pictures."""
    return [setting(plan, method) for method in plan.methods]


EXPERIMENT = Experiment("data_bias", "Data bias by colour", settings, plot_curves)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
