"""Every argument of the strategies is checked here, before anything is derived or sent.

What is refused is a ``ValueError`` that names the argument, what it was and what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from flwr.app import ConfigRecord

from fedma_flwr.averaging import AVERAGES, MEAN
from fedma_flwr.matching import Matcher, check_matcher
from fedma_flwr.server.width_selection import WIDTH_SELECTIONS
from fedma_flwr.structure import PermutationSpec, SpecError, linear_head
from fedma_flwr.wire import WIRE_DTYPES

COMMON, OWN = "common", "own"  # initialisations
TRAINED, SOLVED, AUTO = "trained", "solved", "auto"  # heads; AUTO: solved where it can be
AVERAGED = "averaged"  # what local training goes on from beside a solved head, or it is SOLVED

_Rule = tuple[Callable[[Any], bool], str]  # what is allowed, and in words

_SHARE: _Rule = (lambda value: 0.0 <= value <= 1.0, "it must lie between 0 and 1")
_CLIENTS: _Rule = (
    lambda value: isinstance(value, Integral) and int(value) >= 1,
    "at least one client is needed, a whole number of them",
)
_SECONDS: _Rule = (lambda value: value > 0, "it must be a number of seconds above 0")
_RATIO: _Rule = (lambda value: value >= 1.0, "it must be 1 or more")
_FLAG: _Rule = (lambda value: isinstance(value, bool | np.bool_), "it must be True or False")
_FOLDER: _Rule = (
    lambda value: value is None or isinstance(value, str | os.PathLike),
    "it must be the path of a folder, or None",
)
_CONFIG: _Rule = (
    # What Flower cannot send would fail in the stage that needs it, after others were trained.
    lambda value: (
        value is None or (isinstance(value, Mapping) and ConfigRecord(dict(value)) is not None)
    ),
    "it must be a mapping of config keys to numbers, texts or lists, such as {'local-epochs': 5}",
)
_KEY: _Rule = (lambda value: isinstance(value, str), "it must be a string")
_NAMES: _Rule = (
    lambda value: (
        isinstance(value, tuple | list) and all(isinstance(n, str) and n.strip() for n in value)
    ),
    "it must be a tuple of tensor names or patterns, such as ('bn1.*', 'head.*')",
)
_FUNCTION: _Rule = (
    lambda value: value is None or callable(value),
    "it must be a function, or None",
)
_WIDTHS: _Rule = (
    lambda value: (
        value is None
        or (
            isinstance(value, Mapping)
            and all(isinstance(key, str) for key in value)
            and all(not isinstance(w, bool) and 0.0 < w <= 1.0 for w in value.values())
        )
    ),
    "it must be a mapping of client keys to widths above 0, at most 1, such as {'7': 0.25}",
)
_RULES: dict[str, _Rule] = {
    "fraction_train": _SHARE,
    "fraction_evaluate": _SHARE,
    "head_fraction": _SHARE,
    "head_memory": (
        lambda value: isinstance(value, Integral) and int(value) >= 0,
        "it must be a whole number of rounds, 0 or more",
    ),
    "min_train_nodes": _CLIENTS,
    "min_evaluate_nodes": _CLIENTS,
    "min_available_nodes": _CLIENTS,
    "num_rounds": (lambda value: value >= 1, "it must be at least 1"),
    "seed": (
        lambda value: isinstance(value, Integral) and int(value) >= 0,
        "it must be a whole number and not be negative",
    ),
    "node_timeout": _SECONDS,
    "hello_timeout": _SECONDS,
    "quorum": (lambda value: 0.0 < value <= 1.0, "it must be a share above 0, up to 1"),
    "stage_timeout": (lambda value: value is None or value > 0, _SECONDS[1]),
    "proximal_mu": (lambda value: 0.0 <= value < float("inf"), "it must be 0 or more"),
    "initialisation": (
        lambda value: value in (COMMON, OWN),
        f"it must be {COMMON!r} or {OWN!r}",
    ),
    "head": (
        lambda value: value in (AUTO, SOLVED, TRAINED),
        f"it must be {AUTO!r}, {SOLVED!r} or {TRAINED!r}",
    ),
    "head_start": (
        lambda value: value in (AUTO, AVERAGED, SOLVED),
        f"it must be {AUTO!r}, {AVERAGED!r} or {SOLVED!r}",
    ),
    "own_growth": (lambda value: 1.0 <= value < float("inf"), "it must be 1 or more"),
    "max_growth": (lambda value: 1.0 <= value < float("inf"), "it must be 1 or more"),
    "server_learning_rate": (lambda value: 0.0 < value <= 1.0, "it must be above 0, at most 1"),
    "averaging": (lambda value: value in AVERAGES, f"it must be one of {AVERAGES}"),
    "trimmed_share": (lambda value: 0.0 <= value < 0.5, "it must be from 0 to below 0.5"),
    "max_norm_ratio": _RATIO,
    "personal": _NAMES,
    "max_weight_ratio": (lambda value: value is None or value >= 1.0, _RATIO[1]),
    "wire_dtype": (lambda value: value in WIRE_DTYPES, f"it must be one of {WIRE_DTYPES}"),
    **dict.fromkeys(("one_shot", "reestimate_statistics", "weighted_units", "resume"), _FLAG),
    "registered_nodes": _FLAG,
    "client_widths": _WIDTHS,
    "width": (lambda value: 0.0 < value <= 1.0, "it must be above 0, at most 1"),
    "width_selection": (
        lambda value: value in WIDTH_SELECTIONS,
        f"it must be one of {WIDTH_SELECTIONS}",
    ),
    **dict.fromkeys(
        ("checkpoint_dir", "matchings", "output_dir", "spec_cache", "spill_dir"), _FOLDER
    ),
    **dict.fromkeys(("retrain_config", "head_config"), _CONFIG),
    **dict.fromkeys(("weighted_by_key", "arrayrecord_key", "configrecord_key"), _KEY),
    **dict.fromkeys(
        ("on_exchange", "train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"), _FUNCTION
    ),
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse single arguments that are out of range.

    Parameters
    ----------
    arguments : mapping of str to value
        By name, of any strategy; names without a rule are passed over.

    Raises
    ------
    ValueError
        It names the first argument that is out of range, or of a type that has none.
    """
    for name, value in arguments.items():
        if name not in _RULES:
            continue
        allowed, words = _RULES[name]
        try:
            fits = bool(allowed(value))
        except (TypeError, ValueError):  # text where a number belongs, or an array
            fits = False
        if not fits:
            raise ValueError(f"{name} was {value!r}; {words}.")


def check_resuming(checkpoint_dir: object, resume: bool) -> None:
    """Refuse to go on from checkpoints without a folder of them.

    Raises
    ------
    ValueError
        It names the arguments.
    """
    check_arguments({"checkpoint_dir": checkpoint_dir, "resume": resume})
    if resume and checkpoint_dir is None:
        raise ValueError("resume was True without checkpoint_dir: say where checkpoints are.")


def check_fedma(arguments: Mapping[str, Any]) -> None:
    """Refuse `FedMA`'s own arguments where one is out of range, or two do not go together.

    Parameters
    ----------
    arguments : mapping of str to value
        All but the model's, by name.

    Raises
    ------
    ValueError
        It names the arguments.
    """
    check_arguments(arguments)
    check_output(
        arguments["matcher"],
        weighted_units=arguments["weighted_units"],
        averaging=arguments["averaging"],
        matchings=arguments["matchings"],
    )
    if arguments["one_shot"]:
        later = {name: arguments[name] for name in ("retrain_config", "head_config")}
        solved = arguments["head"] == SOLVED
        _check_one_shot(
            {
                "groups_per_stage": arguments["groups_per_stage"] not in (1, "all"),
                f"head={SOLVED!r}": solved,
                **later,
            }
        )


def check_output(
    matcher: Matcher, *, weighted_units: bool, averaging: str, matchings: object
) -> None:
    """Refuse a matcher, and what does not go with posterior means.

    They are sums over all members alike, and assignments do not tell their variances.

    Raises
    ------
    ValueError
        It names the arguments.
    """
    check_matcher(matcher)
    if matcher.output == "mean":
        return
    if weighted_units:
        raise ValueError(
            'weighted_units was True, but the matcher gives posterior means (output="posterior"), '
            'which weigh all clients alike: set weighted_units=False, or output="mean".'
        )
    if averaging != MEAN:
        raise ValueError(
            f"averaging was {averaging!r}, but the matcher's output is 'posterior', which is made "
            "of all members' sum: give the matcher output='mean'."
        )
    if matchings is not None:
        raise ValueError(
            f"matchings was {str(matchings)!r} with a matcher whose output is {matcher.output!r}: "
            'a saved matching has no variances; make the matcher with output="mean".'
        )


def check_model(model: object, example_inputs: object, spec: object) -> None:
    """Refuse a model without inputs, inputs without a model, and a spec that is none.

    Raises
    ------
    ValueError
        It names the arguments.
    """
    if (model is None) != (example_inputs is None):
        raise ValueError(
            "`model` and `example_inputs` go together: FedMA(model=Net(), example_inputs=(x,)), "
            "where Net()(x) works."
        )
    if spec is not None and not isinstance(spec, PermutationSpec):
        raise ValueError(
            f"spec was {spec!r}; it must be a PermutationSpec: PermutationSpec.from_json(text) "
            "reads what `to_json` has written."
        )


def check_spec(spec: PermutationSpec | None) -> PermutationSpec:
    """The spec, if there is one and it has something to match, or a head to solve.

    Raises
    ------
    ValueError
        If neither a spec nor a model was given.
    SpecError
        If the spec has no groups, and no head of one linear layer.
    """
    if spec is None:
        raise ValueError("FedMA needs `model` and `example_inputs`, or `spec`.")
    if not spec.groups and isinstance(linear_head(spec), str):
        raise SpecError("The spec has no groups, so there is nothing to match: use FedAvg.")
    return spec


def _check_one_shot(later: Mapping[str, object]) -> None:
    """Refuse arguments that are about stages which one-shot matching does not have."""
    if given := [name for name, value in later.items() if value]:
        raise ValueError(
            f"one_shot=True has one exchange and no later stage, so that {', '.join(given)} would "
            "have no effect: leave it out, or leave out one_shot."
        )
