"""What each part of FedMA is worth: one part changed at a time.

``python -m simulations.ablation --config simulations/configs/ablation_small.toml``
Made on a validation split, so that defaults can be chosen by it. Batch norm's statistics have a
comparison of their own, ``python -m simulations.batch_norm``.
"""

import sys
from typing import Any

from simulations.experiment import Experiment, main
from simulations.plan import Plan, Setting, setting
from simulations.summary import plot_dots

CALIBRATED = {"local-variance": 0.0, "prior-variance": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "identity: averaged layer by layer, not matched": {"matcher": "identity"},
    "identity: not matched": {"matcher": "identity"},
    "calibrated variances, BBPMAP()": CALIBRATED,
    "calibrated variances, gamma 0.1": {**CALIBRATED, "gamma": 0.1},
    "calibrated variances, no growth": {**CALIBRATED, "max-growth": 1.0},
    "gamma 7": {"gamma": 7.0},
    "reference: the paper's code": {"matcher": "reference", "gamma": 7.0, "output": "posterior"},
    "reference, mean of the members": {"matcher": "reference", "gamma": 7.0},
    "learned variances (SPAHM)": {"matcher": "learned", "gamma": 7.0, "output": "posterior"},
    "posterior instead of mean": {"output": "posterior"},
    "one group a stage, clients retrain": {"groups-per-stage": "1"},
    "two groups a stage": {"groups-per-stage": "2"},
    "all groups in one stage, then the head": {"groups-per-stage": "all"},
    "identity, all in one stage: the head stage alone": {
        "matcher": "identity",
        "groups-per-stage": "all",
    },
    "one-shot: no later stage": {"one-shot": True, "groups-per-stage": "1"},
    "retraining 10 epochs": {"retrain-epochs": 10},
    "retraining 20 epochs": {"retrain-epochs": 20},
    "the head at the other stages' rate": {"head-lr-factor": 1.0},
    "all groups in one stage, retraining 20 epochs": {
        "groups-per-stage": "all",
        "retrain-epochs": 20,
    },
    "units weighted by examples": {"weighted-units": True},
    "units weighted by examples, retraining 10 epochs": {
        "weighted-units": True,
        "retrain-epochs": 10,
    },
    "damped server steps, 0.5": {"server-learning-rate": 0.5},
}


def settings(plan: Plan) -> list[Setting]:
    """One setting for each initialisation and variant."""
    unknown = set(plan.options["variants"]) - set(VARIANTS)
    if unknown:
        raise ValueError(f"variants: unknown {sorted(unknown)}; known are {sorted(VARIANTS)}")
    return [
        setting(
            plan,
            "fedma",
            f"{start} start: {name}",
            config={**VARIANTS[name], "initialisation": start},
        )
        for start in plan.options["starts"]
        for name in plan.options["variants"]
    ]


EXPERIMENT = Experiment(
    "ablation",
    "One part changed at a time",
    settings,
    plot_dots,
    {"starts": ["own", "common"], "variants": list(VARIANTS)},
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
