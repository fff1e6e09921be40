"""Federated Learning with Matched Averaging (FedMA), as a strategy for Flower.

Paper: Wang et al., ICLR 2020, openreview.net/forum?id=BkluqlSFDS (arXiv 2002.06440)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from torch import nn

from fedma_flwr.averaging import MEAN
from fedma_flwr.matching import BBPMAP, Matcher
from fedma_flwr.server.arguments import (
    AUTO,
    COMMON,
    TRAINED,
    check_arguments,
    check_fedma,
)
from fedma_flwr.server.settings import log_settings
from fedma_flwr.server.spec_choice import make_spec
from fedma_flwr.server.staged_cohort import StagedCohort
from fedma_flwr.server.width_selection import POPULAR
from fedma_flwr.structure import GroupsPerStage, PermutationSpec
from fedma_flwr.structure.model_copies import Inputs
from fedma_flwr.wire import FLOAT32

DEFAULT_MATCHER = BBPMAP(gamma=1.0, local_variance=1.0, prior_variance=1.0)
#: The arguments that make the paper's FedMA.
PAPER: dict[str, Any] = {"groups_per_stage": 1, "head": TRAINED, "matcher": BBPMAP.reference()}
_OTHERS = {
    "self",
    "__class__",
    "model",
    "example_inputs",
    "spec",
    "spec_cache",
    "fedavg",
}  # no settings


class FedMA(StagedCohort):
    """Federated Matched Averaging.

    A communication round has two exchanges. Clients train; the server matches their hidden units,
    averages the matched ones and may let layers grow. Clients then pass over their examples once
    and send moments, from which the head is solved. Clients need ``ClientApp(mods=[fedma_mod])``
    and `load_model`. `paper` makes the paper's plan, layer by layer with a trained head, and
    ``print(strategy.settings.plan)`` shows any.

    Parameters
    ----------
    model, example_inputs : nn.Module, and Tensor, tuple, dict, or list of them, optional
        The model, and inputs for which ``model(*example_inputs)`` works (a dict: ``**``; a tensor
        is the only argument): the spec is derived from them and proven. A list of tuples or dicts
        is one of several examples.
    spec : PermutationSpec, optional
        A spec made by hand. It is proven if `model` and `example_inputs` are given too.
    spec_cache : str or Path, optional
        Folder that keeps the derived spec for later runs; see `cached_spec`.
    matcher : Matcher, optional (default: `DEFAULT_MATCHER`)
        Finds the assignments of one group. The default is BBP-MAP with gamma 1 and variances 1;
        ``BBPMAP()`` calibrates its variances from the data.
    groups_per_stage : int or "all" (default: "all")
        Groups matched in one stage; clients retrain what has not settled in between. ``"all"``:
        one stage for all of them, then (with batch norm, after one for its statistics) the head's.
    one_shot : bool (default: False)
        One-shot matching: a round is one exchange. Clients train and send everything, all groups
        are matched and everything is averaged at once; nothing is retrained.
    reestimate_statistics : bool (default: True)
        Whether clients estimate running statistics of batch norms anew on the averaged weights
        (see `StagePlan`), instead of sending those of their own weights with them.
    head : {"auto", "solved", "trained"} (default: "auto")
        How the head is made. ``"solved"``: in closed form from moments of its inputs, as if one
        machine had all data; it must be one linear layer, with a cross-entropy, a squared error or
        sigmoids behind it. ``"trained"``: clients train it, and it is averaged by class counts.
        ``"auto"``: solved if it is one linear layer; if the loss turns out to be another one, the
        average of the heads that clients train with all else.
    head_start : {"auto", "solved", "averaged"} (default: "auto")
        With a solved head, the head that the next round's local training goes on from: the
        solved one, at four times a new layer's norm, or the trained ones' average, as in FedAvg.
        ``"auto"``: the solved one, until a round's features are much worse than the best so far.
    head_fraction : float (default: 1.0)
        Share of the clients that are there, cohort included, which a solved head asks for moments.
        Clients outside the cohort are sent the settled model for it.
    head_memory : int (default: 0)
        Rounds for which the last moments of a client stand in for it where it sends none. The
        server keeps them, a square matrix of the head's inputs a client.
    initialisation : {"common", "own"} (default: "common")
        What clients start from in the first round: the initial arrays, or whatever their train
        function's model is (its own random weights, a saved local model, or weights drawn from a
        seed that all clients share: a common start that costs no bytes).
    personal : sequence of str (default: none)
        Names of tensors, or patterns such as ``"head.*"``: what stays with the client (FedBN,
        FedPer, FedRep). Clients begin with those of ``initial_arrays``, and the result has them.
    max_growth : float (default: 2.0)
        A group may have at most this times its initial number of units. 1: no growth.
    own_growth : float (default: 1.0)
        A client's own first weights (``initialisation="own"``) may have at most this times the
        initial units, and at most `max_growth` times. Wide clients make matching slow.
    weighted_units : bool (default: False)
        Weigh clients by `weighted_by_key` when matched units are averaged, instead of equally.
    server_learning_rate : float (default: 1.0)
        How far each stage goes from the last global model towards the clients' mean, above 0 and
        at most 1, as in Flower's FedAvgM. Less than 1 damps what a sampled cohort does to the
        model. The last global model is carried over into the new units by the assignments.
    averaging : {"mean", "median", "trimmed_mean", "centred_clipping"} (default: "mean")
        How the clients' values of a matched unit, and of the head, become one. The others are
        for cohorts in which some clients may be hostile.
    trimmed_share : float (default: 0.2)
        Share of the cohort that ``"trimmed_mean"`` cuts off at either end.
    max_norm_ratio : float (default: 10.0)
        A client with a unit of more than this times the usual norm is refused (see `oversized`).
    max_weight_ratio : float, optional (default: None)
        A client's examples and class counts count for at most this times the cohort's median.
        None: 10, or 1 with a robust `averaging`.
    wire_dtype : {"float32", "float16", "bfloat16"} (default: "float32")
        Precision in which weights cross, both ways; ``"float32"``: that of the model, unchanged.
        Tensors of one axis are never compressed. Values beyond float16's 65504 become 65504.
    retrain_config, head_config : mapping, optional
        Entries that override the train config in the retrain stages and in the head stage, for
        example ``{"local-epochs": 5}``.
    seed : int (default: 0)
        Seeds the sampling of clients and the matcher's client orders.
    matchings : str or Path, optional
        Folder of saved matchings: a round's is used if it is there, instead of matching again,
        and saved if not. Not with a matcher whose output is the posterior.
    output_dir : str or Path, optional
        Folder that gets the run's records and its report; see `RecordedCohort`.
    width_selection : {"popular", "first", "rolling", "random"} (default: "popular")
        Which units a narrow client is sent (see `client_widths`): those that most clients hold, the
        first ones (HeteroFL), a window that moves on in every round (FedRolex), or some drawn anew
        by `seed`. ``"popular"`` is ``"rolling"`` in rounds without a client of full width.
    checkpoint_dir, resume
        See `ResumableCohort`: a checkpoint after every round, and going on from the last one.
    node_timeout, stage_timeout, hello_timeout, quorum, on_exchange, client_widths
        See `SeededCohort`.
    **fedavg : Any
        FedAvg's keyword arguments: fraction_train, fraction_evaluate, min_train_nodes,
        min_evaluate_nodes, min_available_nodes, weighted_by_key, arrayrecord_key,
        configrecord_key, train_metrics_aggr_fn, evaluate_metrics_aggr_fn. A round goes on while
        `min_train_nodes` clients remain. Metrics are those of the last stage that trains.

    Raises
    ------
    ValueError
        If an argument is out of range or of a wrong type; the message names it.
    SpecError
        If `spec` does not fit the model, or has no groups.
    UnsupportedModelError
        If no spec can be derived from the model.
    """

    needs_mod = True

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        example_inputs: Inputs | None = None,
        spec: PermutationSpec | None = None,
        spec_cache: str | Path | None = None,
        matcher: Matcher | None = None,
        groups_per_stage: GroupsPerStage = "all",
        one_shot: bool = False,
        reestimate_statistics: bool = True,
        head: str = AUTO,
        head_start: str = AUTO,
        head_fraction: float = 1.0,
        head_memory: int = 0,
        initialisation: str = COMMON,
        personal: Sequence[str] = (),
        max_growth: float = 2.0,
        own_growth: float = 1.0,
        weighted_units: bool = False,
        server_learning_rate: float = 1.0,
        averaging: str = MEAN,
        trimmed_share: float = 0.2,
        max_norm_ratio: float = 10.0,
        max_weight_ratio: float | None = None,
        wire_dtype: str = FLOAT32,
        retrain_config: Mapping[str, Any] | None = None,
        head_config: Mapping[str, Any] | None = None,
        matchings: str | Path | None = None,
        width_selection: str = POPULAR,
        **fedavg: Any,
    ) -> None:
        """Check the arguments and keep them. Long because each has a line."""
        # Each by its name; there are no other local names yet.
        arguments = {name: value for name, value in locals().items() if name not in _OTHERS}
        arguments["matcher"] = DEFAULT_MATCHER if matcher is None else matcher
        check_fedma(arguments)
        self.head_fraction = head_fraction
        super().__init__(**fedavg)
        spec = make_spec(model, example_inputs, spec, spec_cache)
        self._keep_settings(spec, arguments, (model, example_inputs))

    @classmethod
    def paper(cls, **arguments: Any) -> FedMA:
        """The paper's FedMA: layer by layer, a trained head, its matcher (Wang et al., 2020).

        `arguments` are those of `FedMA`; they win over the paper's.
        """
        return cls(**{**PAPER, **arguments})

    def summary(self) -> None:
        """Log the configuration as a tree."""
        log_settings(self.settings)
        super().summary()

    def _fingerprint(self) -> dict[str, str]:
        asked = {"head_fraction": str(self.head_fraction)} if self.settings.solver else {}
        return {**super()._fingerprint(), **self.settings.fingerprint(), **asked}

    # ------------------------------------------------------------------ life cycle

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        *args: Any,
        **kwargs: Any,
    ) -> Result:
        """Run the strategy; see Flower's ``Strategy.start``.

        Raises
        ------
        CheckpointError
            If `checkpoint_dir` has checkpoints, but `resume` is false or none can be used.
        SpecError
            If `initial_arrays` are no tensors of the spec.
        AggregationError
            If no client's reply can be used in a stage before the first complete round, or if no
            client has `fedma_mod`.
        ValueError
            If a saved matching is damaged, or is not of this model and these clients.
        """
        check_arguments({"num_rounds": num_rounds})
        self._fit(initial_arrays)
        if self._matchings is not None:
            self._matchings.check(range(1, num_rounds + 1))
        return super().start(grid, initial_arrays, num_rounds, timeout, *args, **kwargs)
