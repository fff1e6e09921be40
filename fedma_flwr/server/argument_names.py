"""Arguments that a strategy does not have: which one may have been meant."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any

#: Other names for the same, of Flower's earlier strategies above all.
RENAMED = {
    "fraction_fit": "fraction_train",
    "min_fit_clients": "min_train_nodes",
    "min_train_clients": "min_train_nodes",
    "min_evaluate_clients": "min_evaluate_nodes",
    "min_available_clients": "min_available_nodes",
    "fit_metrics_aggregation_fn": "train_metrics_aggr_fn",
    "evaluate_metrics_aggregation_fn": "evaluate_metrics_aggr_fn",
    "mu": "proximal_mu",
}
_START = "it is an argument of `start`"
_REMAIN = "a client that fails is left out; `min_train_nodes` says how many must remain"
_EACH_ROUND = "for entries that change from round to round override `configure_{0}`"
_ROBUST = (
    "FedMA's `averaging` ('median', 'trimmed_mean', 'centred_clipping') is for hostile clients"
)
_MOMENTUM = "these strategies keep no momentum or moments; FedMA's `server_learning_rate` damps"
#: What is said elsewhere, or in another way.
ELSEWHERE = {
    **dict.fromkeys(("grid", "num_rounds", "timeout", "initial_arrays", "evaluate_fn"), _START),
    **dict.fromkeys(("train_config", "evaluate_config"), _START),
    "initial_parameters": (
        "give `start` the argument initial_arrays=ArrayRecord(model.state_dict())"
    ),
    "on_fit_config_fn": (
        "give `start` the argument train_config=ConfigRecord({...}); " + _EACH_ROUND.format("train")
    ),
    "on_evaluate_config_fn": (
        "give `start` the argument evaluate_config=ConfigRecord({...}); "
        + _EACH_ROUND.format("evaluate")
    ),
    **dict.fromkeys(("accept_failures", "min_completion_rate_fit"), _REMAIN),
    "min_completion_rate_evaluate": "evaluation goes on with whoever has answered",
    "inplace": "leave it out",
    "proximal_mu": (
        "it is FedProx's; with FedMA send mu to your train function, "
        "start(train_config=ConfigRecord({'proximal-mu': 0.01})), and add "
        "`proximal_term(model, mu, reference)` to the loss there"
    ),
    **dict.fromkeys(("server_momentum", "eta", "eta_l", "beta_1", "beta_2", "tau"), _MOMENTUM),
    "beta": "FedMA's averaging='trimmed_mean' with `trimmed_share` cuts off both ends",
    **dict.fromkeys(("num_malicious_nodes", "num_malicious_clients"), _ROBUST),
    **dict.fromkeys(("num_nodes_to_select", "num_clients_to_keep", "selection_rule"), _ROBUST),
    **dict.fromkeys(
        ("local_epochs", "lr", "learning_rate", "batch_size"),
        "training is your train function's: give `start` the argument "
        "train_config=ConfigRecord({'lr': 0.1})",
    ),
    "num_clients": "`min_available_nodes` and `fraction_train` say how many take part",
}


def check_names(
    strategy: type, base: type[object], given: Collection[str], known: Collection[str]
) -> None:
    """Refuse arguments that nobody takes.

    Parameters
    ----------
    strategy : type
        The class that was called.
    base : type
        The ancestor of all strategies that are looked through for the name.
    given : collection of str
        Names that no class before has taken.
    known : collection of str
        Those among them that are taken behind `base`.

    Raises
    ------
    TypeError
        It names all of them, and for each what may have been meant.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        own = {*arguments_of(strategy), *known}
        told = "; ".join(f"{name!r}: {_meant(name, own, base)}" for name in unknown)
        plural = "s" * (len(unknown) > 1)
        raise TypeError(f"{strategy.__name__} has no such argument{plural}: {told}")


def arguments_of(strategy: type) -> set[str]:
    """The names of all arguments that a class and its ancestors take."""
    found: set[str] = set()
    for cls in strategy.__mro__:
        if "__init__" in vars(cls) and cls is not object:
            parameters: dict[str, Any] = dict(inspect.signature(vars(cls)["__init__"]).parameters)
            kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            found |= {name for name, p in parameters.items() if p.kind not in kinds}
    return found - {"self"}


def nearest(name: str, names: Collection[str]) -> str:
    """The name that looks most like another; empty if none does."""
    near = get_close_matches(name.lower().replace("-", "_"), sorted(names), n=1, cutoff=0.6)
    return near[0] if near else ""


def _meant(name: str, own: Collection[str], base: type[object]) -> str:
    """What to write instead."""
    if (renamed := RENAMED.get(name)) in own:
        return f"it is `{renamed}` here"
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    others = [cls.__name__ for cls in _descendants(base) if name in arguments_of(cls)]
    if others:
        return f"it is an argument of {' and '.join(others)} only"
    if near := nearest(name, own):
        return f"did you mean `{near}`?"
    return f"there are {', '.join(sorted(own))}"


def _descendants(base: type[object]) -> Iterator[type[object]]:
    """The package's own strategies below a class."""
    for cls in base.__subclasses__():
        if cls.__module__.startswith("fedma_flwr.") and not cls.__module__.startswith(
            "fedma_flwr.server."
        ):
            yield cls
        yield from _descendants(cls)
