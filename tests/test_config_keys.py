"""Every config key that cannot be read, or whose value is not allowed, names itself."""

import pytest
from flwr.serverapp.exception import AggregationError

from fedma_flwr.client_app import app
from fedma_flwr.matching import BBPMAP
from fedma_flwr.server.output_folder import OutputFolder
from fedma_flwr.server_app import run
from fedma_flwr.strategy_from_config import PRESETS, make_strategy
from fedma_flwr.structure import SpecError
from fedma_flwr.tasks.config import (
    READERS,
    check_types,
    head_config,
    naming_keys,
    train_config,
)
from fedma_flwr.testing import InProcessGrid
from tests.tasks.configs import DEFAULTS, TINY
from tests.toy import SPEC

NAN, INFINITE = float("nan"), float("inf")
WRONG = {
    str: [3, 0.5, True],
    bool: ["true", 1, 0.0],
    int: ["abc", "3", 2.9, 3.0, True, NAN],
    float: ["abc", "0.5", True, NAN],
}
UNREADABLE = [
    (key, value)
    for key, default in DEFAULTS.items()
    for value in ([True, 1.5, "some"] if key == "groups-per-stage" else WRONG[type(default)])
]
# Refused by the check of an argument, which knows no keys.
NOT_ALLOWED = {
    "max-growth": 0.5,
    "server-learning-rate": 0.0,
    "averaging": "mode",
    "trimmed-share": 0.5,
    "max-norm-ratio": 0.5,
    "max-weight-ratio": 0.5,
    "wire-dtype": "float64",
    "groups-per-stage": 0,
    "fraction-train": 1.5,
    "fraction-evaluate": -0.5,
    "min-train-nodes": 0,
    "min-evaluate-nodes": 0,
    "min-available-nodes": -1,
    "node-timeout": 0.0,
    "stage-timeout": -1.0,
    "hello-timeout": 0.0,
    "quorum": 0.0,
    "own-growth": 0.5,
    "gamma": 0.0,
    "local-variance": -1.0,
    "prior-variance": 0.0,
    "sweeps": -1,
    "output": "median",
    "client-widths": "7=1.5",
    "width-selection": "best",
}


def configured(**overrides):
    own = {key.replace("_", "-"): value for key, value in overrides.items()}
    return make_strategy({**DEFAULTS, **own}, SPEC, OutputFolder(None, None, {}))


@pytest.mark.parametrize(("key", "value"), UNREADABLE)
def test_a_value_of_the_wrong_type_is_refused_before_anything_is_sent(key, value):
    asked = []
    config = {**DEFAULTS, key: value}
    grid = InProcessGrid(app, 2, config, intercept=lambda message, _: asked.append(message))
    with pytest.raises(ValueError, match=rf"^{key} must be .*not {value!r}$"):
        run(grid, config)
    assert asked == []


def test_every_key_has_a_reader_and_its_default_is_allowed():
    assert READERS.keys() == DEFAULTS.keys()
    check_types(DEFAULTS)


@pytest.mark.parametrize("key", [key for key in DEFAULTS if isinstance(DEFAULTS[key], float)])
def test_whole_numbers_are_numbers(key):
    value = READERS[key]({key: 2}, key)
    assert (value, type(value)) == (2.0, float)


@pytest.mark.parametrize("key", ["max-norm-ratio", "max-weight-ratio", "node-timeout"])
def test_a_limit_may_be_infinite(key):
    configured(**{key: INFINITE})


@pytest.mark.parametrize(("value", "meant"), [(2, 2), ("2", 2), ("12", 12), ("all", "all")])
def test_groups_per_stage_is_a_number_or_all(value, meant):
    read = READERS["groups-per-stage"]({"groups-per-stage": value}, "groups-per-stage")
    assert (read, type(read)) == (meant, type(meant))


@pytest.mark.parametrize("key", READERS)
def test_a_missing_key_is_named(key):
    with pytest.raises(ValueError, match=f"^{key} is missing from the run config$"):
        READERS[key]({}, key)


@pytest.mark.parametrize(("key", "value"), NOT_ALLOWED.items())
def test_a_value_that_an_argument_may_not_have_names_the_key(key, value):
    with pytest.raises(ValueError, match=key) as error:
        configured(**{key: value})
    assert str(value) in str(error.value)
    argument = key.replace("-", "_")
    assert argument == key or argument not in str(error.value)


def test_what_every_stage_is_told_about_training():
    own = {"local-epochs": 7, "lr": 0.5, "weight-decay": 0.25}
    retrain = {"retrain-epochs": 3, "retrain-lr": 0.125, "retrain-weight-decay": 0.0625}
    head = {"head-epochs-factor": 1.5, "head-lr-factor": 0.5, "head-weight-decay": 0.03125}
    config = {**DEFAULTS, **own, **retrain, **head}

    assert list(train_config(config).items()) == list(own.items())
    overrides = make_strategy(config, SPEC, OutputFolder(None, None, {})).settings.config_overrides
    # Their text is in checkpoints: the order counts.
    assert str(overrides) == str(
        {
            "retrain": {"local-epochs": 3, "lr": 0.125, "weight-decay": 0.0625},
            "head": {"local-epochs": 4, "lr": 0.0625, "weight-decay": 0.03125},
        }
    )
    assert head_config({**config, "head-epochs-factor": 0.01})["local-epochs"] == 1


def test_a_key_of_fedprox_alone():
    with pytest.raises(ValueError, match=r"^proximal-mu was -1\.0"):
        configured(strategy="fedprox", proximal_mu=-1.0)


def test_keys_that_exclude_each_other_are_all_named():
    with pytest.raises(ValueError, match=r"^one-shot=True .* groups-per-stage would"):
        configured(one_shot=True, groups_per_stage=2)
    with pytest.raises(ValueError, match="weighted-units=False"):
        configured(weighted_units=True, output="posterior")


def test_one_variance_alone_cannot_be_calibrated():
    with pytest.raises(ValueError, match=r"and prior-variance .* not 0\.0 and 1\.0"):
        configured(local_variance=0.0)
    for matcher in ("reference", "learned"):  # these two calibrate nothing
        with pytest.raises(ValueError, match="local-variance"):
            configured(matcher=matcher, local_variance=0.0)


def test_a_resumed_run_that_is_too_short_is_told_by_the_key():
    with (
        pytest.raises(ValueError, match=r"^num-server-rounds was 1") as error,
        naming_keys(DEFAULTS),
    ):
        raise ValueError("num_rounds was 1, but max_widths are not keys")
    assert "max_widths" in str(error.value)


def test_errors_that_say_more_than_their_text_stay():
    with pytest.raises(SpecError, match="max_growth"), naming_keys(DEFAULTS):
        raise SpecError("max_growth")


@pytest.mark.parametrize(
    ("key", "value"),
    [("momentum", "abc"), ("batch-size", 2.5), ("seed", "abc"), ("task", 3), ("local-models", 3)],
)
def test_a_client_names_what_it_cannot_read(key, value):
    config = {**DEFAULTS, **TINY, "partition": "homogeneous", "strategy": "fedavg"}
    grid = InProcessGrid(app, 2, {**config, key: value})
    with pytest.raises(AggregationError, match=f"ValueError: {key} must be"):
        run(grid, config)


@pytest.mark.parametrize(("key", "value"), [("lr", "abc"), ("local-epochs", 1.5)])
def test_a_client_names_what_the_server_says_and_it_cannot_read(key, value):
    def spoil(message, context):
        if "config" in message.content:
            message.content["config"][key] = value

    config = {**DEFAULTS, **TINY, "partition": "homogeneous", "strategy": "fedavg"}
    with pytest.raises(AggregationError, match=f"ValueError: {key} must be"):
        run(InProcessGrid(app, 2, config, intercept=spoil), config)


def test_the_papers_preset_sets_what_is_at_its_default():
    settings = configured(preset="paper").settings
    assert settings.matcher == BBPMAP.reference()
    assert (len(settings.plan), settings.solver) == (3, None)
    kept = configured(preset="paper", gamma=2.0, head="solved").settings
    assert kept.matcher == BBPMAP.reference(gamma=2.0)
    assert kept.solver is not None
    with pytest.raises(ValueError, match=r"^preset must be one of , paper, not 'mine'"):
        configured(preset="mine")


def test_presets_know_the_defaults():
    for preset in PRESETS.values():
        assert {key: default for key, (default, _) in preset.items()}.items() <= DEFAULTS.items()


@pytest.mark.parametrize(
    ("wrong", "right"), [("max-grow", "max-growth"), ("fraction_train", "fraction-train")]
)
def test_a_misspelt_key_is_refused_with_the_right_one(wrong, right):
    for config in ({**DEFAULTS, wrong: 0.5}, {k: v for k, v in DEFAULTS.items() if k != right}):
        with pytest.raises(ValueError, match=f"has '{wrong}', which is no key.*{right}"):
            run(InProcessGrid(app, 2, config), {**config, wrong: 0.5})
    with pytest.raises(ValueError, match=f"^{right} is missing .*has '{wrong}', which is no key$"):
        READERS[right]({wrong: 0.5}, right)


def test_a_key_that_nothing_reads_is_named_in_the_log(caplog):
    check_types({**DEFAULTS, "note-to-myself": "x"})
    assert "'note-to-myself', which nothing reads" in caplog.text
