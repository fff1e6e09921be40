"""What FedMA is made with is checked before anything is sent."""

import pytest
import torch
from flwr.app import ArrayRecord

from fedma_flwr import FedAvg
from fedma_flwr.matching import BBPMAP
from fedma_flwr.structure import PermutationSpec, SpecError, UnsupportedModelError
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, Net, initial_arrays, make_app


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_growth": 0.5}, "max_growth"),
        ({"weighted_units": True, "matcher": BBPMAP.reference()}, "weighted_units"),
        ({"initialisation": "random"}, "initialisation"),
        ({"groups_per_stage": 0}, "groups_per_stage"),
        ({"groups_per_stage": "both"}, "groups_per_stage"),
        ({"fraction_train": 1.5}, "fraction_train"),
        ({"min_train_nodes": 0}, "min_train_nodes"),
        ({"seed": -1}, "seed"),
        ({"node_timeout": 0}, "node_timeout"),
        ({"stage_timeout": -3}, "stage_timeout"),
        ({"model": Net()}, "example_inputs"),
        ({"spec": PermutationSpec({}, {"a": "3, 2", "b": "3, 2"})}, "no groups"),
        ({"spec": None}, "spec"),
    ],
)
def test_bad_arguments_are_refused_at_construction(options, word):
    with pytest.raises(ValueError, match=word):
        LayerwiseFedMA(**{"spec": SPEC, **options})


def test_the_spec_is_derived_from_the_model_or_proven():
    inputs = (torch.zeros(2, 2),)
    derived = LayerwiseFedMA(model=Net(), example_inputs=inputs).settings.spec
    assert {name: group.size for name, group in derived.groups.items()} == {"a": 12, "b": 8}
    proven = LayerwiseFedMA(spec=SPEC, model=Net(), example_inputs=inputs).settings.spec
    assert proven.axes == SPEC.axes
    wrong = PermutationSpec(SPEC.groups, {**SPEC.axes, "b.weight": "b, 12", "c.weight": "2, 8"})
    with pytest.raises(SpecError):
        LayerwiseFedMA(spec=wrong, model=Net(), example_inputs=inputs)


def test_a_model_without_a_spec_is_refused():
    class Broken(Net):
        def forward(self, x):
            return super().forward(x.T)

    with pytest.raises(UnsupportedModelError):
        LayerwiseFedMA(model=Broken(), example_inputs=(torch.zeros(3, 2),))


def test_gamma_must_be_positive():
    with pytest.raises(ValueError, match="gamma"):
        BBPMAP(gamma=0.0)


def test_arrays_that_do_not_fit_the_spec_are_refused_before_the_first_exchange():
    log = []
    grid = InProcessGrid(make_app(), CLIENTS, intercept=lambda m, c: log.append(m))
    right = Net().state_dict()
    for wrong in ({**right, "b.bias": torch.zeros(9)}, {**right, "d": torch.zeros(9)}):
        with pytest.raises(SpecError, match=r"b\.bias|'d'"):
            LayerwiseFedMA(spec=SPEC).start(grid, ArrayRecord(wrong))
    with pytest.raises(SpecError, match="none of the model's tensors"):
        LayerwiseFedMA(spec=SPEC).start(grid, ArrayRecord({"d": torch.zeros(9)}))
    with pytest.raises(ValueError, match="num_rounds"):
        LayerwiseFedMA(spec=SPEC).start(grid, initial_arrays(), num_rounds=0)
    with pytest.raises(ValueError, match="num_rounds"):
        FedAvg().start(grid, initial_arrays(), num_rounds=0)
    assert log == []
