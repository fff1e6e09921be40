"""Every argument at its limits, just beyond them, and of a type that has none."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedma_flwr import FedAvg, FedMA, FedProx
from fedma_flwr.averaging import AVERAGES, Averaging, Limits
from fedma_flwr.matching import BBPMAP
from fedma_flwr.server import arguments
from fedma_flwr.server.arguments import check_arguments, check_output
from fedma_flwr.server.cohort import SeededCohort
from fedma_flwr.server.recorded_cohort import RecordedCohort
from fedma_flwr.server.resuming import ResumableCohort
from fedma_flwr.server.width_selection import WIDTH_SELECTIONS
from fedma_flwr.structure import PermutationSpec, UnsupportedModelError
from tests.toy import SPEC, LayerwiseFedMA, Net

TINY = 5e-324
BELOW_1, ABOVE_1 = math.nextafter(1.0, 0.0), math.nextafter(1.0, 2.0)
BELOW_HALF = math.nextafter(0.5, 0.0)
NAN, INFINITE = math.nan, math.inf
SHARE = ([0, 0.0, 0.5, 1, 1.0], [-TINY, ABOVE_1, NAN, INFINITE, "abc", None, []])
CLIENTS = ([1, 2, 10**9], [0, -1, BELOW_1, NAN, "abc", None])
FLAG = ([True, False, np.bool_(True)], ["no", "", "abc", 0, 1, None, []])
FOLDER = (["abc", Path("abc"), None], [5, 2.5, True, b"abc", [], ["abc"]])
CONFIG = (
    [None, {}, {"lr": 0.1, "names": ["a"], "yes": True}, ConfigRecord({"local-epochs": 5})],
    ["abc", "", 3, True, [], [("lr", 0.1)], {3: 0.1}, {"lr": None}, {"lr": {}}],
)
KEY = (["abc", ""], [3, None, b"abc", [], ["abc"]])
FUNCTION = ([None, print, len], ["abc", 3, True, [], [print]])
ONE_OR_MORE = ([1, 1.0, ABOVE_1, INFINITE], [BELOW_1, 0, -1, NAN, "abc"])

#: What is allowed, and what is not.
LIMITS = {
    "fraction_train": SHARE,
    "fraction_evaluate": SHARE,
    "head_fraction": SHARE,
    "head_memory": ([0, 1, 10**6], [-1, 1.5, NAN, "abc", None]),
    "min_train_nodes": CLIENTS,
    "min_evaluate_nodes": CLIENTS,
    "min_available_nodes": CLIENTS,
    "num_rounds": ([1, 2, 10**6], [0, -1, NAN, "abc", None]),
    "seed": ([0, 1, 2**40], [-1, NAN, "abc", None]),
    "node_timeout": ([TINY, 1, INFINITE], [0, -TINY, NAN, "abc", None]),
    "hello_timeout": ([TINY, 1, INFINITE], [0, -TINY, NAN, "abc", None]),
    "quorum": ([TINY, 0.5, 1], [0, -TINY, ABOVE_1, NAN, "abc", None]),
    "stage_timeout": ([None, TINY, 1, INFINITE], [0, 0.0, -TINY, NAN, "abc"]),
    "proximal_mu": ([0, 0.0, TINY, 1e300], [-TINY, INFINITE, NAN, "abc", None]),
    "initialisation": (["common", "own"], ["Common", "", "abc", None, 1]),
    "head": (["trained", "solved"], ["Solved", "", "abc", None, 0]),
    "head_start": (["auto", "averaged", "solved"], ["Solved", "", "abc", None, 0]),
    "personal": ([(), ("a.*",), ["c.bias"]], ["a.*", (3,), ("",), None, 3]),
    "own_growth": ([1, 1.0, ABOVE_1, 1e300], [BELOW_1, 0, INFINITE, NAN, "abc", None]),
    "max_growth": ([1, 1.0, ABOVE_1, 1e300], [BELOW_1, 0, INFINITE, NAN, "abc", None]),
    "server_learning_rate": ([TINY, 0.5, 1, 1.0], [0, 0.0, -TINY, ABOVE_1, NAN, "abc", None]),
    "averaging": ([*AVERAGES], ["Mean", "", "abc", None, 0]),
    "trimmed_share": ([0, 0.0, TINY, BELOW_HALF], [0.5, -TINY, 1, NAN, "abc", None]),
    "max_norm_ratio": (ONE_OR_MORE[0], [*ONE_OR_MORE[1], None]),
    "max_weight_ratio": ([*ONE_OR_MORE[0], None], ONE_OR_MORE[1]),
    "wire_dtype": (["float32", "float16", "bfloat16"], ["float64", "", "abc", None, 16]),
    "one_shot": FLAG,
    "reestimate_statistics": FLAG,
    "weighted_units": FLAG,
    "resume": FLAG,
    "registered_nodes": FLAG,
    "client_widths": (
        [None, {}, {"7": 0.25, "8": 1}, {"a": TINY}],
        [{"7": 0}, {"7": -0.5}, {"7": ABOVE_1}, {"7": NAN}, {"7": "1"}, {7: 0.5}, {"7": True}, 0.5],
    ),
    "width": ([TINY, 0.25, 1, 1.0], [0, -TINY, ABOVE_1, NAN, "abc", None]),
    "width_selection": ([*WIDTH_SELECTIONS], ["First", "", "abc", None, 0]),
    "checkpoint_dir": FOLDER,
    "matchings": FOLDER,
    "spec_cache": FOLDER,
    "spill_dir": FOLDER,
    "output_dir": FOLDER,
    "retrain_config": CONFIG,
    "head_config": CONFIG,
    "weighted_by_key": KEY,
    "arrayrecord_key": KEY,
    "configrecord_key": KEY,
    "on_exchange": FUNCTION,
    "train_metrics_aggr_fn": FUNCTION,
    "evaluate_metrics_aggr_fn": FUNCTION,
}
#: How one is given to the strategy that has it.
GIVE = {
    "num_rounds": lambda value: FedAvg().start(None, None, num_rounds=value),
    "proximal_mu": lambda value: FedProx(proximal_mu=value),
    "width": lambda value: arguments.check_arguments({"width": value}),
}


#: Values of the types that arguments without a rule may have.
RIGHT = {"example_inputs": [[]], "matcher": [None], "groups_per_stage": [3, "all"]}


def wrong_types():
    """Every argument of `FedMA`, with values of types that it may not have."""
    classes = (FedMA, RecordedCohort, ResumableCohort, SeededCohort, FlowerFedAvg)
    given = [p for c in classes for p in inspect.signature(c.__init__).parameters.values()]
    names = {p.name for p in given if p.kind == p.KEYWORD_ONLY or p.default != p.empty}
    assert names > LIMITS.keys() - GIVE.keys()
    for name in sorted(names):
        allowed = LIMITS[name][0] if name in LIMITS else RIGHT.get(name, [])
        for value in ("abc", 3, None, [1], np.zeros(2)):
            if type(value) not in {type(other) for other in allowed}:
                yield name, value


def test_every_rule_is_here():
    assert arguments._RULES.keys() == LIMITS.keys()


@pytest.mark.parametrize("name", LIMITS)
def test_what_lies_within_passes(name):
    for value in LIMITS[name][0]:
        check_arguments({name: value})


@pytest.mark.parametrize("name", LIMITS)
def test_what_lies_beyond_is_refused_with_its_name(name):
    for value in LIMITS[name][1]:
        with pytest.raises(ValueError, match=f"^{name} was .*; it must|^{name} was .*; at least"):
            check_arguments({name: value})


@pytest.mark.parametrize("name", LIMITS)
def test_the_strategies_ask(name):
    """No rule is checked here alone."""
    give = GIVE.get(name, lambda value: LayerwiseFedMA(spec=SPEC, **{name: value}))
    with pytest.raises(ValueError, match=f"^{name} was "):
        give(LIMITS[name][1][0])


@pytest.mark.parametrize("make", [FedAvg, FedProx, lambda **o: LayerwiseFedMA(spec=SPEC, **o)])
@pytest.mark.parametrize("name", ["seed", "node_timeout", "stage_timeout", "fraction_train"])
def test_all_strategies_ask_about_what_they_share(make, name):
    with pytest.raises(ValueError, match=f"^{name} was -1;"):
        make(**{name: -1})


def test_defaults_are_what_the_documentation_says():
    """And what they were: a run that names none must stay what it is."""
    strategy = LayerwiseFedMA(spec=SPEC)
    settings = strategy.settings
    assert settings.matcher == BBPMAP(gamma=1.0, local_variance=1.0, prior_variance=1.0)
    assert len(settings.plan) == 3
    assert settings.config_overrides == {"retrain": {}, "head": {}}
    assert settings.averaging == Averaging("mean", 0.2)
    assert settings.limits == Limits(10.0, 10.0) == Limits()
    assert {
        name: getattr(settings, name)
        for name in (
            "initialisation",
            "max_growth",
            "weighted_units",
            "server_learning_rate",
            "wire_dtype",
            "seed",
            "solver",
        )
    } == {
        "initialisation": "common",
        "max_growth": 2.0,
        "weighted_units": False,
        "server_learning_rate": 1.0,
        "wire_dtype": "float32",
        "seed": 0,
        "solver": None,
    }
    for each in (strategy, FedAvg(), FedProx()):
        assert (each.seed, each.node_timeout, each.stage_timeout) == (0, 600.0, None)
        assert (each.checkpoint_dir, each.resume, each.on_exchange) == (None, False, None)
    assert FedProx().proximal_mu == 0.001
    assert (FedMA.needs_mod, FedAvg.needs_mod) == (True, False)


def test_statistics_are_estimated_anew_unless_told_otherwise():
    axes = {"a": "h, 1", "n.running_mean": "h", "c": "2, h"}
    spec = PermutationSpec({"h": 2}, axes, statistics=["n.running_mean"])
    assert LayerwiseFedMA(spec=spec).settings.plan[1].estimates == ("n.running_mean",)
    kept = LayerwiseFedMA(spec=spec, reestimate_statistics=False).settings.plan
    assert all(stage.estimates == () for stage in kept)


def test_a_name_without_a_rule_is_passed_over_and_those_after_it_are_not():
    check_arguments({"matcher": object()})
    with pytest.raises(ValueError, match=r"^seed was -1;"):
        check_arguments({"matcher": object(), "seed": -1})


@pytest.mark.parametrize(("name", "value"), wrong_types())
def test_every_argument_of_a_wrong_type_is_refused_with_its_name(name, value):
    model = {"model": Net(), "example_inputs": (torch.zeros(1, 2),)}
    others = model if name in model else {} if name == "spec" else {"spec": SPEC}
    with pytest.raises(ValueError, match=f"^{name} |`{name}`"):
        LayerwiseFedMA(**{**others, name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("model", "abc"), ("model", Net), ("example_inputs", 3)]
)
@pytest.mark.parametrize("spec", [None, SPEC])
def test_what_is_no_model_is_refused_whether_its_spec_is_given_or_not(name, value, spec):
    model = {"model": Net(), "example_inputs": (torch.zeros(1, 2),)}
    with pytest.raises(UnsupportedModelError, match=f"^{name} must be"):
        LayerwiseFedMA(spec=spec, **{**model, name: value})


POSTERIOR = BBPMAP.reference()
MEAN = BBPMAP.reference(output="mean")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weighted_units": True}, "weighted_units was True"),
        ({"averaging": "median"}, "averaging was 'median'"),
        ({"matchings": "folder"}, "matchings was 'folder'"),
    ],
)
def test_what_does_not_go_with_posterior_means_is_refused_one_by_one(options, said):
    plain = {"weighted_units": False, "averaging": "mean", "matchings": None}
    check_output(POSTERIOR, **plain)
    check_output(MEAN, **{**plain, **options})
    with pytest.raises(ValueError, match=said):
        check_output(POSTERIOR, **{**plain, **options})


@pytest.mark.parametrize(
    ("later", "named"),
    [
        ({"groups_per_stage": 2}, "groups_per_stage"),
        ({"retrain_config": {"lr": 0.1}}, "retrain_config"),
        ({"head_config": {"lr": 0.1}}, "head_config"),
        ({"head": "solved"}, "head='solved'"),
        (
            {"retrain_config": {"lr": 1.0}, "head_config": {"lr": 1.0}},
            "retrain_config, head_config",
        ),
    ],
)
def test_one_shot_has_no_later_stages_to_configure(later, named):
    with pytest.raises(ValueError, match=f"so that {named} would have no effect"):
        LayerwiseFedMA(spec=SPEC, one_shot=True, **later)
    LayerwiseFedMA(
        spec=SPEC, one_shot=True, groups_per_stage=1, retrain_config={}, head_config=None
    )


@pytest.mark.parametrize(
    ("averaging", "given", "ratio"),
    [
        ("mean", None, 10.0),
        ("median", None, 1.0),
        ("trimmed_mean", None, 1.0),
        ("centred_clipping", None, 1.0),
        ("mean", 3.0, 3.0),
        ("median", 3.0, 3.0),
    ],
)
def test_how_much_a_client_weighs_at_most_depends_on_the_average(averaging, given, ratio):
    strategy = LayerwiseFedMA(spec=SPEC, averaging=averaging, max_weight_ratio=given)
    assert strategy.settings.limits.max_weight_ratio == ratio
    assert strategy.settings.limits.max_norm_ratio == 10.0
