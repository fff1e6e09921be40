"""An argument that a strategy does not have is refused with the name of the right one."""

import inspect

import flwr.server.strategy
import flwr.serverapp.strategy
import pytest

from fedma_flwr import FedAvg, FedMA, FedProx
from fedma_flwr.server.argument_names import ELSEWHERE, RENAMED, arguments_of
from tests.toy import SPEC


@pytest.mark.parametrize(
    ("strategy", "name", "said"),
    [
        (FedMA, "max_grow", "did you mean `max_growth`"),
        (FedMA, "head_fractions", "did you mean `head_fraction`"),
        (FedMA.paper, "wieghted_units", "did you mean `weighted_units`"),
        (FedMA, "fraction-train", "did you mean `fraction_train`"),
        (FedMA, "min_fit_clients", "it is `min_train_nodes` here"),
        (FedAvg, "fraction_fit", "it is `fraction_train` here"),
        (FedProx, "evaluate_metrics_aggregation_fn", "it is `evaluate_metrics_aggr_fn` here"),
        (FedProx, "mu", "it is `proximal_mu` here"),
        (FedMA, "proximal_mu", "proximal_term"),
        (FedAvg, "proximal_mu", "FedProx"),
        (FedMA, "on_fit_config_fn", "train_config=ConfigRecord"),
        (FedMA, "evaluate_fn", "argument of `start`"),
        (FedMA, "initial_parameters", r"initial_arrays=ArrayRecord\(model.state_dict\(\)\)"),
        (FedAvg, "matcher", "argument of FedMA only"),
        (FedMA, "xyzzy", "there are .*averaging.*weighted_units"),
    ],
)
def test_the_right_name_is_said(strategy, name, said):
    options = {} if strategy in (FedAvg, FedProx) else {"spec": SPEC}
    with pytest.raises(TypeError, match=f"has no such argument: '{name}': .*{said}"):
        strategy(**options, **{name: 1})


def test_all_wrong_names_are_said_at_once():
    with pytest.raises(TypeError, match=r"arguments: 'fraction_fit': .*; 'max_grow': "):
        FedMA(spec=SPEC, fraction_fit=1.0, max_grow=1.0)


def test_a_subclass_may_have_arguments_of_its_own_and_they_are_known():
    class Mine(FedMA):
        def __init__(self, *, patience=3, **others):
            super().__init__(**others)
            self.patience = patience

    assert Mine(spec=SPEC, patience=5).patience == 5
    with pytest.raises(TypeError, match=r"Mine has no such argument: .*`patience`"):
        Mine(spec=SPEC, patiense=5)


def flower_arguments():
    """The arguments of all strategies that Flower has, of both kinds."""
    for module in (flwr.server.strategy, flwr.serverapp.strategy):
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if name.startswith("Fed") and not name.startswith(("FedXgb", "FedAvgAndroid")):
                for parameter in inspect.signature(cls).parameters.values():
                    if parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not (
                        parameter.empty
                    ):
                        yield parameter.name


def test_nothing_that_flowers_strategies_take_is_left_without_an_answer():
    known = arguments_of(FedMA) | RENAMED.keys() | ELSEWHERE.keys()
    assert set(flower_arguments()) <= known
    assert set(RENAMED.values()) <= arguments_of(FedMA) | arguments_of(FedProx)
